"""The line editor of a chat: search in typed lines, turns of several lines, and Ctrl-C at the prompt.

Imported only where prompt_toolkit is installed and both stdin and stdout are a terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prompt_toolkit import PromptSession
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from dialogpt.cli.terminal.completion import CommandCompleter
from dialogpt.cli.terminal.repl import InterruptedTyping
from dialogpt.cli.terminal.screen import STYLE, styled


class Editor:
    """Reads lines at a prompt.

    Attributes:
        completer: what Tab offers; it is told the commands later.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        """Open the terminal.

        Args:
            lines: what was typed in earlier talks, oldest first.
        """
        self._changed = False  # whether the text has changed since the prompt appeared
        self.completer = CommandCompleter()
        self._session: PromptSession[str] = PromptSession(
            history=InMemoryHistory(list(lines)),
            key_bindings=self._bindings(),
            completer=self.completer,
            style=STYLE,
            complete_while_typing=False,
            enable_history_search=True,
            enable_suspend=True,
            prompt_continuation=lambda width, _line, _wraps: " " * width,
        )
        self._session.default_buffer.on_text_changed += self._note_typing

    def read(self, label: str, initial: str) -> str:
        """Ask for a turn; it may have several lines, pasted or typed with Alt-Enter.

        Raises:
            EOFError: Ctrl-D on an empty prompt.
            KeyboardInterrupt: Ctrl-C on an empty prompt; an `InterruptedTyping` where something had been typed there.
        """
        self._changed = False
        return self._session.prompt(styled(label), default=initial).strip("\n")

    @contextmanager
    def suppress_echo(self) -> Iterator[None]:
        """Keep keys off the screen during a reply, where they would land in its middle; the next prompt shows them.

        Ctrl-C stays a signal. Windows' console shows keys only while a line is asked for.
        """
        try:
            import termios

            from prompt_toolkit.input.vt100 import raw_mode
        except (ImportError, AssertionError):  # no termios on Windows; and what vt100 asserts there
            yield
            return

        class Hidden(raw_mode):
            """Raw mode with signals."""

            @classmethod
            def _patch_lflag(cls, attrs: int) -> int:
                return super()._patch_lflag(attrs) | (attrs & termios.ISIG)

        output = self._session.output
        output.enable_bracketed_paste()  # several lines that are pasted now are one turn too
        output.flush()
        try:
            with Hidden(self._session.input.fileno()):
                yield
        finally:
            output.disable_bracketed_paste()
            output.flush()

    def _note_typing(self, _: object) -> None:
        self._changed = True

    def _bindings(self) -> KeyBindings:
        bindings = KeyBindings()

        @bindings.add("c-c")
        @bindings.add("<sigint>")
        def interrupt(event: KeyPressEvent) -> None:
            if event.current_buffer.text:
                event.current_buffer.reset()
            else:
                event.app.exit(exception=InterruptedTyping() if self._changed else KeyboardInterrupt())

        @bindings.add("escape", "enter")
        def insert_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        return bindings
