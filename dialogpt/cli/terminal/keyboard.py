"""A real keyboard and screen for `dialogpt.cli.terminal.repl`: line editing, and typed lines that are remembered.

Imported only where both are a terminal, as readline would write to stdout elsewhere. Windows has neither readline nor
termios: there its console edits lines, and nothing is remembered from one talk to the next.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dialogpt.chat import Chat
from dialogpt.cli.output import printable
from dialogpt.cli.signals import raised
from dialogpt.cli.terminal.repl import Terminal
from dialogpt.weights.disk import lock, reason_of, write_atomically

try:
    import readline
except ImportError:
    readline = None  # type: ignore[assignment]
try:
    import termios
except ImportError:
    termios = None  # type: ignore[assignment]

HISTORY_LINES = 1000
LOCK_SECONDS = 10.0  # how long a talk that ends waits for another that writes its lines
LIBEDIT_HEADER = "_HiStOrY_V2_"  # the first line of a history file that libedit wrote
_ESCAPED = re.compile(r"\\([0-7]{3})")  # how libedit writes a space: \040


def talk(chat: Chat, title: str, *, remember: bool) -> int:
    """Talk until the person leaves; returns the exit status.

    Args:
        chat: an open chat.
        title: what to show first.
        remember: keep typed lines in a file, for the arrow keys of the next talk.
    """
    print(title)
    print("/help lists the commands, Ctrl-D leaves." if readline else "/help lists the commands, /exit leaves.")
    remembered = _history_file() if remember and readline else None
    if remembered is not None:
        with _without_history_on_error():
            for line in _read_history(remembered):
                readline.add_history(line)
    typed: list[str] = []

    def read(prompt: str, prefill: str) -> str:
        line = _read_line(prompt, prefill)
        typed.append(line)
        return line

    try:
        with raised():
            return Terminal(chat, read, _write, _notice, _silent_keys).talk()
    finally:
        if remembered is not None:
            with _without_history_on_error():
                _write_history(remembered, typed)


def _read_line(prompt: str, prefill: str) -> str:
    """Ask for a line that begins with `prefill`, which the person may change; where that cannot be, say so."""
    if prefill and not _can_prefill():
        _notice(f"  you said: {printable(prefill)}")
        _notice("  type what you want to say instead; an empty line leaves it as it was")
        prefill = ""
    if not prefill:
        return input(prompt)
    readline.set_startup_hook(lambda: readline.insert_text(prefill))
    try:
        return input(prompt)
    finally:
        readline.set_startup_hook(None)


def _can_prefill() -> bool:
    """Whether this is GNU's readline: libedit, which takes its place on macOS, inserts no text before a key is hit."""
    if readline is None:
        return False
    backend = getattr(readline, "backend", "editline" if "libedit" in (readline.__doc__ or "") else "readline")
    return bool(backend == "readline")


@contextmanager
def _silent_keys() -> Iterator[None]:
    """Do not show what is typed: during a reply it would land in the middle of it. The next prompt shows it."""
    if termios is None:  # Windows' console shows keys only while a line is asked for
        yield
        return
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


def _read_history(path: Path) -> list[str]:
    """The lines of a history file, whichever library wrote it.

    Neither GNU's nor libedit's readline reads the other's file, and libedit refuses an empty one; so neither is asked.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")  # a line may hold what else ends lines
    if lines[:1] == [LIBEDIT_HEADER]:
        lines = [_ESCAPED.sub(lambda code: chr(int(code[1], 8)), line) for line in lines[1:]]
    return list(filter(_is_kept, lines))[-HISTORY_LINES:]


def _write_history(path: Path, typed: list[str]) -> None:
    """Add typed lines to a history file, to which another talk may have added some, or may be about to."""
    path = Path(os.path.realpath(path))  # a link to it stays one
    release = lock(path.with_name(".history.lock"), seconds=LOCK_SECONDS)
    try:
        lines = [*_read_history(path), *filter(_is_kept, typed)]
        write_atomically(path, "".join(f"{line}\n" for line in lines[-HISTORY_LINES:]), mode=0o600)
    finally:
        release()


def _is_kept(line: str) -> bool:
    """Whether a line can be kept and shown again: it is not empty, one line, and steers no terminal."""
    return bool(line) and "\n" not in line and printable(line) == line


@contextmanager
def _without_history_on_error() -> Iterator[None]:
    """Remembering lines is a comfort: what goes wrong with it is a notice, and the talk goes on."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: a home folder that is not known
        logging.getLogger(__name__).warning("typed lines are not remembered in a file: %s", reason_of(error))
