"""Words at the edge of a terminal."""

from __future__ import annotations

import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialogpt.cli.terminal.repl import BOT_LABEL
from dialogpt.cli.terminal.screen import Screen, styled


def shown(capsys: pytest.CaptureFixture[str], columns: int, *pieces: str) -> str:
    """What a screen of so many columns shows of text that comes in pieces."""
    capsys.readouterr()
    screen = Screen()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((columns, 24)))
        for piece in pieces:
            screen.write(piece)
        screen.write("\n")
    return capsys.readouterr().out


def test_words_are_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, 10, "I li", "ke", " sunny", " days") == "I like \nsunny days\n"
    assert shown(capsys, 10, "0123456789", "ab cd") == "0123456789ab cd\n"  # wider than a line
    assert shown(capsys, 10, "a 0123456789 b") == "a \n0123456789\nb\n"
    assert shown(capsys, 6, "日本語日本語") == "日本語\n日本語\n"


@given(text=st.text(st.sampled_from("ab  \n語"), max_size=60), columns=st.integers(3, 20), cut=st.integers(0, 60))
def test_nothing_but_spaces_at_line_ends_changes(text: str, columns: int, cut: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        written: list[str] = []
        patch.setattr("sys.stdout.write", written.append)
        patch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((columns, 24)))
        screen = Screen()
        for piece in (text[:cut], text[cut:], "\n"):
            screen.write(piece)
    assert "".join("".join(written).split()) == "".join(text.split())
    for line in "".join(written).split("\n"):
        assert sum(2 if letter == "語" else 1 for letter in line) <= columns or len(line.split()) == 1


def test_colours_are_not_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert styled(BOT_LABEL) == [("class:bot", BOT_LABEL)]
    monkeypatch.setenv("NO_COLOR", "1")
    assert styled(BOT_LABEL) == [("", BOT_LABEL)]
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert styled(BOT_LABEL) == [("", BOT_LABEL)]
