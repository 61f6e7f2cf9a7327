"""`dialogpt data` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dialogpt.cli.main import main
from dialogpt.errors import DONE, FAILED, USAGE
from tests.data.reddit.synthetic import filled, write

ALONE = ("--workers", "1")


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(filled(45), tmp_path_factory.mktemp("dumps"))[0][0]


def test_reddit_trigrams_and_bland(dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "reddit", str(dump), "--out", str(tmp_path / "out"), *ALONE]) == DONE
    shown = capsys.readouterr()
    assert "dialogues with" in shown.out
    assert "left out: answered" in shown.out
    parts = [str(path) for path in sorted((tmp_path / "out" / "dialogues").iterdir())]
    assert main(["data", "trigrams", *parts, "--min-count", "1", "--out", str(tmp_path / "three.txt")]) == DONE
    assert all(len(line.split()) == 3 for line in (tmp_path / "three.txt").read_text().splitlines())
    arguments = ["--bland", str(tmp_path / "three.txt"), "--out", str(tmp_path / "bland")]
    assert main(["data", "reddit", str(dump), *arguments, *ALONE]) == DONE


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["nowhere.zst", "--out", "X"], FAILED, "nowhere.zst is not there"),
        (["DUMP", "--out", "X", "--memory", "300M"], FAILED, "300 MiB of memory are too little"),
        (["DUMP", "--out", "X", "--memory", "much"], USAGE, "expected a size such as 2G"),
        (["DUMP", "--out", "X", "--titles"], USAGE, "--titles needs --submissions"),
        (["DUMP", "--out", "X", "--bots", "nobody.txt"], FAILED, "nobody.txt cannot be read"),
        (["DUMP", "DUMP", "--out", "X"], FAILED, "is named twice"),
    ],
)
def test_mistakes_are_sentences(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], status: int, sentence: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    words = [str(dump) if word == "DUMP" else word for word in arguments]
    assert main(["data", "reddit", *words, *ALONE]) == status
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "X" / "dialogues").exists()


def test_oasst_writes_a_file_or_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reply = {"message_id": "b", "text": "It is blue.", "role": "assistant", "lang": "en", "replies": []}
    prompt = {"message_id": "a", "text": "The sky?", "role": "prompter", "lang": "en", "replies": [reply]}
    source, out = tmp_path / "x.trees.jsonl", tmp_path / "data.jsonl"
    source.write_text(json.dumps({"message_tree_id": "a", "prompt": prompt}) + "\n")
    assert main(["data", "oasst", str(source), "--out", str(out), "--language", "de"]) == FAILED
    assert "no dialogue was kept of 2 messages; left out: language 2" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]
    assert main(["data", "oasst", str(source), "--out", str(out)]) == DONE
    assert json.loads(out.read_text()) == {"turns": ["The sky?", "It is blue."], "weights": [0.0, 1.0], "id": "b"}
    assert main(["data", "oasst", str(source), "--out", str(out)]) == FAILED


@pytest.mark.slow
def test_train_eats_the_result(tmp_path: Path) -> None:
    comments, _ = write(filled(600), tmp_path / "dumps")
    assert main(["data", "reddit", *map(str, comments), "--out", str(tmp_path / "out"), *ALONE]) == DONE
    parts = [str(path) for path in sorted((tmp_path / "out" / "dialogues").iterdir())]
    arguments = ["--steps", "100", "--batch-tokens", "512", "--window", "256", "--out", str(tmp_path / "run")]
    assert main(["train", *parts, *arguments]) == DONE
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["loss"] for line in losses if "loss" in line]
    assert len(steps) == 100
    assert sum(steps[-10:]) < sum(steps[:10])
    assert (tmp_path / "run" / "data" / "train" / "problems.txt").read_text() == ""
