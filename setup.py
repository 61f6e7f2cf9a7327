"""Where setuptools finds the packages; everything else is said in pyproject.toml.

The folders model/ and weights/ stand at the top and are imported as `dialogpt.model` and `dialogpt.weights`, so that
nothing generic lands in site-packages. In a checkout two links in dialogpt/ say so: editors, type checkers and Python
follow them, and an editable install is one line in a .pth file, which a folder that happens to be named dialogpt cannot
hide. Without links (a source distribution, a checkout on Windows) the same is said to setuptools in a table.
"""

from pathlib import Path

from setuptools import setup

LINKED = all((Path(__file__).parent / "dialogpt" / name).is_dir() for name in ("model", "weights"))

setup(package_dir={"": "."} if LINKED else {"": ".", "dialogpt.model": "model", "dialogpt.weights": "weights"})
