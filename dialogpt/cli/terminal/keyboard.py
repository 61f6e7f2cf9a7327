"""Talking with a person at a terminal: the line editor, the screen, and typed lines that are remembered.

Without prompt_toolkit lines are read by `input`, and nothing is remembered from one talk to the next.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dialogpt.chat import Chat
from dialogpt.cli.output import printable
from dialogpt.cli.signals import raised
from dialogpt.cli.terminal.commands import Terminal
from dialogpt.cli.terminal.conversations import Conversations, state_folder
from dialogpt.files.disk import lock, reason_of, write_atomically
from dialogpt.files.plain_file import require_plain_file

if TYPE_CHECKING:
    from dialogpt.cli.terminal.editor import Editor

HISTORY_LINES = 1000
LOCK_SECONDS = 10.0  # how long a talk that ends waits for another that writes its lines
LIBEDIT_HEADER = "_HiStOrY_V2_"  # the first line of a history file that libedit wrote
_ESCAPED = re.compile(r"\\([0-7]{3})")  # how libedit writes a space: \040


def talk(chat: Chat, title: str, *, remember: bool, go_on: bool = False) -> int:
    """Talk until the person leaves; returns the exit status.

    Args:
        chat: an open chat.
        title: what to show first.
        remember: keep typed lines in a file, for the arrow keys of the next talk, and every conversation.
        go_on: begin with the conversation that was kept last.

    Raises:
        DialogueError: there is none to go on with, or it cannot be read.
    """
    print(title)
    print("/help lists the commands, Ctrl-D leaves." if sys.platform != "win32" else "/help lists them, /exit leaves.")
    remembered = _history_file() if remember else None
    lines: list[str] = []
    if remembered is not None:
        with _without_history_on_error():
            lines = _read_history(remembered)
    typed: list[str] = []
    conversations = _conversations() if remember else None
    terminal = _terminal(chat, lines, typed, conversations)
    if go_on:
        terminal.list_conversations("1")
    try:
        with raised():
            return terminal.talk()
    finally:
        if conversations is not None:
            conversations.close()
        if remembered is not None and typed:
            with _without_history_on_error():
                _write_history(remembered, typed)


def _terminal(chat: Chat, lines: list[str], typed: list[str], conversations: Conversations | None) -> Terminal:
    """A chat at this keyboard and screen; what is typed is added to `typed`."""
    editor = _editor(lines)
    if editor is None:
        return Terminal(chat, _read_plainly, _write, _notice, conversations=conversations)

    from dialogpt.cli.terminal.screen import Screen

    def read(prompt: str, prefill: str) -> str:
        line = editor.read(prompt, prefill)
        typed.append(line)
        return line

    screen = Screen()
    terminal = Terminal(chat, read, screen.write, _notice, editor.suppress_echo, screen.label, conversations)
    editor.usages = {name: usage for name, (_run, usage, _purpose) in terminal.commands.items()}
    return terminal


def _editor(lines: list[str]) -> Editor | None:
    """The line editor; None where prompt_toolkit is not installed."""
    try:
        from dialogpt.cli.terminal.editor import Editor
    except ModuleNotFoundError:
        return None
    return Editor(lines)


def _read_plainly(prompt: str, prefill: str) -> str:
    """Ask for a line without an editor; where it would begin with `prefill`, show that first."""
    if prefill:
        _notice(f"  you said: {printable(prefill)}")
        _notice("  type what you want to say instead; an empty line leaves it as it was")
    return input(prompt)


def _notice(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _history_file() -> Path | None:
    """Where typed lines are remembered, readable by their owner only; None where that cannot be."""
    with _without_history_on_error():
        path = state_folder() / "history"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        return path
    return None


def _conversations() -> Conversations | None:
    """The kept conversations; None where no home folder is known, which has been said of the history file."""
    with suppress(RuntimeError):
        return Conversations(state_folder() / "conversations")
    return None


def _read_history(path: Path) -> list[str]:
    """The lines of a history file, whichever library wrote it.

    Neither GNU's nor libedit's readline reads the other's file, and libedit refuses an empty one; so neither is asked.
    """
    require_plain_file(path)
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
