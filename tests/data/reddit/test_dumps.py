"""Dumps: what they are packed with, and where they end too early."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from dialogpt.data.reddit.dumps import MAX_WINDOW, blocks, month_of, window_of
from dialogpt.errors import DialogueError

LINES = b"".join(b'{"n": %d}\n' % n for n in range(5000))


def packed(data: bytes, kind: str) -> bytes:
    if kind == "zst":
        return zstandard.ZstdCompressor().compress(data[:99]) + zstandard.ZstdCompressor().compress(data[99:])
    return gzip.compress(data[:99]) + gzip.compress(data[99:]) if kind == "gz" else data


def widest_frame(data: bytes) -> bytes:
    """A frame of one raw block whose header asks for a window of 2 GiB, as those of the published dumps do."""
    window_descriptor = bytes([(31 - 10) << 3])
    header = ((len(data) << 3) | 1).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd\x00" + window_descriptor + header + data


@pytest.mark.parametrize("kind", ["zst", "gz", "plain"])
@pytest.mark.parametrize("size", [100, 7000, 1 << 20])
def test_blocks_are_whole_lines(tmp_path: Path, kind: str, size: int) -> None:
    path = tmp_path / "RC_2018-03"
    path.write_bytes(packed(LINES, kind))
    checksum = hashlib.sha256()
    found = list(blocks(path, checksum, size))
    assert b"".join(block.data for block in found) == LINES
    start, line = 0, 1
    for block in found:
        assert (block.start, block.first_line) == (start, line)
        assert block.data.endswith(b"\n") or not block.data
        start, line = start + len(block.data), line + block.lines
    assert line == 5001
    assert [block.last for block in found] == [False] * (len(found) - 1) + [True]
    assert not found[-1].truncated
    assert found[-1].read == path.stat().st_size
    assert checksum.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()


@given(
    st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=20),
    st.booleans(),
    st.integers(1, 40),
)
def test_any_lines(lines: list[bytes], ended: bool, size: int) -> None:
    """The last line may lack its end."""
    path = Path("/tmp") / f"dialogpt-lines-{hashlib.sha1(repr((lines, ended)).encode()).hexdigest()}"
    data = b"\n".join(lines) + b"\n" * ended
    path.write_bytes(data)
    try:
        if data[:2] == b"\x1f\x8b" or data[:4] == b"\x28\xb5\x2f\xfd":
            return
        found = list(blocks(path, None, size))
        assert b"".join(block.data for block in found) == data
        assert sum(block.lines for block in found) == data.count(b"\n") + (bool(data) and not data.endswith(b"\n"))
    finally:
        path.unlink()


def test_a_window_of_2_gib_is_read_and_its_memory_known_before(tmp_path: Path) -> None:
    """ClickHouse, arctic_shift's users and others met files that their readers refused."""
    path = tmp_path / "RC_2018-03.zst"
    path.write_bytes(widest_frame(b'{"body": "x"}\n'))
    assert window_of(path) == MAX_WINDOW
    assert [block.data for block in blocks(path)] == [b'{"body": "x"}\n']


@pytest.mark.parametrize("kind", ["zst", "gz"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.9999])
def test_a_truncated_file_gives_its_whole_lines_and_says_so(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / "dump"
    data = packed(LINES * 40, kind)
    path.write_bytes(data[: int(len(data) * share)])
    found = list(blocks(path, None, 10_000))
    assert found[-1].truncated
    got = b"".join(block.data for block in found)
    assert (LINES * 40).startswith(got)
    assert got.endswith(b"\n") or not got


@pytest.mark.parametrize("kind", ["zst", "gz"])
def test_damage_names_the_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "dump"
    pack = zstandard.ZstdCompressor().compress if kind == "zst" else gzip.compress
    path.write_bytes(pack(LINES) + pack(LINES)[:6] + b"\xff" * 300)
    with pytest.raises(DialogueError, match=r"dump is damaged after line \d,?\d* .*fetch it again"):
        list(blocks(path, None, 10_000))


def test_a_line_without_end_is_no_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dialogpt.data.reddit.dumps.MAX_LINE", 100_000)
    path = tmp_path / "dump.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(b"ok\n" + b"x" * 1_000_000))
    with pytest.raises(DialogueError, match="dump.zst, line 2 is longer than 0 MiB; is this a dump of comments"):
        list(blocks(path, None, 10_000))


def test_names_have_months(tmp_path: Path) -> None:
    assert month_of(tmp_path / "RC_2018-03.zst") == 201803
    assert month_of(tmp_path / "AskReddit_comments.zst") == 0
