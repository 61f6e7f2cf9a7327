"""Files on every system: durable writes, small files that are replaced in one step, and locks.

On Windows a folder cannot be opened, a handle for reading cannot be synchronised, and a file that somebody has open or
mapped can be neither replaced nor removed. What follows from that is written here, once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

LINK_LIMIT = 255  # bytes of a file that names a folder beside it; no name is longer


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk.

    Raises:
        OSError: the disk is full, say.
    """
    if not path.is_dir():
        with path.open("r+b") as file:  # Windows refuses to synchronise a handle for reading (EBADF)
            os.fsync(file.fileno())
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders; NTFS writes its names to a journal
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that at any instant, also after a power cut, the old content or the new one is there.

    Raises:
        OSError: it cannot be written, or another program has it open on Windows; the old content is left.
    """
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def reason_of(error: Exception) -> str:
    """Why a file cannot be written or removed, as the system says it; where another program has it, what helps."""
    reason = str(getattr(error, "strerror", None) or error)
    if getattr(error, "winerror", None) in (5, 32, 33, 1224):  # access denied, sharing, locked, mapped
        reason += "; if another program, such as a chat, is using it, end that and try again"
    return reason


def lock(path: Path) -> Callable[[], None]:
    """Take a lock file, which a process that dies lets go of, whatever killed it.

    Args:
        path: the lock file; it is made, and removed when the lock is let go of.

    Returns:
        A function that lets go of it. It does nothing where the file system has no locks, or the folder is read-only.

    Raises:
        BlockingIOError: another process holds it.
    """
    from filelock import FileLock, Timeout  # torch depends on it

    if not os.access(path.parent, os.W_OK):
        return lambda: None
    held = FileLock(path)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(f"{path} is held by another process") from None
    except (OSError, NotImplementedError):
        return lambda: None

    def release() -> None:
        try:
            path.unlink()  # before: after it, it may be another's
        except OSError:  # on Windows it cannot be removed while it is open
            held.release()
            with suppress(OSError):  # filelock has done so, or another holds it
                path.unlink()
        else:
            held.release()

    return release
