"""What a format has to say of itself: its name, how to tell it by looking, how to read it.

A format is a `Kind`; `KINDS` in this package's `__init__` lists them all. Which kind a file has is decided in
`dialogpt.data.detect`, from a `Head`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dialogpt.data.dialogue import Dialogue
from dialogpt.data.settings import Reading
from dialogpt.data.source import Source
from dialogpt.errors import DialogueError

Parse = Callable[[bytes, Reading], Dialogue]  # a line alone to a dialogue; raises DialogueError, the reason
ParseAll = Callable[[list[bytes], Reading], list[Dialogue] | None]  # None: one of them needs a closer look
Read = Callable[[Source], Iterator[list[Dialogue]]]


@dataclass(frozen=True)
class Head:
    """The beginning of a file, or what a folder holds.

    Attributes:
        path: where it is.
        lines: the first lines that are not blank, whole.
        keys: of JSON: the keys of the first objects, those of the outermost under 1, of objects in them under 2, ...
        blank_between: whether a blank line stands between two others.
        names: of a folder, the names in it.
        magic: the first bytes.
    """

    path: Path
    lines: list[str] = field(default_factory=list)
    keys: dict[int, set[str]] = field(default_factory=dict)
    blank_between: bool = False
    names: frozenset[str] = frozenset()
    magic: bytes = b""

    def has(self, depth: int, *names: str) -> bool:
        """Whether all these keys are there at a depth."""
        return set(names) <= self.keys.get(depth, set())

    def has_any(self, depth: int, *names: str) -> bool:
        """Whether one of these keys is there at a depth."""
        return not self.keys.get(depth, set()).isdisjoint(names)


@dataclass(frozen=True)
class Kind:
    """A format.

    Attributes:
        name: what `--from` takes.
        what: what it is, for people, in a few words.
        fits: whether a file looks like it.
        read: all dialogues of a source, those together between which nothing is left out; what is goes to
            `source.problem`.
        parse: where every line is a dialogue: a line alone, so that several processes can share a file.
        weak: whether nearly any text looks like it, so that it counts only where no other kind fits.
    """

    name: str
    what: str
    fits: Callable[[Head], bool]
    read: Read
    parse: Parse | None = None
    weak: bool = False


def line_reader(parse: Parse, parse_all: ParseAll | None = None) -> Read:
    """A reader of files whose every line is a dialogue; blank lines are none.

    Args:
        parse: takes a line.
        parse_all: takes many lines, to the same end in less time. Where it gives None, each of them goes through
            `parse`, so that problems are told in the order of the file.
    """

    def read(source: Source) -> Iterator[list[Dialogue]]:
        for first, lines in source.batches():
            dialogues = parse_all(lines, source.reading) if parse_all is not None else None
            if dialogues is None:
                yield from one_by_one(first, lines, source)
                continue
            for number, dialogue in enumerate(dialogues, first):
                dialogue.line = number
            yield dialogues

    def one_by_one(first: int, lines: list[bytes], source: Source) -> Iterator[list[Dialogue]]:
        for number, line in enumerate(lines, first):
            if not line:
                continue
            try:
                dialogue = parse(line, source.reading)
            except DialogueError as error:
                source.problem(number, str(error))
                continue
            dialogue.line = number
            yield [dialogue]

    return read


def each(read: Callable[[Source], Iterator[Dialogue]]) -> Read:
    """A reader that gives one dialogue at a time."""
    return lambda source: ([dialogue] for dialogue in read(source))


def told(source: Source, dialogues: Iterator[Dialogue]) -> Iterator[Dialogue]:
    """What was read up to a damage that nothing can be read behind, which becomes a problem.

    Raises:
        DialogueError: the file cannot be opened.
    """
    begun = False
    try:
        for dialogue in dialogues:
            begun = True
            yield dialogue
    except DialogueError as error:
        if not begun:
            named = str(error).startswith(str(source.path))
            raise DialogueError(str(error) if named else f"{source.path}, {error}") from None
        source.problem(0, f"{error}; what comes behind it is not read")
