"""A real keyboard and screen for `dialogpt.terminal`: line editing, and typed lines that are remembered.

Imported only where both are a terminal, as readline would write to stdout elsewhere.
"""

from __future__ import annotations

import logging
import os
import readline
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dialogpt.chat import Chat
from dialogpt.interrupt import raised
from dialogpt.terminal import Terminal

HISTORY_LINES = 1000


def talk(chat: Chat, title: str, *, remember: bool) -> int:
    """Talk until the person leaves; returns the exit status.

    Args:
        chat: an open chat.
        title: what to show first.
        remember: keep typed lines in a file, for the arrow keys of the next talk.
    """
    print(title)
    print("/help lists the commands, Ctrl-D leaves.")
    remembered = _history_file() if remember else None
    if remembered is not None:
        with _without_history_on_error():
            readline.read_history_file(remembered)
    try:
        with raised():
            return Terminal(chat, _read_line, _write, _notice, _silent_keys).talk()
    finally:
        if remembered is not None:
            with _without_history_on_error():
                readline.set_history_length(HISTORY_LINES)
                readline.write_history_file(remembered)
                remembered.chmod(0o600)


def _read_line(prompt: str, prefill: str) -> str:
    readline.set_startup_hook((lambda: readline.insert_text(prefill)) if prefill else None)
    try:
        return input(prompt)
    finally:
        readline.set_startup_hook(None)


@contextmanager
def _silent_keys() -> Iterator[None]:
    """Do not show what is typed: during a reply it would land in the middle of it. The next prompt shows it."""
    before = termios.tcgetattr(sys.stdin)
    silent = termios.tcgetattr(sys.stdin)
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def _notice(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _history_file() -> Path | None:
    """Where typed lines are remembered, readable by their owner only; None where that cannot be."""
    with _without_history_on_error():
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        path = state / "dialogpt" / "history"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        return path
    return None


@contextmanager
def _without_history_on_error() -> Iterator[None]:
    """Remembering lines is a comfort: what goes wrong with it is a notice, and the talk goes on."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: a home folder that is not known
        reason = getattr(error, "strerror", None) or error
        logging.getLogger(__name__).warning("typed lines are not remembered in a file: %s", reason)
