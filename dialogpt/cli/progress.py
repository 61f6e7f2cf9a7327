"""Progress on stderr: one line with the time that is left, which is replaced in a terminal; in a pipe there is none.

Runs of hours, whose stderr is often a log file, ask for a line there now and then (`log_seconds`).
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from dialogpt.cli.printable import one_line, printable

IN_TERMINAL, IN_LOG = 0.2, 30.0  # seconds between lines: where one replaces the other, and in a log of a long run
MEGABYTES = "MB"  # the unit of what is counted in bytes


class ProgressLine:
    """How far a piece of work is.

    The first line comes a moment after the start, so that what is done at once shows none.
    """

    def __init__(self, log_seconds: float | None = None) -> None:
        """Begin without a line.

        Args:
            log_seconds: between lines where stderr is no terminal; None shows none there.
        """
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._interval = IN_TERMINAL if self._terminal else log_seconds
        self._shown = time.monotonic()
        self._open = False  # whether the cursor stands behind a line that is to be replaced
        self._what, self._first, self._began = "", 0, self._shown
        self._refresh: Callable[[], None] = lambda: None

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def show(self, text: str, *, last: bool = False) -> None:
        """Show a line, unless the one before was just shown.

        Args:
            text: without a line break.
            last: show it in any case, and let it stand.
        """
        now = time.monotonic()
        if self._interval is None or (not last and now - self._shown < self._interval):
            return
        self._shown = now
        if self._terminal:
            self._print(f"\r{printable(one_line(text))[: _width()]}\x1b[K" + "\n" * last)
            self._open = not last
        else:
            self._print(f"{printable(one_line(text))}\n")

    def count(self, what: str, done: int, total: int | None, unit: str) -> None:
        """Show how much is done, and the time that is left at the speed so far.

        Args:
            what: is being done; another one starts the clock anew.
            done: how many of them, or bytes where the unit is `MEGABYTES`.
            total: how many in all; None is not known.
            unit: what is counted, in the plural.
        """
        if what != self._what:
            self._what, self._first, self._began = what, done, time.monotonic()
        self._refresh = lambda: self.show(self._counted(what, done, total, unit))
        self._refresh()

    def refresh(self) -> None:
        """Show the last count with the time as it is now, so that a slow step is seen to be alive."""
        self._refresh()

    def counter(self, what: str, unit: str, stop: Callable[[], bool] | None = None) -> Callable[[int, int], None]:
        """Return `count` as libraries call it; it raises KeyboardInterrupt where `stop` says so."""

        def show(done: int, total: int) -> None:
            if stop is not None and stop():
                raise KeyboardInterrupt
            self.count(what, done, total, unit)

        return show

    def say(self, text: str) -> None:
        """Print a line that stays, in the place of the progress."""
        self.end()
        self._print(f"{printable(one_line(text))}\n")

    def end(self) -> None:
        """Remove the line."""
        if self._open:
            self._print("\r\x1b[K")
        self._open = False

    def _counted(self, what: str, done: int, total: int | None, unit: str) -> str:
        seconds = time.monotonic() - self._began
        scale = 1e6 if unit == MEGABYTES else 1
        shown = f"{done / scale:,.0f}" if total is None else f"{done / scale:,.0f} of {total / scale:,.0f}"
        time_shown = f"{clock(seconds)} so far"
        if total is not None and done > self._first:
            time_shown = f"{clock(seconds / (done - self._first) * (total - done))} left"
        count = f": {shown} {unit}, {time_shown}"
        return what[: max(0, _width() - len(count))] + count

    def _print(self, text: str) -> None:
        with suppress(OSError):  # nobody looks any more, and the work goes on
            print(text, end="", file=sys.stderr, flush=True)


def _width() -> int:
    """The longest line that the terminal does not break: one that is broken cannot be replaced."""
    return shutil.get_terminal_size().columns - 1


def clock(seconds: float) -> str:
    """A time span for people: 0:42, 12:05, 3:10:00."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
