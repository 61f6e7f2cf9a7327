"""One conversation and several threads: whole replies wait for each other, all else is refused with a sentence."""

from __future__ import annotations

import threading
from collections.abc import Generator
from types import TracebackType
from typing import NoReturn

from dialogpt.errors import DialogueError

BUSY = "this Chat is answering in another thread; give each thread a Chat of its own, as they can share one network"


class OneCaller:
    """The lock of a conversation; `with` waits for it, and one thread may enter it again."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def close(self, stream: Generator[str, None, None] | None) -> None:
        """Close the stream of an abandoned reply.

        Raises:
            DialogueError: another thread is generating.
        """
        if not self._lock.acquire(blocking=False):
            raise DialogueError(BUSY)
        try:
            if stream is not None:
                stream.close()
        except ValueError:  # it is executing
            raise DialogueError(BUSY) from None
        finally:
            self._lock.release()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Chat holds a network and cannot be pickled; keep its history.turns, and restore() them")
