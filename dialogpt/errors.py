"""The error of the dialogue system: something that the person at the keyboard can mend; and commands' exit statuses.

It imports nothing heavy, as every other file may import it.
"""

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

DONE, FAILED, USAGE = 0, 1, 2
INTERRUPTED = 130  # 128 + SIGINT
CLOSED = 141  # 128 + SIGPIPE: nobody reads standard output


def install_hint(extra: str) -> str:
    """The command that installs an extra: from the folder that this package was installed from, or from the index.

    Its quotes are double ones, which every shell takes, that of Windows too.
    """
    folder, editable = _origin()
    if folder is None or not (folder / "constraints.txt").is_file():
        return f'pip install "dialogpt[{extra}]"'
    here = folder.samefile(Path.cwd())
    pins, package = ("constraints.txt", ".") if here else (f'"{folder / "constraints.txt"}"', str(folder))
    return f'pip install -c {pins} {"-e " if editable else ""}"{package}[{extra}]"'


def _origin() -> tuple[Path | None, bool]:
    """The folder that this package was installed from, where there is one, and whether it runs from there."""
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "pyproject.toml").is_file():
        return checkout, True
    try:  # what pip notes of an installation, PEP 610
        note = json.loads(distribution("dialogpt").read_text("direct_url.json") or "{}")
        url = urlparse(str(note.get("url")))
    except (PackageNotFoundError, ValueError):
        return None, False
    return (Path(url2pathname(url.path)), False) if url.scheme == "file" else (None, False)


class DialogueError(ValueError):
    """What was found, what was expected and what to do next, in one sentence; the command line prints it as it is."""
