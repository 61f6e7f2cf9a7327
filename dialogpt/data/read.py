"""Read dialogues: from files of any kind, by one function for `import`, `train`, `evaluate`, `reply` and Python."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from dialogpt.data.detect import kind_of
from dialogpt.data.dialogue import Dialogue, Problem
from dialogpt.data.formats import Kind
from dialogpt.data.settings import Reading
from dialogpt.data.source import Source
from dialogpt.data.transform import Transformer
from dialogpt.errors import DialogueError

HOPELESS = 10_000  # problems of a file without any dialogue: it is something else
OnProblem = Callable[[Problem], None]
OnBytes = Callable[[int], None]


def read(
    sources: str | Path | Iterable[str | Path],
    reading: Reading | None = None,
    *,
    on_problem: OnProblem = lambda problem: None,
    on_bytes: OnBytes = lambda count: None,
) -> Iterator[Dialogue]:
    """All dialogues of some files, one at a time; files of any size take little memory.

    Example:
        >>> for dialogue in read("chat.txt", Reading(bot="Anna")):
        ...     print(dialogue.turns)

    Args:
        sources: a file or folder, or several.
        reading: how they are read; by default each file's kind is told by looking at it.
        on_problem: is told of everything that is left out.
        on_bytes: is told how many more bytes were read; may raise to stop.

    Raises:
        DialogueError: a file cannot be read, or its kind is not known.
    """
    reading = reading or Reading()
    transformer = Transformer(reading)
    for path in [sources] if isinstance(sources, (str, Path)) else sources:
        yield from read_one(Path(path), kind_of(Path(path), reading), transformer, on_problem, on_bytes)
    transformer.require_bot()


def read_one(
    path: Path,
    kind: Kind,
    transformer: Transformer,
    on_problem: OnProblem = lambda problem: None,
    on_bytes: OnBytes = lambda count: None,
) -> Iterator[Dialogue]:
    """The dialogues of one file of a known kind; see `read`."""
    return chain.from_iterable(_together(path, kind, transformer, on_problem, on_bytes))


def _together(
    path: Path, kind: Kind, transformer: Transformer, on_problem: OnProblem, on_bytes: OnBytes
) -> Iterator[list[Dialogue]]:
    """The same, those together between which nothing is left out."""
    line = problems = kept = 0

    def note(line: int, reason: str) -> None:
        nonlocal problems
        problems += 1
        on_problem(Problem(path, line, reason))
        if not kept and problems >= HOPELESS:
            raise DialogueError(
                f"{path}: {problems:,} problems and no dialogue, as if it were not {kind.name}: {reason}"
            )

    def left_out(reason: str) -> None:
        note(line, reason)

    for dialogues in kind.read(Source(path, transformer.reading, note, on_bytes)):
        if len(dialogues) > 1 and transformer.keeps(dialogues):
            kept += len(dialogues)
            yield dialogues
            continue
        for dialogue in dialogues:
            line = dialogue.line
            for piece in transformer.apply(dialogue, left_out):
                kept += 1
                yield [piece]
    if not (kept or problems) and (path.is_dir() or path.stat().st_size):
        note(0, f"it holds no dialogue; it was read as {kind.name}")


def share_of(dialogue: Dialogue) -> float:
    """A number from 0 below 1 that follows from what was said alone, so that data added later changes no split."""
    return int.from_bytes(digest(dialogue)[:6], "big") / (1 << 48)


def digest(dialogue: Dialogue) -> bytes:
    """A short name of what was said: 16 bytes, equal for equal turns only."""
    joined = "\0".join(dialogue.turns)
    return hashlib.blake2b(joined.encode(errors="surrogatepass"), digest_size=16).digest()
