"""Dumps as blocks of whole lines: zstandard with any window, gzip or plain text, and where they end too early.

The published files were packed with a window of 2 GiB, which most readers refuse and which takes as much memory for
each open file; `window_of` says how much before it is spent.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dialogpt.errors import DialogueError, install_hint
from dialogpt.files.plain_file import require_plain_file

BLOCK = 4 << 20  # bytes of lines that are handed on together
MAX_LINE = 64 << 20  # bytes; a longer line is no comment
_READ = 1 << 18  # packed bytes; unpacked they are a few MB
MAX_WINDOW = 1 << 31
_MONTH = re.compile(r"(20\d\d)-(\d\d)")
_ZSTD, _GZIP = b"\x28\xb5\x2f\xfd", b"\x1f\x8b"


@dataclass(frozen=True)
class Block:
    """Whole lines.

    Attributes:
        data: the bytes, with line ends.
        start: where they begin in the unpacked file.
        first_line: number of the first of them, from 1.
        lines: how many there are.
        read: packed bytes of the file that were read so far.
        last: whether the file ends with it; it may be empty.
        truncated: whether the file ends too early.
    """

    data: bytes
    start: int
    first_line: int
    lines: int
    read: int
    last: bool
    truncated: bool = False


def month_of(path: Path) -> int:
    """The month in a dump's name, as 201803; 0 where there is none."""
    found = _MONTH.search(path.name)
    return int(found[1] + found[2]) if found else 0


def window_of(path: Path) -> int:
    """Bytes of memory that unpacking a file takes.

    Raises:
        DialogueError: it cannot be read.
    """
    try:
        require_plain_file(path)
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise DialogueError(f"{path} cannot be read: {error.strerror}") from None
    if head[:4] != _ZSTD:
        return 1 << 20
    zstandard = _zstandard()
    try:
        return int(zstandard.get_frame_parameters(head).window_size)
    except zstandard.ZstdError:
        return 1 << 20  # damage, which reading reports


def blocks(path: Path, checksum: Any = None, block_bytes: int = BLOCK) -> Iterator[Block]:
    """Read a dump.

    Args:
        path: .zst, .gz or plain; its first bytes decide, not its name.
        checksum: a hash that gets the packed bytes.
        block_bytes: about how many unpacked bytes a block has.

    Raises:
        DialogueError: the file cannot be read, is damaged or holds a line without end; says after which line.
    """
    rest = b""
    start, line, position = 0, 1, [0]
    chunks = _unpacked(path, checksum if checksum is not None else hashlib.sha256(), position)
    pending: list[bytes] = []
    size = 0
    truncated = False
    while True:
        try:
            chunk = next(chunks, None)
        except _TruncatedError:
            chunk, truncated = None, True
        except _DamagedError as error:
            raise DialogueError(
                f"{path} is damaged after line {line - 1 + sum(piece.count(10) for piece in pending):,} "
                f"({error}); fetch it again and repeat the command, which goes on where it stopped"
            ) from None
        if chunk:
            pending.append(chunk)
            size += len(chunk)
        if chunk is not None and size < block_bytes:
            continue
        data = rest + b"".join(pending)
        pending, size = [], 0
        end = len(data) if chunk is None and not truncated else data.rfind(b"\n") + 1
        data, rest = data[:end], data[end:]
        if len(rest) > MAX_LINE:
            raise DialogueError(
                f"{path}, line {line + data.count(10):,} is longer than {MAX_LINE >> 20} MiB; is this a dump of "
                f"comments, one JSON object a line?"
            )
        lines = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
        if data or chunk is None:
            yield Block(data, start, line, lines, position[0], chunk is None, truncated)
        start, line = start + len(data), line + lines
        if chunk is None:
            return


class _TruncatedError(Exception):
    pass


class _DamagedError(Exception):
    pass


def _unpacked(path: Path, checksum: Any, position: list[int]) -> Iterator[bytes]:
    """Unpacked bytes; `position` follows how many packed ones were read."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
            file.seek(0)
            if head[:2] == _GZIP:
                yield from _gzip(file, checksum, position)
            elif head == _ZSTD or path.suffix == ".zst":
                yield from _zstd(file, checksum, position)
            else:
                while chunk := _next(file, checksum, position, BLOCK):
                    yield chunk
    except OSError as error:
        raise _DamagedError(error.strerror or str(error)) from None


def _next(file: BinaryIO, checksum: Any, position: list[int], size: int = _READ) -> bytes:
    chunk = file.read(size)
    checksum.update(chunk)
    position[0] += len(chunk)
    return chunk


def _zstd(file: BinaryIO, checksum: Any, position: list[int]) -> Iterator[bytes]:
    zstandard = _zstandard()
    unpacker = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    frame = None
    while chunk := _next(file, checksum, position):
        while chunk:
            frame = frame or unpacker.decompressobj()
            try:
                yield frame.decompress(chunk)
            except zstandard.ZstdError as error:
                raise _DamagedError(str(error)) from None
            chunk = b""
            if frame.eof:
                chunk, frame = frame.unused_data, None
    if frame is not None:
        raise _TruncatedError


def _gzip(file: BinaryIO, checksum: Any, position: list[int]) -> Iterator[bytes]:
    member = None
    while chunk := _next(file, checksum, position):
        while chunk:
            member = member or zlib.decompressobj(wbits=31)
            try:
                yield member.decompress(chunk)
            except zlib.error as error:
                raise _DamagedError(str(error)) from None
            chunk = b""
            if member.eof:
                chunk, member = member.unused_data, None
    if member is not None:
        raise _TruncatedError


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise DialogueError(f"dumps need the package zstandard: {install_hint('reddit')}") from None
    return zstandard
