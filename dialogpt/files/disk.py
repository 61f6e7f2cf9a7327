"""Files on every system: durable writes, small files that are replaced in one step, and locks.

On Windows a folder cannot be opened, a handle for reading cannot be synchronised, and a file that somebody has open or
mapped can be neither replaced nor removed. What follows from that is written here, once.
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

RETRY_SECONDS = 2.0  # how long a file is waited for that another program has open on Windows
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EROFS)
LINK_LIMIT = 255  # bytes of a file that names a neighbouring folder; no name is longer


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk.

    Raises:
        OSError: it cannot be written, for example as the disk is full.
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


def write_atomically(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Write a small file so that at any instant, also after a power cut, the old content or the new one is there.

    Args:
        path: the file; only one process at a time may write it.
        content: text is written as UTF-8, its line ends as they are.
        mode: its permissions, from which the umask is taken.

    Raises:
        OSError: it cannot be written, is no plain file, or another program keeps it open on Windows; the old content
            is left. Its `filename` is that of the file.
    """
    require_replaceable(path)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.unlink(missing_ok=True)  # left by a kill, perhaps with other permissions
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        sync(temporary)
        _replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        error.filename = os.fspath(path)
        raise


def require_replaceable(path: Path) -> None:
    """Refuse a name whose file would not be replaced but destroyed: a device, a pipe or a socket.

    Raises:
        OSError: it is one; `strerror` is the reason.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is no plain file; name another one", str(path))


def _replace(source: Path, path: Path) -> None:
    """Replace a file; on Windows, once the program that reads it has closed it."""
    end = time.monotonic() + RETRY_SECONDS
    while True:
        try:
            source.replace(path)
        except PermissionError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return


def reason_of(error: Exception) -> str:
    """Why a file cannot be written or removed, in the system's words; if another program uses it, what helps."""
    reason = str(getattr(error, "strerror", None) or error)
    if getattr(error, "winerror", None) in (5, 32, 33, 1224):  # access denied, sharing, locked, mapped
        reason += "; if another program, such as a chat, is using it, end that and try again"
    return reason


def lock_output(path: Path) -> Callable[[], None]:
    """Keep others from a file or folder while it is written, by a lock file beside it; returns what releases it.

    Raises:
        BlockingIOError: another process is writing it; the message is a sentence.
        OSError: see `lock`.
    """
    where = Path(os.path.realpath(path))  # two names of one file are one lock
    try:
        return lock(where.with_name(f".{where.name}.lock"))
    except BlockingIOError:
        raise BlockingIOError(f"{path} is being written by another run; wait for its end, or name another") from None


def lock(path: Path, *, seconds: float = 0) -> Callable[[], None]:
    """Take a lock file, which a process that dies lets go of, whatever killed it.

    Args:
        path: the lock file. It is created, and removed when the lock is released; with `seconds` it is kept, as others
            that wait may have it open.
        seconds: how long to wait while another process holds it; `math.inf` waits until it is released.

    Returns:
        A function that releases it. It does nothing where the file system has no locks, or the folder is read-only.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be created or locked for another reason; the message is a sentence.
    """
    from filelock import FileLock, Timeout  # torch depends on it

    if not os.access(path.parent, os.W_OK):
        return lambda: None
    held = FileLock(path)
    try:
        held.acquire(timeout=-1 if seconds == math.inf else seconds)
    except Timeout:
        raise BlockingIOError(f"{path} is held by another process") from None
    except NotImplementedError:
        return lambda: None
    except OSError as error:
        if error.errno in WITHOUT_LOCKS:
            return lambda: None
        raise OSError(f"{path} cannot be locked: {reason_of(error)}; remove it if it is no lock file") from None
    if seconds:
        return held.release

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
