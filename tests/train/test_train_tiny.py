"""What `tiny` learned from: the conversations of its two packages, and none of those that judge it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scripts import train_tiny
from tests.helpers import weights_of, write_published

pytest.importorskip("chitchat_dataset")
pytest.importorskip("chatterbot_corpus")


def test_one_conversation_in_sixteen_is_held_out() -> None:
    train = list(train_tiny.conversations(held_out=False))
    valid = list(train_tiny.conversations(held_out=True))
    assert (len(train), len(valid)) == (3769, 248)
    assert all(len(turns) > 1 and all(turns) for turns in [*train, *valid])
    both = {json.dumps(turns) for turns in train} & {json.dumps(turns) for turns in valid}
    assert len(both) == 1  # "hi", "Hello!"


def test_consecutive_messages_of_one_person_are_one_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [
        ("a", ["Hi!", " How are you? "]),
        ("a", ["Are you there?"]),
        ("b", [" "]),
        ("b", ["Yes."]),
        ("a", ["Ah."]),
    ]
    content = {
        "b": {"messages": [[{"text": text, "sender": sender} for text in texts] for sender, texts in messages]},
        "alone": {"messages": [[{"text": "Hello?", "sender": "a"}]]},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    monkeypatch.setattr(train_tiny, "package", lambda name: tmp_path)
    found = [*train_tiny.conversations(held_out=False), *train_tiny.conversations(held_out=True)]
    assert found == [["Hi! How are you? Are you there?", "Yes.", "Ah."]]


def test_the_short_conversations_are_english_and_have_an_answer() -> None:
    short = list(train_tiny.short_conversations())
    assert len(short) == 2026
    assert ["What is AI?", "AI is the field of science which concerns itself with building hardware and software that "
            "replicates the functions of the human mind."] in short  # fmt: skip


def test_it_writes_the_data_trains_in_rounds_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def train(arguments: list[str]) -> int:
        calls.append(arguments)
        out = Path(arguments[arguments.index("--out") + 1])
        out.mkdir(exist_ok=True)
        (out / "run.json").touch()
        return 0

    monkeypatch.setattr(train_tiny, "dialogpt", train)
    monkeypatch.setattr(train_tiny, "COPIES", (1, 1))
    means: list[tuple[str, ...]] = []
    monkeypatch.setattr(train_tiny, "write_mean", lambda *paths: means.append(tuple(map(str, paths))))
    names = ("chats", "small-talk-1", "small-talk-2", "care")
    chats, first, second, care = runs = [tmp_path / "tiny" / name for name in names]
    for _ in range(2):
        assert train_tiny.main([str(tmp_path / "tiny")]) == 0
    assert calls[0][:2] == ["train", f"{chats}-train.jsonl"]
    for call, run, model in ((calls[1], first, chats), (calls[2], second, first), (calls[3], care, second)):
        assert call[:2] == ["train", f"{run}-train.jsonl"]
        assert call[call.index("--model") + 1] == str(model / "best")
    assert calls[4:] == [["train", "--resume", "--out", str(out)] for out in runs]
    assert means == 2 * [(str(second / "best"), str(care / "best"), str(tmp_path / "tiny" / "tiny"))]
    assert len(Path(f"{chats}-train.jsonl").read_text().splitlines()) == 3769 + 2026
    assert len(Path(f"{chats}-valid.jsonl").read_text().splitlines()) == 248
    judging = [json.loads(line) for line in Path(f"{first}-valid.jsonl").read_text().splitlines()]
    assert all(train_tiny.small_talk.is_held_out(line["turns"]) for line in judging)
    assert {weight for line in judging for weight in line["weights"]} == {0.0, 1.0}
    assert Path(f"{first}-train.jsonl").read_text() != Path(f"{second}-train.jsonl").read_text()
    teaching = [json.loads(line) for line in Path(f"{first}-train.jsonl").read_text().splitlines()]
    assert {weight for line in teaching for weight in line["weights"]} == {train_tiny.USER_WEIGHT, 1.0}


def test_a_stage_that_is_interrupted_begins_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(train_tiny, "dialogpt", lambda arguments: calls.append(arguments) or 130)
    assert train_tiny.main([str(tmp_path / "tiny")]) == 130
    assert len(calls) == 1


def test_the_mean_of_two_checkpoints_lies_between_them(tmp_path: Path) -> None:
    for name, seed in (("before", 1), ("after", 2)):
        write_published(tmp_path / name, seed=seed)
    train_tiny.write_mean(str(tmp_path / "before"), str(tmp_path / "after"), tmp_path / "mean")
    before, after, mean = (weights_of(tmp_path / name) for name in ("before", "after", "mean"))
    for name, value in mean.items():
        torch.testing.assert_close(value, 0.3 * before[name] + 0.7 * after[name])
