"""Standard input, as bytes: a dialogue in JSON, lines that a command reads itself, or a copy where a file is needed."""

from __future__ import annotations

import codecs
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dialogpt.cli.signals import interrupts_raised
from dialogpt.errors import DialogueError
from dialogpt.files import json_input

CHUNK = 1 << 20  # bytes copied at a time


def stdin_bytes() -> BinaryIO:
    """Standard input, as it comes."""
    if sys.stdin is None:
        raise DialogueError("standard input is closed; there is nothing to read")
    return sys.stdin.buffer


def turns_from(data: bytes) -> list[str]:
    """The turns of a dialogue in JSON."""
    try:
        content = json_input.parse(data.removeprefix(codecs.BOM_UTF8).decode())
    except ValueError as error:
        raise DialogueError(
            f'standard input is not valid JSON in UTF-8 ({error}); expected {{"turns": [...]}}'
        ) from None
    turns = content.get("turns") if isinstance(content, dict) else None
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
        raise DialogueError('standard input holds no turns; expected {"turns": ["what was said", ...]}')
    return turns


class StandardInputFile(type(Path())):  # type: ignore[misc]  # before Python 3.12 only the system's own class has subclasses
    """The path of a copy of standard input, which errors and reports call by what it is a copy of."""

    def __fspath__(self) -> str:
        return str(super().__str__())

    def __str__(self) -> str:
        return "standard input"


@contextmanager
def copied_stdin(limit: int | None = None, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[Path]:
    """Copy standard input into a temporary file: most kinds are looked at first, and some are read twice.

    Args:
        limit: bytes after which no more is read; None reads to the end.
        on_bytes: is told how many were read so far.

    Yields:
        The file, which is removed at the end.

    Raises:
        DialogueError: standard input is closed, or there is no room for the copy.
    """
    source = stdin_bytes()
    with tempfile.TemporaryDirectory(prefix="dialogpt-") as folder, interrupts_raised():
        path = StandardInputFile(folder, "standard-input")
        done = 0
        try:
            with path.open("wb") as file:
                while (limit is None or done < limit) and (data := source.read(CHUNK)):
                    file.write(data)
                    done += len(data)
                    on_bytes(done)
        except OSError as error:
            raise DialogueError(
                f"standard input cannot be copied to {folder}: {error.strerror}; set TMPDIR to a folder with more room"
            ) from None
        yield path
