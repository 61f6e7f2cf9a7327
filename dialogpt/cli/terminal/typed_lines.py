"""The file of typed lines that the arrow keys bring back in the next talk, readable by its owner only.

Remembering is a comfort: what goes wrong with it is a notice, and the talk goes on.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dialogpt.cli.printable import printable
from dialogpt.cli.terminal.conversations import state_folder
from dialogpt.files.disk import lock, reason_of, write_atomically
from dialogpt.files.plain_file import require_plain_file

HISTORY_LINES = 1000
LOCK_SECONDS = 10.0  # how long a talk that ends waits for another that writes its lines
LIBEDIT_HEADER = "_HiStOrY_V2_"  # the first line of a history file that libedit wrote
_ESCAPED = re.compile(r"\\([0-7]{3})")  # how libedit writes a space: \040


def typed_lines_file() -> Path | None:
    """Where typed lines are remembered, readable by their owner only; None where that cannot be."""
    with unremembered_on_error():
        path = state_folder() / "history"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        return path
    return None


def read_lines(path: Path) -> list[str]:
    """The lines of a history file, whichever library wrote it.

    Neither GNU's nor libedit's readline reads the other's file, and libedit refuses an empty one; so neither is asked.
    """
    require_plain_file(path)
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")  # a line may hold what else ends lines
    if lines[:1] == [LIBEDIT_HEADER]:
        lines = [_ESCAPED.sub(lambda code: chr(int(code[1], 8)), line) for line in lines[1:]]
    return list(filter(_is_kept, lines))[-HISTORY_LINES:]


def add_lines(path: Path, typed: list[str]) -> None:
    """Add typed lines to a history file, to which another talk may have added some, or may be about to."""
    path = Path(os.path.realpath(path))  # a link to it stays one
    release = lock(path.with_name(".history.lock"), seconds=LOCK_SECONDS)
    try:
        lines = [*read_lines(path), *filter(_is_kept, typed)]
        write_atomically(path, "".join(f"{line}\n" for line in lines[-HISTORY_LINES:]), mode=0o600)
    finally:
        release()


def _is_kept(line: str) -> bool:
    """Whether a line can be kept and shown again: it is not empty, one line, and steers no terminal."""
    return bool(line) and "\n" not in line and printable(line) == line


@contextmanager
def unremembered_on_error() -> Iterator[None]:
    """Remembering lines is a comfort: what goes wrong with it is a notice, and the talk goes on."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: a home folder that is not known
        logging.getLogger(__name__).warning("typed lines are not remembered in a file: %s", reason_of(error))
