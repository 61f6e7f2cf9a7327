"""The installed command, and `python -m dialogpt`, where that is not on the path: `dialogpt.cli.main` as a process."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn


def console() -> NoReturn:
    """Run one command, and end the process.

    Ctrl-C ends it from here on, before the command line is imported. Python's own way out takes torch apart module by
    module, half a second in which a Ctrl-C makes noise. Nothing is left to do there: what was printed is flushed, and
    files are closed by those who opened them.
    """
    # The status is `dialogpt.errors.INTERRUPTED`, whose import takes a tenth of a second with those below it.
    signal.signal(signal.SIGINT, lambda number, _frame: os._exit(128 + number))
    from dialogpt.cli.main import main

    status = main()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    console()
