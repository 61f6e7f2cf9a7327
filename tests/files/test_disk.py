"""What differs between systems about files: durable writes, files that are replaced in one step, locks."""

from __future__ import annotations

import errno
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dialogpt.files.disk import lock, reason_of, sync, write_atomically
from tests.helpers import WAIT_SECONDS, environment, needs_links, needs_posix


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


@needs_posix
@needs_posix
def test_a_device_or_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    """`explain --out /dev/full`, as root, made a plain file of the device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path / "link"):
        if path != pipe:
            path.symlink_to(os.devnull)
        with pytest.raises(OSError, match="no plain file; name another one") as problem:
            write_atomically(path, "x")
        assert problem.value.filename == str(path)
        assert path.exists()
        assert not path.is_file()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link", "pipe"]


def test_a_small_file_may_be_its_owners_alone(tmp_path: Path) -> None:
    (tmp_path / ".last.partial").touch(mode=0o644)  # left by a kill
    write_atomically(tmp_path / "last", "one\n", mode=0o600)
    assert (tmp_path / "last").stat().st_mode & 0o777 == 0o600


def test_a_small_file_that_is_being_read_is_replaced_a_moment_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, refusals = Path.replace, [PermissionError(errno.EACCES, "Access is denied") for _ in range(3)]

    def replace(self: Path, target: Path) -> Path:
        if refusals:
            raise refusals.pop()
        return honest(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    write_atomically(tmp_path / "last", "one\n")
    assert (tmp_path / "last").read_text() == "one\n"


PROGRAM = """
import sys
from pathlib import Path
from dialogpt.files.disk import lock
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


@pytest.mark.parametrize("code", ["ENOSYS", "ENOTSUP", "ENOLCK", "EROFS", ""])
def test_a_file_system_without_locks_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(getattr(errno, code), "refused") if code else NotImplementedError

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    lock(tmp_path / ".lock")()


@pytest.mark.parametrize("code", ["EMFILE", "ENOSPC", "EACCES"])
def test_a_lock_that_cannot_be_taken_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Every error passed for a file system without locks, and two processes wrote into one folder."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(getattr(errno, code), "refused")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(OSError, match=r"\.lock cannot be locked: refused; remove it if it is no lock file"):
        lock(tmp_path / ".lock")


@needs_links
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_what_is_no_lock_file_is_a_sentence_and_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ".lock"
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("elsewhere")
    with pytest.raises(OSError, match=r"\.lock cannot be locked: .*; remove it if it is no lock file"):
        lock(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [".lock"]


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    order: list[str] = []
    release = lock(path, seconds=math.inf)

    def wait() -> None:
        second = lock(path, seconds=math.inf)
        order.append("second")
        second()

    other = threading.Thread(target=wait, daemon=True)
    other.start()
    time.sleep(0.2)
    with pytest.raises(BlockingIOError):
        lock(path, seconds=0.1)
    order.append("first")
    release()
    other.join(WAIT_SECONDS)
    assert order == ["first", "second"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """`explain --out` named a hidden file that nobody had asked for."""
    with pytest.raises(OSError, match="No such file|cannot find") as error:
        write_atomically(tmp_path / "gone" / "page.html", "x")
    assert error.value.filename == str(tmp_path / "gone" / "page.html")
