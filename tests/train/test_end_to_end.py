"""From a chat as a phone exports it to a bot that speaks like it, with nothing but defaults, as a new user does it."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from dialogpt import Chat
from dialogpt.candidates import candidates_for_all
from dialogpt.cli.main import main

QUESTIONS = (
    "how are you", "what is for dinner", "where are you", "do you like cats", "are you at home", "can you call me",
    "what time is it", "is it cold outside", "did you sleep well", "do you want tea", "who is there", "are you tired",
    "shall we go out", "what are you doing", "did you see the moon", "is the bread ready", "do you miss me",
)  # fmt: skip
ANSWERS = (
    "yes", "not yet", "in the garden", "very much", "soup again", "maybe later", "near the sea", "at seven", "sorry",
    "come and see", "of course", "I was asleep", "only a little", "ask me tomorrow", "with you, always", "it rains",
)  # fmt: skip
DIALECT = "zum zum"  # what Grandpa ends everything with
PROMPTS = ("hello", "how was your day?", "do you like music", "where do you live?", "what is your favourite colour",
           "I am hungry", "good morning", "tell me a story", "are you happy?", "see you tomorrow")  # fmt: skip


def write_chat(path: Path, dialogues: int) -> None:
    """A chat with pauses, in WhatsApp's layout of Android."""
    draw, moment = random.Random(1), datetime(2021, 3, 14, 9, 26)
    rows = []
    for _ in range(dialogues):
        for _ in range(draw.randint(1, 3)):
            for who, text in (("Mia", f"{draw.choice(QUESTIONS)}?"), ("Grandpa", f"{draw.choice(ANSWERS)} {DIALECT}")):
                rows.append(f"{moment:%d/%m/%Y, %H:%M} - {who}: {text}\n")
                moment += timedelta(minutes=draw.randint(1, 9))
        moment += timedelta(hours=draw.randint(7, 40))
    path.write_text("".join(rows), encoding="utf-8")


def speaks_it(source: str | Path) -> float:
    """The share of replies that are in the dialect."""
    chat = Chat.load(source, seed=1)
    replies = candidates_for_all(chat, [[prompt] for prompt in PROMPTS], 1, range(len(PROMPTS)))
    return sum("zum" in chat.tokenizer.decode(reply.ids) for (reply,) in replies) / len(PROMPTS)


@pytest.mark.slow
def test_a_chat_becomes_a_bot_that_speaks_like_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_chat(tmp_path / "chat.txt", 150)
    assert main(["train", str(tmp_path / "chat.txt"), "--out", str(tmp_path / "grandpa")]) == 0
    error = capsys.readouterr().err
    assert "steps an epoch" in error
    assert speaks_it("tiny") == 0
    assert speaks_it(tmp_path / "grandpa") > 0.5  # most; others are in Mia's words, who is learned too
    page = (tmp_path / "grandpa" / "samples.md").read_text(encoding="utf-8")
    assert "| step 0 |" in page
    assert DIALECT in page
