"""What may be opened: a plain file, and nothing that waits for ever or never ends."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def require_plain_file(path: Path) -> None:
    """Refuse what is no plain file before it is opened: opening a pipe waits for ever, reading a device never ends.

    Raises:
        OSError: it is a pipe, a socket, a device or a folder, or not there; `strerror` is the reason.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a plain file", str(path))
