"""`/explain` and `/why` in a chat."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dialogpt.chat import Chat
from dialogpt.cli.terminal.commands import CommandTalk
from dialogpt.cli.terminal.repl import Console
from dialogpt.errors import DialogueError
from tests.helpers import needs_posix


class Played:
    """A terminal whose lines are given, and what it showed."""

    def __init__(self, *lines: str) -> None:
        self.shown, self.notices = "", [""]
        answers = iter(lines)

        def read(_label: str, _initial: str) -> str:
            try:
                return next(answers)
            except StopIteration:
                raise EOFError from None

        self.chat = Chat.load("tiny", seed=1)
        self.terminal = CommandTalk(self.chat, Console(read, self.write, self.notices.append))

    def write(self, text: str) -> None:
        self.shown += text


def test_explain_writes_the_page_of_the_last_reply(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    played = Played("Hi! My name is Anna.", f"/explain {path}")
    played.terminal.talk()
    assert path.as_uri() in played.notices[-1]
    page = path.read_text(encoding="utf-8")
    assert played.chat.texts()[-1].split()[0] in page
    assert len(played.chat.history.turns) == 2


@needs_posix
def test_explain_without_a_name_writes_where_nobody_else_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    Played("Hi!", "/explain").terminal.talk()
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    assert (folder / "explain.html").is_file()


@pytest.mark.parametrize("saved", [False, True])
def test_an_interrupted_reply_has_no_end_token(saved: bool, tmp_path: Path) -> None:
    """After Ctrl-C the list ended with an end token that was never generated; a loaded one has none either."""
    played = Played()
    stream = played.chat.stream("Hi! My name is Anna.")
    next(stream)
    next(stream)
    stream.close()
    if saved:
        path = tmp_path / "talk.json"
        played.terminal.handle(f"/save {path}")
        played.terminal.handle("/clear")
        played.terminal.handle(f"/load {path}")
    played.shown = ""
    played.terminal.handle("/why")
    assert played.shown.count(" bits") == len(played.chat.history.turns[-1])
    played.chat.reply("Hi!")
    played.shown = ""
    played.terminal.handle("/why")
    assert played.shown.count(" bits") == len(played.chat.history.turns[-1]) + 1


def test_a_reply_that_a_stop_string_ended_has_no_end_token() -> None:
    played = Played()
    played.chat.generation = replace(played.chat.generation, stop_strings=("!",), do_sample=False)
    assert played.chat.reply("Hi!").endswith("!")
    played.terminal.handle("/why")
    assert played.shown.count(" bits") == len(played.chat.history.turns[-1])


def test_why_lists_tokens_and_shows_one_by_number_or_by_text() -> None:
    played = Played("Hi! My name is Anna.")
    played.terminal.talk()
    played.shown = ""
    played.terminal.handle("/why")
    assert "  1 " in played.shown
    assert "/why NUMBER or /why WORD" in played.shown
    word = played.chat.texts()[-1].split()[1].strip("!.,?")
    by_text = Played()
    by_text.chat.restore(played.chat.history.turns)
    by_text.terminal.handle(f"/why {word}")
    assert "could have come" in by_text.shown
    by_number = Played()
    by_number.chat.restore(played.chat.history.turns)
    by_number.terminal.handle("/why 1")
    assert by_number.shown.count("could have come") == 1


def test_what_cannot_be_explained_is_a_sentence(tmp_path: Path) -> None:
    played = Played()
    for command in ("/explain", "/why", "/why 3"):
        with pytest.raises(DialogueError, match="there is no exchange yet"):
            played.terminal.handle(command)
    played.terminal.handle("Hi!")
    with pytest.raises(DialogueError, match="the reply has no 'zebra'"):
        played.terminal.handle("/why zebra")
    with pytest.raises(DialogueError, match="cannot be written"):
        played.terminal.handle(f"/explain {tmp_path / 'none' / 'page.html'}")
    assert len(played.chat.history.turns) == 2
