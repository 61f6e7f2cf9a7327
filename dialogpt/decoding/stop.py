"""How a caller cancels decoding."""

from __future__ import annotations

from collections.abc import Callable

# Whether the caller cancels. A stream asks after every token, so that what is kept is what was shown; whole replies ask
# before every step.
Stop = Callable[[], bool]


class Stopped(Exception):
    """The caller cancelled decoding."""
