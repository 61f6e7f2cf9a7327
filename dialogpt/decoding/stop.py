"""How a caller cancels decoding; with `stop_strings` and the finish reason "stop" a reply ends by itself."""

from __future__ import annotations

from collections.abc import Callable

# Whether the caller cancels. A stream asks after every token but an end token, so that Ctrl-C during a step keeps back
# the token that it generates; whole replies, of which nothing is shown yet, ask before every step.
Stop = Callable[[], bool]


class Stopped(Exception):
    """The caller cancelled decoding."""
