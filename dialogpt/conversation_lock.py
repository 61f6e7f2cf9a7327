"""One conversation and several threads: whole replies wait for each other; whatever else meets a reply is refused."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Generator
from types import TracebackType

from dialogpt.errors import DialogueError

BUSY = "this Chat is answering in another thread; give each thread a Chat of its own, as they can share one network"
GENERATING = (
    "this Chat is generating, and a callback cannot change it; return true from `stop`, and go on after the stream"
)


class ConversationLock:
    """Keeps other threads away from a conversation that is answering.

    A whole reply holds the lock (`with chat.lock`): replies of other threads wait, and their other calls are refused.
    A stream holds no lock, as it may be abandoned, or read on by another thread. Its reader is recorded, the thread
    that asked for the latest text: while that one lives, no other may close the stream to change the conversation.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._reader = threading.current_thread()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def record_reader(self) -> None:
        """Record this thread as the stream's reader; called for every text, as another thread may ask for the next."""
        self._reader = threading.current_thread()

    def close(self, stream: Generator[str, None, None] | None) -> None:
        """Close the stream of an abandoned reply.

        Raises:
            DialogueError: another thread is generating, or has not read its stream to the end; or this one is, and
                calls from within.
        """
        if not self._lock.acquire(blocking=False):
            raise DialogueError(BUSY)
        try:
            if stream is None or inspect.getgeneratorstate(stream) == inspect.GEN_CLOSED:
                return
            mine = self._reader is threading.current_thread()
            if not mine and self._reader.is_alive():
                raise DialogueError(BUSY)
            try:
                stream.close()
            except ValueError:  # Python's: it is running, for a callback, or in a thread that has just begun to read it
                raise DialogueError(GENERATING if mine else BUSY) from None
        finally:
            self._lock.release()
