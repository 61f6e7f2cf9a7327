"""Lines of files: whatever ends them, however the file is divided, and however long they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialogpt.data import source
from dialogpt.data.source import lines_of

BOM = b"\xef\xbb\xbf"
contents = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r", b"\r\n"]), max_size=24).map(b"".join)


def split(content: bytes) -> list[bytes]:
    """The slow, obvious way."""
    *lines, last = re.split(rb"\r\n|\r|\n", content)
    return [*lines, last] if last else lines


@given(contents, st.booleans(), st.integers(3, 9), st.integers(1, 9), st.sampled_from([3, 1 << 20]))
def test_parts_hold_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, mark: bool, chunk: int, block: int, limit: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "file"
    path.write_bytes(BOM * mark + content)
    size = path.stat().st_size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "CHUNK", chunk)
        patch.setattr(source, "LINE_LIMIT", limit)
        expected = [line[: limit + 1] for line in split(content)]
        assert list(lines_of(path)) == expected
        parts = [(start, min(start + block, size)) for start in range(0, size, block)]
        assert [line for start, end in parts for line in lines_of(path, start, end)] == expected


def test_utf16_with_a_mark_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_bytes("ab\r\nü€🙂".encode("utf-16"))
    for chunk in (1, 2, 3, 100):
        monkeypatch.setattr(source, "CHUNK", chunk)
        assert [line.decode() for line in lines_of(tmp_path / "a.txt")] == ["ab", "ü€🙂"]
