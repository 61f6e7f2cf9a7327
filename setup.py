"""Where setuptools finds the packages; everything else is said in pyproject.toml.

The folders model/ and weights/ stand at the top and are imported as `dialogpt.model` and `dialogpt.weights`, so that
nothing generic lands in site-packages. In a checkout two links in dialogpt/ say so to Python, editors and type
checkers, and an editable install is one line in a .pth file, which a folder that happens to be named dialogpt cannot
hide. Where there are no links (an unpacked source distribution, a checkout on Windows) an editable install follows the
table below, as do the distributions that are built.
"""

import sys
from pathlib import Path

from setuptools import setup

FOLDERS = {"": ".", "dialogpt.model": "model", "dialogpt.weights": "weights"}
LINKED = all((Path(__file__).parent / "dialogpt" / name).is_dir() for name in ("model", "weights"))

setup(package_dir={"": "."} if LINKED and "editable_wheel" in sys.argv else FOLDERS)
