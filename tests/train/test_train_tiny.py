"""`tiny`'s training data: the conversations of its two packages, without the held-out ones."""

from __future__ import annotations

import json
from dataclasses import replace
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
    by_name = {each.name: replace(each, copies=1) for each in train_tiny.ROUNDS}
    rounds = (by_name["small-talk-3"], by_name["care"], replace(by_name["alarms"], mean=("care", 0.5)))
    monkeypatch.setattr(train_tiny, "ROUNDS", rounds)
    means: list[tuple[str, ...]] = []

    def write_mean(before: str, after: str, destination: Path, share: float) -> None:
        means.append((before, after, str(destination), str(share)))
        destination.mkdir()

    monkeypatch.setattr(train_tiny, "write_mean", write_mean)
    folder = tmp_path / "tiny"
    chats, first, care, alarms = runs = [folder / name for name in ("chats", "small-talk-3", "care", "alarms")]
    for _ in range(2):
        assert train_tiny.main([str(folder)]) == 0
    assert calls[0][:2] == ["train", f"{chats}-train.jsonl"]
    models = [str(chats / "best"), str(first / "best"), str(folder / "care-mean")]
    for call, run, model, each in zip(calls[1:4], runs[1:], models, rounds, strict=True):
        assert call[:2] == ["train", f"{run}-train.jsonl"]
        assert call[call.index("--model") + 1] == model
        assert call[call.index("--lr") + 1] == each.lr
    assert calls[4:] == [["train", "--resume", "--out", str(out)] for out in runs]
    assert means == [
        (str(first / "best"), str(care / "best"), str(folder / "care-mean"), "0.7"),
        (str(folder / "care-mean"), str(alarms / "best"), str(folder / "tiny"), "0.5"),
    ]
    assert len(Path(f"{chats}-train.jsonl").read_text().splitlines()) == 3769 + 2026
    assert len(Path(f"{chats}-valid.jsonl").read_text().splitlines()) == 248
    judging = [json.loads(line) for line in Path(f"{first}-valid.jsonl").read_text().splitlines()]
    assert all(train_tiny.small_talk.is_held_out(line["turns"]) for line in judging)
    assert {weight for line in judging for weight in line["weights"]} == {0.0, 1.0}
    teaching = [json.loads(line) for line in Path(f"{first}-train.jsonl").read_text().splitlines()]
    assert {weight for line in teaching for weight in line["weights"]} == {train_tiny.USER_WEIGHT, 1.0}
    last = [json.loads(line) for line in Path(f"{alarms}-train.jsonl").read_text().splitlines()]
    assert {weight for line in last for weight in line["weights"]} == {0.0, 0.5, 1.0}


def test_a_stage_that_is_interrupted_begins_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(train_tiny, "dialogpt", lambda arguments: calls.append(arguments) or 130)
    assert train_tiny.main([str(tmp_path / "tiny")]) == 130
    assert len(calls) == 1


def test_the_mean_of_two_checkpoints_lies_between_them(tmp_path: Path) -> None:
    for name, seed in (("before", 1), ("after", 2)):
        write_published(tmp_path / name, seed=seed)
    train_tiny.write_mean(str(tmp_path / "before"), str(tmp_path / "after"), tmp_path / "mean", 0.7)
    before, after, mean = (weights_of(tmp_path / name) for name in ("before", "after", "mean"))
    for name, value in mean.items():
        torch.testing.assert_close(value, 0.3 * before[name] + 0.7 * after[name])
