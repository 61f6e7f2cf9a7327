"""Talking with a person at a terminal: the line editor, the screen, and typed lines that are remembered.

Without prompt_toolkit lines are read by `input`, and typed lines are not remembered; conversations are.
"""

from __future__ import annotations

import sys
from contextlib import suppress

from dialogpt.chat import Chat
from dialogpt.cli.printable import printable
from dialogpt.cli.signals import interrupts_raised
from dialogpt.cli.terminal.commands import CommandTalk
from dialogpt.cli.terminal.conversations import Conversations, state_folder
from dialogpt.cli.terminal.repl import Console
from dialogpt.cli.terminal.typed_lines import add_lines, read_lines, typed_lines_file, unremembered_on_error


def open_terminal(chat: Chat, title: str, *, remember: bool, go_on: bool = False) -> int:
    """Talk until the person leaves; returns the exit status.

    Args:
        chat: an open chat.
        title: what to show first.
        remember: keep every conversation, and typed lines, which the arrow keys bring back in the next talk.
        go_on: begin with the conversation that was kept last.

    Raises:
        DialogueError: there is none to go on with, or it cannot be read.
    """
    print(title)
    print(f"/help lists the commands, {'Ctrl-D' if sys.platform != 'win32' else '/exit'} leaves.")
    remembered = typed_lines_file() if remember else None
    lines: list[str] = []
    if remembered is not None:
        with unremembered_on_error():
            lines = read_lines(remembered)
    typed: list[str] = []
    conversations = _conversations() if remember else None
    talk = _talk(chat, lines, typed, conversations)
    if go_on:
        talk.open_conversation(1)
    try:
        with interrupts_raised():
            return talk.talk()
    finally:
        if conversations is not None:
            conversations.close()
        if remembered is not None and typed:
            with unremembered_on_error():
                add_lines(remembered, typed)


def _talk(chat: Chat, lines: list[str], typed: list[str], conversations: Conversations | None) -> CommandTalk:
    """A chat at this keyboard and screen; with prompt_toolkit, what is typed is added to `typed`."""
    try:
        from dialogpt.cli.terminal.editor import Editor
        from dialogpt.cli.terminal.screen import Screen
    except ModuleNotFoundError:  # prompt_toolkit is not installed
        return CommandTalk(chat, Console(_read_plainly, _write, _notice), conversations)
    editor, screen = Editor(lines), Screen()

    def read(label: str, initial: str) -> str:
        line = editor.read(label, initial)
        typed.append(line)
        return line

    console = Console(read, screen.write, _notice, editor.suppress_echo, screen.label)
    talk = CommandTalk(chat, console, conversations)
    # Only now, as the talk needs the editor to read.
    editor.completer.usages = {name: usage for name, (_run, usage, _purpose) in talk.commands.items()}
    return talk


def _read_plainly(label: str, initial: str) -> str:
    """Ask for a line without an editor; where it would begin with `initial`, show that first."""
    if initial:
        _notice(f"  you said: {printable(initial)}")
        _notice("  type what you want to say instead; an empty line leaves it as it was")
    return input(label)


def _notice(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _conversations() -> Conversations | None:
    """The kept conversations; None where no home folder is known: a notice about typed lines has named it."""
    with suppress(RuntimeError):
        return Conversations(state_folder() / "conversations")
    return None
