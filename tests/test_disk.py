"""What differs between systems about files: durable writes, files that are replaced in one step, locks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dialogpt.weights.disk import lock, reason_of, sync, write_atomically
from tests.helpers import environment


def test_what_is_synchronised_can_be_on_every_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows synchronises no handle for reading and opens no folder: convert and train could not write there."""
    synchronised, honest = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synchronised.append(handle), honest(handle)))
    path = tmp_path / "file"
    path.write_bytes(b"content")
    before = path.stat().st_mtime_ns
    sync(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns, len(synchronised)) == (b"content", before, 1)
    sync(tmp_path)

    def refuse(path: Path, *_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    sync(tmp_path)


def test_a_small_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last"
    for text in ("one\n", "two\n"):
        write_atomically(path, text)
        assert path.read_bytes() == text.encode()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "three\n")
    assert path.read_text() == "two\n"


PROGRAM = """
import sys
from pathlib import Path
from dialogpt.weights.disk import lock
try:
    release = lock(Path(sys.argv[1]))
except BlockingIOError:
    print("held", flush=True)
else:
    print("taken", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_one_process_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    command = [sys.executable, "-c", PROGRAM, str(path)]
    release = lock(path)
    with pytest.raises(BlockingIOError):
        lock(path)
    assert subprocess.run(command, env=environment(), capture_output=True, text=True).stdout == "held\n"
    release()
    assert not path.exists()
    with subprocess.Popen(command, env=environment(), stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "taken\n"
        with pytest.raises(BlockingIOError):
            lock(path)
        other.kill()
    lock(path)()  # what was killed holds nothing
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_another_program_has_is_a_sentence_with_advice() -> None:
    error = PermissionError(errno.EACCES, "Access is denied")
    assert reason_of(error) == "Access is denied"
    error.winerror = 1224  # type: ignore[attr-defined]  # mapped
    assert reason_of(error) == (
        "Access is denied; if another program, such as a chat, is using it, end that and try again"
    )
