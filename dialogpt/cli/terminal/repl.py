"""Talking in a terminal: a prompt, and replies that are shown as they come.

Reading and writing are passed in, so that a test can play the person. What is said is left to `dialogpt.chat`; commands
that begin with a slash to `dialogpt.cli.terminal.commands`; flags and pipes to `dialogpt.cli.commands.chat`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

from dialogpt.chat import Chat
from dialogpt.cli.printable import printable
from dialogpt.cli.signals import interrupts_flagged
from dialogpt.cli.terminal.conversations import Conversations
from dialogpt.decoding.stop import Stop, Stopped
from dialogpt.errors import DONE, INTERRUPTED, DialogueError, SettingsError

STRANGE_TOKENS_PER_LETTER = 0.75  # GPT-2 takes 0.2 to 0.3 for English, about 1 for Cyrillic or Arabic, 2 for Chinese
YOU_LABEL, BOT_LABEL = "you> ", "bot> "
Read = Callable[[str, str], str]  # (label, text to begin with) -> line; raises EOFError and KeyboardInterrupt
Write = Callable[[str], None]
Quiet = Callable[[], AbstractContextManager[None]]


class Leave(Exception):
    """The person leaves."""


class InterruptedTyping(KeyboardInterrupt):
    """Ctrl-C at a prompt that is empty again, after something was typed and cleared: it never leaves.

    Of three presses after something was typed, the first clears the line in the editor, silently; the second raises
    this; the third, a plain KeyboardInterrupt, leaves.
    """


@dataclass(frozen=True)
class Console:
    """A keyboard and a screen.

    Attributes:
        read: asks for a line.
        write: shows text as it comes; newlines are part of it.
        notice: says something that is not part of the conversation, a line each.
        quiet: keeps keys off the screen while a reply is shown.
        label: shows who speaks, before what is said; None is `write`.
    """

    read: Read
    write: Write
    notice: Write
    quiet: Quiet = nullcontext
    label: Write | None = None

    def begin_line(self, speaker: str) -> None:
        """Show who speaks."""
        (self.label or self.write)(speaker)


class Talk(ABC):
    """One person, one chat: lines that were typed, and replies.

    What begins with a slash is left to a subclass, so that this file is only the conversation.
    """

    def __init__(self, chat: Chat, console: Console, conversations: Conversations | None = None) -> None:
        """Tie a chat, which may hold a conversation already, to a console.

        Args:
            chat: whose replies are shown.
            console: where lines come from, and where text goes.
            conversations: where each is kept as it grows; None keeps none.
        """
        self.chat, self.console, self.conversations = chat, console, conversations
        self.script_noted = False  # whether a script that the vocabulary hardly knows was remarked on
        self.dropped = 0  # turns that the model is no longer shown

    def talk(self) -> int:
        """Talk until the person leaves; returns the exit status: 0, or 130 after a second Ctrl-C."""
        interrupted = False
        while True:
            try:
                line = self._ask(YOU_LABEL)
            except EOFError:
                self.console.write("\n")
                return DONE
            except KeyboardInterrupt as pressed:
                self.console.write("\n")
                if interrupted and not isinstance(pressed, InterruptedTyping):
                    return INTERRUPTED
                interrupted = True
                kept = "dialogpt chat --continue brings this back" if self.conversations else "/save FILE keeps this"
                self.console.notice(f"Ctrl-C again, or Ctrl-D, leaves ({kept})")
                continue
            except DialogueError as error:
                self.console.notice(_worded(error))
                continue
            interrupted = False
            try:
                self.handle(line)
            except Leave:
                return DONE
            # Ctrl-C twice in a reply, or Ctrl-C or Ctrl-D where a command asks or computes something.
            except (KeyboardInterrupt, EOFError, Stopped):
                self.console.write("\n")
                self.console.notice("stopped")
            except DialogueError as error:
                self.console.notice(_worded(error))
            finally:
                if self.conversations is not None:
                    self.conversations.keep(self.chat)

    def _ask(self, label: str, initial: str = "") -> str:
        """Read one line, for the prompt or for a command.

        Raises:
            DialogueError: it is not UTF-8.
        """
        try:
            return self.console.read(label, initial)
        except UnicodeDecodeError:
            raise DialogueError("that line was not valid UTF-8; type it again") from None

    def handle(self, line: str) -> None:
        """Answer one line: a command, or something that was said."""
        if line.startswith("/"):
            self.command(line)
        elif line.strip():
            self.show_reply(partial(self.chat.stream, line), line)

    @abstractmethod
    def command(self, line: str) -> None:
        """Do what a line that begins with a slash asks for."""

    def show_reply(self, begin: Callable[[Stop], Generator[str, None, None]], typed: str = "") -> None:
        """Show a reply as it is made. Ctrl-C stops it at the next token; a second one at once.

        Args:
            begin: starts the reply; it is given a function to ask whether to stop (see `Stop`).
            typed: what it answers, if that is new.
        """
        self._note_script(typed)
        any_text = False
        with self.console.quiet(), interrupts_flagged() as was_interrupted:
            stream = begin(was_interrupted)
            try:
                for text in stream:
                    if not any_text:
                        self.console.begin_line(BOT_LABEL)
                    self.console.write(printable(text))
                    any_text = True
            finally:
                stream.close()
                if any_text:
                    self.console.write("\n")
        dropped = 0 if (prompt := self.chat.last_prompt) is None else prompt.first_turn
        if dropped > self.dropped:
            self.console.notice(f"  (the model is no longer shown the first {dropped} turns)")
        self.dropped = dropped
        if was_interrupted():
            kept = "what was said is kept" if any_text else "the conversation is as it was"
            self.console.notice(f"stopped; {kept}")

    def _note_script(self, typed: str) -> None:
        """Say once in a conversation that the vocabulary hardly knows the script that is typed."""
        if not self.chat.history.turns:
            self.script_noted = False
        letters = sum(map(str.isalpha, typed))
        foreign = sum(letter.isalpha() and not letter.isascii() for letter in typed)
        if self.script_noted or 2 * foreign <= letters:
            return
        num_tokens = len(self.chat.tokenizer.encode(typed))
        if num_tokens >= STRANGE_TOKENS_PER_LETTER * letters:
            self.script_noted = True
            self.console.notice(
                f"  (the vocabulary hardly knows this script: {num_tokens} tokens for {letters} letters; the model is "
                f"not likely to understand it)"
            )


def _worded(error: DialogueError) -> str:
    """Return the message of an error, with settings named as ``/set`` names them."""
    return error.worded(lambda name: name.replace("_", "-")) if isinstance(error, SettingsError) else str(error)
