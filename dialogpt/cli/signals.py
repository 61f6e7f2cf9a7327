"""Ctrl-C: when it may end the process at once, and when it must wait until nothing is half done.

A KeyboardInterrupt can surface anywhere, also inside a library's callback, which may make another error of it or print
a traceback. So where nothing can be lost, the process ends at once instead; where something runs, a flag is set that is
read where stopping is safe; and KeyboardInterrupt is raised where a person is waited for. A chat nests the three: it
ends at once while a model is loaded, flags during a reply, and raises in all the rest of a talk.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

from dialogpt.errors import INTERRUPTED

Handler = Callable[[int, FrameType | None], None]


def interrupts_exiting(number: int = signal.SIGINT, status: int = INTERRUPTED) -> AbstractContextManager[None]:
    """Let Ctrl-C end the process: for importing, loading, and replies to a pipe, which are flushed line by line.

    Args:
        number: the signal; SIGINT is Ctrl-C.
        status: what the process leaves with.
    """
    return _handling(lambda _signal, _frame: os._exit(status), number)


def interrupts_raised() -> AbstractContextManager[None]:
    """Let Ctrl-C raise KeyboardInterrupt, as Python does by itself: for a prompt that waits for a line."""
    return _handling(signal.default_int_handler)


@contextmanager
def interrupts_flagged() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag, and a second one, for what takes too long, into KeyboardInterrupt.

    Yields:
        A function that says whether Ctrl-C was pressed.
    """
    pressed = False

    def note(_signal: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    with _handling(note):
        yield lambda: pressed


@contextmanager
def _handling(handler: Handler, number: int = signal.SIGINT) -> Iterator[None]:
    """Handle a signal in this way for a while; outside the main thread, which alone gets it, nothing is changed."""
    try:
        before = signal.signal(number, handler)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(number, before)
