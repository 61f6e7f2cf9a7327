"""Conversations that are kept as they grow."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from dialogpt import Chat, DialogueError, GenerationConfig, Tokenizer
from dialogpt.cli.terminal import conversations as module
from dialogpt.cli.terminal.commands import CommandTalk
from dialogpt.cli.terminal.conversations import Conversations
from dialogpt.cli.terminal.repl import Console
from tests.helpers import WINDOWS, random_model, small_vocabulary

CTRL_C, CTRL_D = KeyboardInterrupt(), EOFError()


@pytest.fixture
def chat() -> Chat:
    network = random_model(vocab_size=557, eos_token_id=556, n_positions=128)
    config = GenerationConfig(do_sample=True, max_new_tokens=6, min_new_tokens=3)
    return Chat(network, Tokenizer(small_vocabulary()), config, seed=0)


def talk(chat: Chat, folder: Path, *lines: str | BaseException) -> str:
    """Chat, then hang up as a closed terminal window does, without input. Returns the notices."""
    waiting, notices = [*lines, CTRL_D], [""]

    def read(_label: str, _initial: str) -> str:
        line = waiting.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    kept = Conversations(folder)
    CommandTalk(chat, Console(read, lambda _: None, notices.append), kept).talk()
    kept.close()
    return "\n".join(notices)


def test_two_ctrl_c_lose_nothing(chat: Chat, tmp_path: Path) -> None:
    """At an empty prompt it armed, and all was gone with the next."""
    folder = tmp_path / "kept"
    said = talk(chat, folder, "Hello", "More", CTRL_C, CTRL_C)
    assert "--continue" in said
    before = [*chat.history.turns]
    (path,) = folder.glob("*.json")
    assert WINDOWS or stat.S_IMODE(path.stat().st_mode) == 0o600
    chat.reset()
    talk(chat, folder, "/conversations 1", "Still there?")
    assert chat.history.turns[:4] == before
    assert [*folder.glob("*.json")] == [path]  # it goes on in its own file
    assert Conversations(folder).listed()[0].num_turns == 6


def test_each_conversation_has_a_file_and_is_listed(chat: Chat, tmp_path: Path) -> None:
    assert "there are none yet" in talk(chat, tmp_path, "/conversations")
    said = talk(
        chat, tmp_path, "Hello", "/clear", "Another\tone", "/conversations", "/conversations 9", "/conversations x"
    )
    listed = [line for line in said.split("\n") if "turns  " in line]
    assert [line.split("turns  ")[1] for line in listed] == ["Another\tone", "Hello"]
    assert "there is no conversation 9" in said
    assert "must be an integer from 1" in said
    talk(chat, tmp_path, "/clear", "Gone", "/undo")
    assert len([*tmp_path.glob("*.json")]) == 3


def test_the_oldest_are_removed(chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONVERSATIONS", 3)
    for number in range(5):
        talk(chat, tmp_path, "/clear", f"number {number}")
        for path in tmp_path.glob("*.json"):
            os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**9))
    assert [kept.title for kept in Conversations(tmp_path).listed()] == ["number 4", "number 3", "number 2"]


def test_one_that_is_open_elsewhere_is_copied(chat: Chat, tmp_path: Path) -> None:
    first = Conversations(tmp_path)
    talk(chat, tmp_path, "Hello")
    first.bring_back(chat, 1)
    talk(chat, tmp_path, "/conversations 1", "More")
    first.close()
    assert sorted(kept.num_turns for kept in Conversations(tmp_path).listed()) == [2, 4]


def test_a_disk_that_cannot_keep_is_a_notice_once(chat: Chat, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "kept").write_text("a file")
    talk(chat, tmp_path / "kept", "Hello", "More")
    assert len(chat.history.turns) == 4
    assert caplog.text.count("this conversation is not kept") == 1


def test_damaged_files_are_not_listed(chat: Chat, tmp_path: Path) -> None:
    for number, content in enumerate((b"", b"{", b"[]", b'{"format": "dialogpt conversation", "turns": [3]}', b"\xff")):
        (tmp_path / f"{number}.json").write_bytes(content)
    assert Conversations(tmp_path).listed() == []
    with pytest.raises(DialogueError, match="there is no conversation 1"):
        Conversations(tmp_path).bring_back(chat, 1)
