"""The pins of constraints.txt: each exists for every Python that is supported, and all of them go together."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
PINS = [
    Requirement(line)
    for text in (ROOT / "constraints.txt").read_text().splitlines()
    if (line := text.partition("#")[0].strip())
]


def holds(pin: Requirement, python: str) -> bool:
    """Whether a pin counts for a Python."""
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    return pin.marker is None or pin.marker.evaluate(environment)


@pytest.mark.parametrize("python", PYTHONS)
def test_each_package_has_one_pin(python: str) -> None:
    names = [pin.name.lower().replace("_", "-") for pin in PINS if holds(pin, python)]
    assert len(names) == len(set(names))
    assert {pin.name.lower().replace("_", "-") for pin in PINS} == set(names)


@pytest.mark.parametrize("pin", PINS, ids=str)
def test_what_is_installed_runs_on_every_python_that_its_pin_names(pin: Requirement) -> None:
    """filelock, regex, hypothesis and others had left Python 3.10, and the README's first command could not install."""
    try:
        about = importlib.metadata.metadata(pin.name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{pin.name} is not installed here")
    if not holds(pin, f"{sys.version_info[0]}.{sys.version_info[1]}") or about["Version"] not in pin.specifier:
        pytest.skip(f"another {pin.name} is installed here")
    admitted = SpecifierSet(about.get("Requires-Python") or "")
    refused = [python for python in PYTHONS if holds(pin, python) and f"{python}.0" not in admitted]
    assert not refused, f"{pin} needs Python {admitted}"


def test_pyproject_names_every_python() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert tuple(re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)) == PYTHONS
    assert f'requires-python = ">={PYTHONS[0]}"' in text


@pytest.mark.registry
@pytest.mark.parametrize("python", PYTHONS)
def test_all_pins_go_together(python: str) -> None:
    """Resolved by uv from the index's metadata; nothing is installed."""
    pytest.importorskip("uv")
    extras = [
        argument
        for extra in ("train", "data", "log", "reddit", "spark", "hub", "serve", "test", "lint")
        for argument in ("--extra", extra)
    ]
    command = ["uv", "pip", "compile", "-q", "pyproject.toml", *extras, "-c", "constraints.txt"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "--python-version", python], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", done.stdout, re.MULTILINE))
    assert all(found[pin.name] in pin.specifier for pin in PINS if pin.name in found and holds(pin, python))
    assert {"torch", "transformers", "fastapi"} <= found.keys()
