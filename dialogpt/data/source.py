"""A file that is being read: its lines, whatever ends them, its encoding, and where problems go.

Line ends are LF, CRLF and CR alike. Text is UTF-8, with or without a byte-order mark, or UTF-16 with one. What the
lines mean is left to the formats.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast

from dialogpt.data.json_stream import JsonStream
from dialogpt.data.settings import Reading
from dialogpt.errors import DialogueError
from dialogpt.files.plain_file import require_plain_file

LINE_LIMIT = 4 << 20  # bytes; the longest conversation of chitchat-dataset has 60 kB
CHUNK = 1 << 18  # bytes read at a time
AT_ONCE = 64  # lines
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Source:
    """One file or folder, its settings, and who is told of problems and of progress.

    Attributes:
        path: where it is.
        reading: how it is read.
    """

    def __init__(
        self,
        path: Path,
        reading: Reading,
        on_problem: Callable[[int, str], None] = lambda line, reason: None,
        on_bytes: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Name a source; nothing is read yet.

        Args:
            path: where it is.
            reading: how it is read.
            on_problem: is told of each thing that is left out: its line and the reason.
            on_bytes: is told how many more bytes were read; may raise to stop.
        """
        self.path, self.reading = path, reading
        self.problem, self.on_bytes = on_problem, on_bytes

    def other(self, path: Path) -> Source:
        """A file that belongs to this source."""
        return Source(path, self.reading, self.problem, self.on_bytes)

    def batches(self) -> Iterator[tuple[int, list[bytes]]]:
        """The lines, without their ends, up to `AT_ONCE` of them together; with the number of the first, from 1.

        A line that is too long is a problem and is left out.
        """
        number = 1
        for block in line_blocks_of(self.path, on_bytes=self.on_bytes):
            if max(map(len, block)) > LINE_LIMIT:
                yield from self._short(block, number)
            else:
                for start in range(0, len(block), AT_ONCE):
                    yield number + start, block[start : start + AT_ONCE]
            number += len(block)

    def _short(self, block: list[bytes], first: int) -> Iterator[tuple[int, list[bytes]]]:
        for number, line in enumerate(block, first):
            if len(line) > LINE_LIMIT:
                self.problem(number, TOO_LONG)
            else:
                yield number, [line]

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """As `batches`, one line at a time."""
        for number, lines in self.batches():
            yield from enumerate(lines, number)

    def text_lines(self) -> Iterator[tuple[int, str]]:
        """The lines as text; one that is not UTF-8 is a problem and is left out."""
        for number, line in self.lines():
            if not line:
                yield number, ""
                continue
            try:
                text = decoded(line)
            except DialogueError as error:
                self.problem(number, str(error))
            else:
                yield number, text

    @contextmanager
    def json(self) -> Iterator[JsonStream]:
        """The content as a stream of JSON."""
        with opened(self.path) as file:

            def read(count: int) -> bytes:
                data = _read(file, count, self.path)
                self.on_bytes(len(data))
                return data

            yield JsonStream(read)


TOO_LONG = f"longer than {LINE_LIMIT >> 20} MiB"


def decoded(line: bytes) -> str:
    """A line as text.

    Raises:
        DialogueError: it is not UTF-8, or holds a NUL, which no text does.
    """
    if b"\0" in line:
        raise DialogueError(f"a NUL at place {line.index(0) + 1}, which no text holds")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DialogueError(f"not UTF-8 (byte 0x{line[error.start]:02x} at place {error.start + 1})") from None


def opened(path: Path) -> BinaryIO:
    """Open a file for reading; UTF-16 with a byte-order mark is turned into UTF-8 on the way.

    Raises:
        DialogueError: it cannot be opened.
    """
    try:
        require_plain_file(path)
        file: BinaryIO = path.open("rb")
        start = file.read(2)
        file.seek(0)
    except OSError as error:
        raise DialogueError(f"{path} cannot be read: {error.strerror}") from None
    if start in UTF16:
        return cast(BinaryIO, codecs.EncodedFile(file, "utf-8", "utf-16", "replace"))
    return file


def _read(file: BinaryIO, count: int, path: Path) -> bytes:
    try:
        return file.read(count)
    except OSError as error:
        raise DialogueError(f"{path} cannot be read: {error.strerror}") from None


def lines_of(
    path: Path, start: int = 0, end: int | None = None, on_bytes: Callable[[int], None] = lambda count: None
) -> Iterator[bytes]:
    """The lines that begin in a part of a file, without their ends; as `line_blocks_of`, one at a time."""
    return chain.from_iterable(line_blocks_of(path, start, end, on_bytes))


def line_blocks_of(
    path: Path, start: int = 0, end: int | None = None, on_bytes: Callable[[int], None] = lambda count: None
) -> Iterator[list[bytes]]:
    """The lines that begin in a part of a file, without their ends; some at a time, as many as were read together.

    Of a line that is longer than `LINE_LIMIT` only as much comes as shows that it is.

    Args:
        path: the file.
        start: of the part, in bytes.
        end: of the part; None is the end of the file. Of a UTF-16 file only the whole can be read.
        on_bytes: is told how many more bytes were read.

    Raises:
        DialogueError: the file cannot be read.
    """
    with opened(path) as file:
        if start:
            file.seek(start - 1)  # a line that began before belongs to the part before
        place = max(0, start - 1)  # in the file, where `rest` begins
        skipping, rest, first = start > 0, b"", start == 0
        ended = False
        while not ended:
            data = _read(file, CHUNK, path)
            on_bytes(len(data))
            ended = not data
            if first:
                first, bare = False, data.removeprefix(codecs.BOM_UTF8)  # a byte-order mark is no text
                if len(bare) < len(data) and end is not None:
                    end = max(end, len(codecs.BOM_UTF8) + 1)  # the line behind it is this part's
                place, data = len(data) - len(bare), bare
            held, rest = rest + data, b""
            if held.endswith(b"\r") and not ended:  # its LF may follow
                held, rest = held[:-1], b"\r"
            ends = held.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in held else held
            *lines, left = ends.split(b"\n")
            after = place + len(held) - len(left)  # where the line begins that is not ended yet
            if skipping and lines:
                skipping = False
                place, lines = place + len(lines[0]) + _end_length(held, len(lines[0])), lines[1:]
                held = held[len(held) - (after - place) - len(left) :]
            if end is not None and after > end:  # some of them begin in the next part
                lines = lines[: _begin_before(held, lines, end - place)]
            if lines:
                yield [line[: LINE_LIMIT + 1] for line in lines] if len(held) > LINE_LIMIT else lines
            if end is not None and after >= end:
                return
            place = after
            if len(left) > LINE_LIMIT or (ended and left):
                if not skipping:
                    yield [left[: LINE_LIMIT + 1]]
                place, left, skipping = place + len(left), b"", True  # the rest of a line that is too long
            rest = left + rest


def _end_length(held: bytes, place: int) -> int:
    return 2 if held[place : place + 2] == b"\r\n" else 1


def _begin_before(held: bytes, lines: list[bytes], end: int) -> int:
    """How many of the lines begin before a place."""
    place = 0
    for count, line in enumerate(lines):
        if place >= end:
            return count
        place += len(line)
        place += _end_length(held, place)
    return len(lines)
