"""Conversations on the disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialogpt import DialogueError, History, Tokenizer
from dialogpt.cli.terminal import transcripts
from dialogpt.history import BOT, USER, Turn
from dialogpt.weights import Vocabulary
from tests.helpers import small_vocabulary

TOKENIZER = Tokenizer(small_vocabulary())
SIZE = 557
turns = st.lists(st.lists(st.integers(0, SIZE - 2), max_size=10), max_size=6).filter(lambda turns: len(turns) % 2 == 0)


@given(turns=turns)
def test_what_is_saved_is_loaded_to_the_id(tmp_path_factory: pytest.TempPathFactory, turns: list[list[int]]) -> None:
    """Ids are saved with the text, as the text of a reply that ends within a character does not encode to its ids."""
    path = tmp_path_factory.mktemp("saved") / "talk.json"
    transcripts.save(str(path), History(SIZE - 1, turns).turns, TOKENIZER)
    transcripts.save(str(path), History(SIZE - 1, turns).turns, TOKENIZER)  # over itself
    assert transcripts.load(str(path), TOKENIZER, SIZE) == turns
    assert [file.name for file in path.parent.iterdir()] == ["talk.json"]


def test_another_vocabulary_goes_by_the_text(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    plain = small_vocabulary()
    moved = {token: (n + 1) % plain.size for token, n in plain.ids.items()}
    other = Tokenizer(Vocabulary(moved, plain.merges, origin="another"))
    turns = [Turn(other.encode("the other"), USER), Turn(other.encode("one"), BOT)]
    transcripts.save(str(path), turns, other)
    assert transcripts.load(str(path), TOKENIZER, SIZE) == [TOKENIZER.encode("the other"), TOKENIZER.encode("one")]


def test_nothing_else_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("dear")
    with pytest.raises(DialogueError, match="exists and is not a saved conversation"):
        transcripts.save(str(path), [], TOKENIZER)
    assert path.read_text() == "dear"
    with pytest.raises(DialogueError, match="cannot be written: No such file"):
        transcripts.save(str(tmp_path / "gone" / "talk.json"), [], TOKENIZER)


def saved(turns: Any, version: int = 1) -> str:
    if isinstance(turns, list):
        named = [
            ({"speaker": [*transcripts.SPEAKERS.values()][n % 2]} | t if isinstance(t, dict) else t)
            for n, t in enumerate(turns)
        ]
        turns = named
    return json.dumps({"format": transcripts.FORMAT, "version": version, "turns": turns})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is not a conversation"),
        ("[]", "is not a conversation"),
        ("{}", "is not a conversation"),
        ("[" * 100_000, "is not a conversation"),
        (saved("hello"), "is not a conversation"),
        (saved([{"text": "a"}]), "1 turns; expected pairs"),
        (saved([{"text": "a"}, {"ids": [1]}]), "turn 2 has no text"),
        (saved([{"text": "a"}, 3]), "turn 2 has no text"),
        (saved([{"text": "a"}, {"text": "\ud800"}]), "talk.json: turn 2: .*half a surrogate pair"),
        (saved([{"text": "a"}, {"text": "b", "speaker": "you"}]), "turn 2 is not said by 'bot'"),
        (saved([], version=9), "has version 9; this program reads 1"),
    ],
)
def test_what_is_no_conversation_is_a_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "talk.json"
    path.write_text(content)
    with pytest.raises(DialogueError, match=sentence):
        transcripts.load(str(path), TOKENIZER, SIZE)


@pytest.mark.parametrize("ids", [None, "abc", [SIZE], [-1], [SIZE - 1], [True], [1.0], [3]])
def test_ids_that_do_not_fit_the_text_are_not_believed(tmp_path: Path, ids: Any) -> None:
    path = tmp_path / "talk.json"
    path.write_text(saved([{"text": "a", "ids": ids}, {"text": "b"}]))
    assert transcripts.load(str(path), TOKENIZER, SIZE) == [TOKENIZER.encode("a"), TOKENIZER.encode("b")]


def test_a_file_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DialogueError, match="cannot be read: No such file"):
        transcripts.load(str(tmp_path / "gone.json"), TOKENIZER, SIZE)


def test_names_that_cannot_be_are_sentences(tmp_path: Path) -> None:
    if hasattr(os, "mkfifo"):  # Windows has no such pipes
        os.mkfifo(tmp_path / "pipe")
    else:
        (tmp_path / "pipe").mkdir()
    for name in ("~nosuchuser/talk", "x" * 300, "a\0b", str(tmp_path), str(tmp_path / "pipe")):
        with pytest.raises(DialogueError, match="cannot be written|not a saved conversation"):
            transcripts.save(name, [], TOKENIZER)
        with pytest.raises(DialogueError, match="cannot be read|is not a conversation"):
            transcripts.load(name, TOKENIZER, SIZE)
