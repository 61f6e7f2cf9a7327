"""The line editor, with keys from a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from dialogpt.cli.terminal.editor import Editor
from dialogpt.cli.terminal.repl import YOU_LABEL, InterruptedTyping

CTRL_C, CTRL_D, ENTER, UP = "\x03", "\x04", "\r", "\x1b[A"


@contextmanager
def pressing(*earlier: str) -> Iterator[Callable[..., str]]:
    """An editor; the function presses keys at a prompt, and returns the turn."""
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        editor = Editor(earlier)

        def press(keys: str, initial: str = "") -> str:
            pipe.send_text(keys)
            return editor.read(YOU_LABEL, initial)

        yield press


def test_pasted_lines_are_one_turn_and_edited_as_a_whole() -> None:
    """Each line was sent by itself."""
    with pressing() as press:
        assert press("\x1b[200~first\r\nsecond\r\n\x1b[201~" + ENTER) == "first\nsecond"
        assert press("one\x1b\rtwo" + ENTER) == "one\ntwo"  # Alt-Enter
        assert press("\x1b[200~a\nb\x1b[201~" + UP + "x" + ENTER) == "ax\nb"


def test_what_is_offered_can_be_changed() -> None:
    with pressing() as press:
        assert press("\x7flo" + ENTER, "Helo") == "Hello"
        assert press("plain\n") == "plain"


def test_ctrl_c_clears_and_says_whether_something_was_typed() -> None:
    """At an empty prompt it armed; typing something and pressing it again left, and all was gone."""
    with pressing() as press:
        assert press("half" + CTRL_C + "whole" + ENTER) == "whole"
        with pytest.raises(InterruptedTyping):
            press("half" + CTRL_C + CTRL_C)
        with pytest.raises(InterruptedTyping):
            press("h\x7f" + CTRL_C)
        with pytest.raises(KeyboardInterrupt) as pressed:
            press(CTRL_C)
        assert not isinstance(pressed.value, InterruptedTyping)
        with pytest.raises(EOFError):
            press(CTRL_D)


def test_lines_of_earlier_talks_are_found_by_their_start() -> None:
    with pressing("Hello there", "How are you?") as press:
        assert press(UP + ENTER) == "How are you?"
        assert press("Hel" + UP + ENTER) == "Hello there"
        assert press("\x12the" + ENTER + ENTER) == "Hello there"  # Ctrl-R


def test_commands_settings_and_files_are_completed(tmp_path: Path) -> None:
    (tmp_path / "letters.json").write_text("")
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        editor = Editor([])
    editor.completer.usages = {"history": "", "help": "", "set": "NAME VALUE", "load": "FILE"}

    def completed(text: str) -> list[str]:
        document = Document(text)
        found = editor.completer.get_completions(document, CompleteEvent(completion_requested=True))
        return [text[: len(text) + completion.start_position] + completion.text for completion in found]

    assert completed("/h") == ["/history", "/help"]
    assert completed("/set tempe") == ["/set temperature"]
    assert completed("/set top_k") == ["/set top-k"]
    assert completed(f"/load {tmp_path}/le") == [f"/load {tmp_path}/letters.json"]
    assert completed("Hi") == completed("/help x") == []
