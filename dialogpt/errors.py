"""The errors that a user can mend, in one tree, the hint that installs an extra, and the exit statuses of commands.

It imports no torch, and every other file may import it. Errors with data of their own are subclasses of `DialogueError`
and defined where they are raised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
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
    """An error that a user can mend: what was found, what was expected and what to do next, as one sentence."""


class CheckpointError(DialogueError):
    """A checkpoint that cannot be used; the message names every problem and what to do.

    The message quotes files, which may hold megabytes; a long message loses its middle.
    """

    def __init__(self, message: str) -> None:
        limit = 1000  # characters, a screen
        super().__init__(message if len(message) <= limit else f"{message[: limit // 2]} … {message[-limit // 3 :]}")


@dataclass(frozen=True)
class Problem:
    """A setting that cannot be used as given. Each front end words it with its own names of settings.

    Attributes:
        setting: the name of the field.
        found: its value, or the text that was typed.
        expected: what the value must be, to follow "must be"; ``{name}`` stands for the name of another setting.
    """

    setting: str
    found: Any
    expected: str

    def worded(self, name_of: Callable[[str], str] = str) -> str:
        """Return the problem as a sentence.

        Args:
            name_of: what this front end calls a setting: "top_k", "--top-k".
        """
        expected = re.sub(r"\{(\w+)\}", lambda match: name_of(match[1]), self.expected)
        return f"{name_of(self.setting)} must be {expected}, got {shortened(self.found)}"


class SettingsError(DialogueError):
    """Settings that are out of range or contradict each other.

    Attributes:
        problems: all of them.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.worded())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)

    def worded(self, name_of: Callable[[str], str] = str) -> str:
        """Return all problems as one sentence; see `Problem.worded`."""
        return "; ".join(problem.worded(name_of) for problem in self.problems)


def shortened(value: Any) -> str:
    """Return a value as text for an error: at most 80 characters of it."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # brackets nested too deeply; an integer of more than 4,300 digits
        text = f"a {type(value).__name__} too large to print"
    return text if len(text) <= 80 else f"{text[:80]}…"


def first_names(names: Sequence[str], count: int = 4) -> str:
    """Return the first of several names, and how many more there are: a wrong file would list hundreds."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return f"{', '.join(names[:count])}{more}"


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return "; did you mean ...?" where a word is a slip for one of some others, else nothing."""
    from difflib import get_close_matches

    meant = get_close_matches(word, list(words), 1)
    return f"; did you mean {meant[0]}?" if meant else ""
