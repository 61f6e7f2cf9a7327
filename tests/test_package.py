"""The package as a whole: what is built and installed, lazy names, and the arrow of imports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import dialogpt
from dialogpt.errors import install_hint
from tests.helpers import WAIT_SECONDS

ROOT = Path(__file__).parents[1]
PARTS = ("dialogpt", "model", "weights")
ASK = """
from dialogpt import Chat, model, weights
print(model.__file__)
print(weights.__file__)
print(Chat.load('tiny', seed=1).reply('Hi!'))
"""


def test_every_public_name_is_there() -> None:
    assert all(getattr(dialogpt, name) is not None for name in dialogpt.__all__)
    assert sorted(dialogpt._HOMES) == sorted(dialogpt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dialogpt.nothing


@pytest.mark.parametrize(
    ("package", "foreign"),
    [
        ("dialogpt.model", ("dialogpt.weights", "dialogpt.tokenizer", "dialogpt.cli.main")),
        ("dialogpt.weights", ("dialogpt.tokenizer", "dialogpt.cli.main")),
        ("dialogpt", ("torch", "dialogpt.model")),
    ],
)
def test_packages_import_one_way(package: str, foreign: tuple[str, ...]) -> None:
    program = f"import sys, {package}; sys.exit(any(name in sys.modules for name in {foreign!r}))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


# ---- What is built, and what is installed ----


def copy_of_the_checkout(destination: Path, *, links: bool) -> Path:
    """What setuptools builds from; a copy, as it leaves files there. Without links it is what Windows checks out."""
    unwanted = shutil.ignore_patterns("__pycache__", *([] if links else ["model", "weights"]))
    for name in PARTS:
        ignore = unwanted if name == "dialogpt" else shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, destination / name, symlinks=True, ignore=ignore)
    for name in ("scripts", "tests", "docs"):
        shutil.copytree(ROOT / name, destination / name, ignore=shutil.ignore_patterns("__pycache__"))
    for pattern in ("pyproject.toml", "setup.py", "MANIFEST.in", "*.md", "LICENSE", "constraints.txt"):
        for path in ROOT.glob(pattern):
            shutil.copy(path, destination)
    if not links:
        for name in ("model", "weights"):
            (destination / "dialogpt" / name).write_text(f"../{name}")  # as git leaves a link where there are none
    return destination


def built(source: Path, *kinds: str) -> list[Path]:
    """Build `sdist` or `wheel`, or both, the second from the first as `python -m build` does; returns the files."""
    out = source.parent / "dist"
    command = [sys.executable, "-m", "build", *kinds, "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in (done.stdout + done.stderr).splitlines() if "warning" in line.lower()]
    harmless = ("no previously-included files", "byte-compiling is disabled")  # of MANIFEST.in; of how tests are run
    assert not [line for line in warnings if not any(words in line for words in harmless)]
    return sorted(out.iterdir())


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution of a checkout, and the wheel that is built from it."""
    sdist, wheel = sorted(
        built(copy_of_the_checkout(tmp_path_factory.mktemp("built") / "source", links=True)),
        key=lambda path: path.suffix == ".whl",
    )
    return sdist, wheel


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


def test_the_wheel_holds_the_package_and_nothing_generic(distributions: tuple[Path, Path], tmp_path: Path) -> None:
    names = names_in(distributions[1])
    assert {name.split("/")[0] for name in names} == {"dialogpt", "dialogpt-0.1.0.dist-info"}
    ours = {
        f"{'' if part == 'dialogpt' else 'dialogpt/'}{path.relative_to(ROOT).as_posix()}"
        for part in PARTS
        for path in (ROOT / part).rglob("*")
        if path.is_file() and not {"__pycache__", "dialogues"} & {*path.parts}  # what tiny learned from stays here
    }
    without = {"dialogpt/README.md", "dialogpt/model/README.md", "dialogpt/weights/README.md"}
    without |= {"dialogpt/model", "dialogpt/weights"}  # files where there are no links
    assert {name for name in names if not name.startswith("dialogpt-")} == ours - without
    for links in (True, False):  # from a checkout with links and without them the same
        source = copy_of_the_checkout(tmp_path / str(links) / "source", links=links)
        assert names_in(built(source, "--wheel")[0]) == names


def test_the_source_distribution_holds_its_tests(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("this is no checkout")
    left_out = {".ci/run", ".gitignore", ".gitattributes", "dialogpt/model", "dialogpt/weights"}
    expected = {name for name in tracked.stdout.split("\n") if name and not name.startswith(".github/")}
    assert expected - names <= left_out
    assert not [name for name in names if name.startswith(("dialogpt/model/", "dialogpt/weights/"))]  # once is enough


@pytest.fixture(scope="module")
def homes(distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders for PYTHONPATH with the package installed: from the wheel, and editable, with links and without."""
    folder = tmp_path_factory.mktemp("homes")
    with zipfile.ZipFile(distributions[1]) as archive:
        archive.extractall(folder / "wheel")
    for kind, links in (("editable", True), ("editable without links", False)):
        source, home = copy_of_the_checkout(folder / f"{kind} source", links=links), folder / kind
        program = f"from setuptools.build_meta import build_editable; build_editable({str(home)!r})"
        home.mkdir()
        done = subprocess.run([sys.executable, "-c", program], cwd=source, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with zipfile.ZipFile(next(home.glob("*.whl"))) as archive:
            archive.extractall(home)
        (home / "sitecustomize.py").write_text(
            f"import site, sys; sys.path[:] = [path for path in sys.path if path != {str(ROOT)!r}]; "
            f"site.addsitedir({str(home)!r})"  # reads the .pth file
        )
    return {path.name: path for path in folder.iterdir() if not path.name.endswith("source")}


def test_its_command_is_named_like_it(distributions: tuple[Path, Path]) -> None:
    """That is what `pipx run` and `uvx` look for in a wheel."""
    with zipfile.ZipFile(distributions[1]) as archive:
        commands = archive.read("dialogpt-0.1.0.dist-info/entry_points.txt").decode()
    assert commands == "[console_scripts]\ndialogpt = dialogpt.__main__:console\n"


@pytest.mark.parametrize("how", ["script", "-c", "-m", "console"])
@pytest.mark.parametrize("kind", ["wheel", "editable", "editable without links"])
def test_files_of_ones_own_hide_nothing(homes: dict[str, Path], kind: str, how: str, tmp_path: Path) -> None:
    """Nearly every folder of machine learning has a model.py; it was imported in place of ours."""
    if kind == "editable" and not (ROOT / "dialogpt" / "model").is_dir():
        pytest.skip("there are no links in this checkout")
    for name in ("model", "weights"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a file of the user was imported')")
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('a folder of the user was imported')")
    if kind != "editable without links":  # which imports by a hook, that comes after every folder on the path
        (tmp_path / "dialogpt").mkdir()  # the checkout itself often lies in a folder of this name
    (tmp_path / "ask.py").write_text(ASK)
    arguments = {
        "script": ["ask.py"],
        "-c": ["-c", ASK],
        "-m": ["-m", "dialogpt", "reply", "Hi!", "--seed", "1"],
        "console": ["-c", "import sys, dialogpt.cli.main as c; sys.exit(c.main(['reply', 'Hi!', '--seed', '1']))"],
    }[how]
    environment = os.environ | {"PYTHONPATH": str(homes[kind])}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    *files, reply = done.stdout.strip().split("\n")
    assert reply
    assert all(path.startswith(str(homes[kind])) for path in files)


def test_the_wheel_chats_elsewhere(homes: dict[str, Path], tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(homes["wheel"])}
    talk = subprocess.run(
        [sys.executable, "-m", "dialogpt", "chat"],
        cwd=tmp_path, env=environment, input=b"Hello\n", capture_output=True,
    )  # fmt: skip
    assert talk.returncode == 0, talk.stderr
    assert talk.stdout.count(b"\n") == 1


def test_a_missing_extra_names_the_command_that_installs_it(
    homes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a checkout it installs from there, with its pins; for users of a wheel it installs from the index."""
    monkeypatch.chdir(ROOT)
    assert install_hint("hub") == 'pip install -c constraints.txt -e ".[hub]"'
    monkeypatch.chdir(tmp_path)
    assert install_hint("hub") == f'pip install -c "{ROOT / "constraints.txt"}" -e "{ROOT}[hub]"'
    environment = os.environ | {"PYTHONPATH": str(homes["wheel"])}
    program = "import sys; sys.modules['uvicorn'] = None; import dialogpt.cli.main as c; sys.exit(c.main(['serve']))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert 'install with: pip install "dialogpt[serve]"' in done.stderr
    note = next(homes["wheel"].glob("*.dist-info")) / "direct_url.json"  # as pip leaves it after `pip install .`
    note.write_text(json.dumps({"url": ROOT.as_uri(), "dir_info": {}}))
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
    finally:
        note.unlink()
    assert f'pip install -c "{ROOT / "constraints.txt"}" "{ROOT}[serve]"' in done.stderr
