"""`dialogpt import` as a library: files of any kind become one file of JSONL, and nothing is dropped in silence.

    DATA.jsonl           a dialogue a line: {"turns", "weights", "speakers"}
    DATA.held-out.jsonl  with a split: the dialogues that are to be validated with
    DATA.problems.txt    what was left out, with file, line and reason; empty where nothing was

All of them appear when they are complete, and none where something went wrong.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from dialogpt.data.dedup import duplicates
from dialogpt.data.detect import kind_of
from dialogpt.data.dialogue import Dialogue, Problem
from dialogpt.data.fast_json import dumps
from dialogpt.data.read import read_one, share_of
from dialogpt.data.report import Statistics
from dialogpt.data.settings import Reading
from dialogpt.data.transform import Transformer
from dialogpt.errors import DialogueError
from dialogpt.files.disk import lock_output

MAX_REASONS = 100  # that are counted apart
WRITTEN_AT_ONCE = 1 << 18  # bytes
AT_ONCE = 32  # dialogues counted and written together; of 4 MiB each at most, so that memory stays flat
OnProgress = Callable[[int, int], None]  # (bytes done, bytes in all); may raise to stop


@dataclass
class Imported:
    """What an import did.

    Attributes:
        kept: statistics of what was written, the held-out dialogues among it.
        held_out: how many of them are held out.
        problems: how often each reason to leave something out occurred; numbers in it are N.
        kinds: the kind of each source.
    """

    kept: Statistics = field(default_factory=Statistics)
    held_out: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    kinds: dict[Path, str] = field(default_factory=dict)


def import_dialogues(
    sources: Sequence[Path],
    out: Path,
    reading: Reading,
    *,
    split: float = 0.0,
    dedup: str | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> Imported:
    """Read all sources and write their dialogues.

    Args:
        sources: files and folders.
        out: a new file; see this file's opening for those beside it.
        reading: how they are read.
        split: the share of dialogues that are held out, by a hash of what was said.
        dedup: a name in `DEDUP`, to leave out what was seen before.
        on_progress: is told how far it is; what it raises ends the import, and leaves nothing.

    Raises:
        DialogueError: a source cannot be used, no dialogue can, or the files cannot be written.
    """
    found = Imported()
    beside, listed = names_beside(out)
    _require_new(out, *([beside] if split else []), listed)
    kinds = [kind_of(path, reading) for path in sources]
    found.kinds = {path: kind.name for path, kind in zip(sources, kinds, strict=True)}
    seen = None if dedup is None else duplicates(dedup)
    transformer = Transformer(reading)
    total, done = sum(map(size_of, sources)), 0
    first: list[Problem] = []

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        on_progress(min(done, total), total)

    with new_files(out, listed, *([beside] if split else [])) as files:
        problems = _Problems(files[1], found.problems, first)
        for path, kind in zip(sources, kinds, strict=True):
            dialogues = read_one(path, kind, transformer, problems.note, on_bytes)
            if seen is not None:
                dialogues = _first_of_each(dialogues, seen, path, problems)
            while batch := list(islice(dialogues, AT_ONCE)):
                found.kept.add(batch)
                if split:
                    held_out = [dialogue for dialogue in batch if share_of(dialogue) < split]
                    batch = [dialogue for dialogue in batch if share_of(dialogue) >= split]
                    found.held_out += len(held_out)
                    files[2].write(lines_of(held_out))
                files[0].write(lines_of(batch))
        transformer.require_bot()
        if found.kept.dialogues == found.held_out:
            reason = f"the first problem: {first[0]}" if first else "the files are empty"
            raise DialogueError(f"no dialogue in {', '.join(map(str, sources))} can be used; {reason}")
    return found


def lines_of(dialogues: Sequence[Dialogue]) -> bytes:
    """Dialogues as lines of JSONL, which `turns` reads back."""
    return b"\n".join([*[dumps(_content(dialogue)) for dialogue in dialogues], b""])


def _content(dialogue: Dialogue) -> dict[str, Any]:
    content: dict[str, Any] = {"turns": dialogue.turns}
    if dialogue.weights is not None:
        content["weights"] = dialogue.weights
    if dialogue.speakers is not None:
        content["speakers"] = dialogue.speakers
    return content


def _first_of_each(
    dialogues: Iterator[Dialogue], seen: Callable[[Dialogue], bool], path: Path, problems: _Problems
) -> Iterator[Dialogue]:
    """Leave out duplicates, each a problem."""
    for dialogue in dialogues:
        if seen(dialogue):
            problems.note(Problem(path, dialogue.line, "a duplicate"))
        else:
            yield dialogue


def names_beside(out: Path) -> tuple[Path, Path]:
    """The files beside the output: what is held out, and the problems."""
    stem = out.name.removesuffix(".jsonl")
    return out.with_name(f"{stem}.held-out.jsonl"), out.with_name(f"{stem}.problems.txt")


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    with suppress(OSError):
        return sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
    return 0


class _Problems:
    """Writes down what is left out, and counts it by reason."""

    def __init__(self, file: BinaryIO, counts: Counter[str], first: list[Problem]) -> None:
        self.file, self.counts, self.first = file, counts, first

    def note(self, problem: Problem) -> None:
        """Take a problem."""
        if not self.first:
            self.first.append(problem)
        self.file.write(f"{problem}\n".encode(errors="backslashreplace"))
        reason = general(problem.reason)
        self.counts[reason if reason in self.counts or len(self.counts) < MAX_REASONS else "other reasons"] += 1


def general(reason: str) -> str:
    """A reason without what differs from line to line."""
    reason = re.sub(r"'(?:[^'\\]|\\.)*'|\(.*\)$", "...", reason)
    return re.sub(r"0x[0-9a-f]{2}|\d[\d,.]*", "N", reason)


def _require_new(*paths: Path) -> None:
    there = [str(path) for path in paths if path.exists()]
    if there:
        verb = "exist" if len(there) > 1 else "exists"
        raise DialogueError(f"{', '.join(there)} {verb} already; name another file, or remove it first")


@contextmanager
def new_files(*paths: Path) -> Iterator[list[BinaryIO]]:
    """Files that take their names when all of them are complete, and are gone where something went wrong.

    Raises:
        DialogueError: one exists, cannot be written, or the first is being written by another process.
    """
    try:
        release = lock_output(paths[0])
    except OSError as error:
        raise DialogueError(str(error)) from None
    temporary = [path.with_name(f".{path.name}.partial-{os.getpid()}") for path in paths]
    files: list[BinaryIO] = []
    try:
        _require_new(*paths)
        try:
            files += [path.open("xb", buffering=WRITTEN_AT_ONCE) for path in temporary]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
                file.close()
            _require_new(*paths)
            for path, final in reversed([*zip(temporary, paths, strict=True)]):  # the data last
                path.replace(final)
        except OSError as error:
            raise DialogueError(f"{paths[0]} cannot be written: {error.strerror or error}") from None
    finally:
        for file in files:
            with suppress(OSError):  # what is buffered finds no room on a full disk
                file.close()
        for path in temporary:
            path.unlink(missing_ok=True)
        release()
