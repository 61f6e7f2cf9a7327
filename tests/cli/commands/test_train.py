"""`dialogpt train` as a person uses it: what it prints, how it is left, and a sentence for every mistake."""

from __future__ import annotations

import codecs
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dialogpt.cli.commands import train as command
from dialogpt.cli.main import main
from dialogpt.cli.training_progress import Screen
from dialogpt.data import Dialogue
from dialogpt.data.read import share_of
from dialogpt.model import PRESETS
from tests.helpers import ROOT, WAIT_SECONDS, environment, needs_posix, started
from tests.train.runs import a_request, write_dialogues

QUICK = ["--steps", "4", "--batch-tokens", "256", "--dtype", "float32", "--lr", "1e-3", "--warmup-steps", "1"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with `model`, `train.jsonl` and `valid.jsonl`, which is the current one."""
    a_request(tmp_path)
    return tmp_path


def train(folder: Path, *arguments: str) -> int:
    return main(["train", str(folder / "train.jsonl"), "--model", str(folder / "model"), *QUICK, *arguments])


def test_the_names_of_presets_are_the_models() -> None:
    """They are written twice, as `dialogpt --help` must not import torch."""
    assert tuple(PRESETS) == command.PRESETS


def test_a_run_says_what_it_learns_and_where_it_is(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    with (files / "train.jsonl").open("a") as file:
        file.write('{"turns": ["alone"]}\n')
    run = files / "run"
    assert train(files, "--out", str(run), "--valid", str(files / "valid.jsonl")) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    for part in (
        "train: 120 dialogues, 441 turns",
        "1 lines cannot be used and 0 not whole",
        "train.jsonl, line 121: 1 turn, at least 2 needed",
        "float32 products, 4 steps",
        "step 4: validation loss",
        f"talk to it: dialogpt chat --model {run}",
    ):
        assert part in captured.err
    assert (run / "loss.png").read_bytes()[:4] == b"\x89PNG"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    assert lines[0].keys() == {"step", "loss", "learned", "lr", "grad_norm", "seconds"}
    assert lines[4].keys() == {"step", "valid_loss", "valid_perplexity"}


def test_check_shows_ids_and_what_is_learned(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "two.jsonl").write_text('{"turns": ["hi", "b"], "weights": [1, 2]}\n{"turns": []}\n')
    assert main(["train", "--check", str(files / "two.jsonl"), "--model", str(files / "model")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{files / 'two.jsonl'}, line 1",
        "  weight 1: hi",
        "    ids      71 72 556",
        "    learned  - - -",
        "  weight 2: b",
        "    ids      65 556",
        "    learned  65 556",
        f"{files / 'two.jsonl'}, line 2: 0 turns, at least 2 needed",
    ]
    assert not list(files.glob("run*"))


@pytest.mark.parametrize(("name", "line"), [("a.jsonl", b'{"turns": ["hi", "b"]}\n'), ("a.tsv", b"hi\tb\n")])
def test_check_shows_no_byte_order_mark(
    files: Path, capsys: pytest.CaptureFixture[str], name: str, line: bytes
) -> None:
    (files / name).write_bytes(codecs.BOM_UTF8 + line)
    assert main(["train", "--check", str(files / name), "--model", str(files / "model")]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        f"{files / name}, line 1",
        "  weight 1: hi",
        "    ids      71 72 556",
    ]


def test_check_of_nothing_usable_is_a_sentence(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Blank lines are not counted among the first; and an empty file was left without a word."""
    (files / "late.jsonl").write_text("\n" * 5 + '{"turns": ["hi", "b"]}\n')
    (files / "empty.jsonl").touch()
    assert main(["train", "--check", str(files / "late.jsonl"), "--model", str(files / "model")]) == 0
    assert "late.jsonl, line 6" in capsys.readouterr().out
    assert main(["train", "--check", str(files / "empty.jsonl"), "--model", str(files / "model")]) == 1
    assert "empty.jsonl: no line but empty ones" in capsys.readouterr().err
    (files / "one.jsonl").write_text('{"turns": ["alone"]}\n')
    assert main(["train", "--check", str(files / "one.jsonl"), "--model", str(files / "model")]) == 1
    assert "none of the first lines of" in capsys.readouterr().err
    assert main(["train", "--check", str(files), "--model", str(files / "model")]) == 1
    assert "looks like none of the kinds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "RUN", "--model", "./tiny"], "there is no folder or file './tiny'"),
        (["--out", "RUN", "--resume"], "holds no run to resume; omit --resume to start one"),
        (["--out", "RUN", "--window", "65"], "a window of 65 tokens exceeds the network's 64 positions"),
        (["--out", "RUN", "--batch-tokens", "63"], "a batch of 63 tokens cannot hold a row of 64"),
        (["--out", "RUN", "--valid", "nowhere.jsonl"], "nowhere.jsonl is not there"),
        (["--out", "RUN", "--valid", "train.jsonl"], "train.jsonl is named for both training and validation"),
        (["--out", "RUN", "--patience", "1", "--split", "0"], "there is nothing to validate with; add --valid"),
        (["--out", "RUN", "--model", "nowhere"], "there is no folder or file 'nowhere'"),
        (["--out", "model"], "model exists already; name a new folder"),
    ],
)
def test_mistakes_are_sentences_and_leave_no_run(
    files: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(files)
    assert main(["train", "train.jsonl", "--model", "model", *QUICK, *arguments]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("dialogpt: error: ")
    assert sentence in error
    assert not (files / "RUN").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name at least one file of dialogues"),
        (["a.jsonl"], "name the run's folder with --out"),
        (["a.jsonl", "--out", "x", "--lr", "0"], "--lr must be a number above 0, got 0.0"),
        (["a.jsonl", "--out", "x", "--lr", "nan"], "--lr must be a number above 0, got nan"),
        (["a.jsonl", "--out", "x", "--steps", "0"], "--steps must be an integer from 1 to 1,000,000,000, got 0"),
        (
            ["a.jsonl", "--out", "x", "--steps", "3", "--epochs", "1"],
            "--epochs must be omitted, as --steps sets the length of the run",
        ),
        (["a.jsonl", "--out", "x", "--steps", "9" * 400], "1,000,000,000, got 999"),
        (
            ["a.jsonl", "--out", "x", "--epochs", "1e308"],
            "--epochs must be a number above 0 up to 1,000,000, got 1e+308",
        ),
        (["a.jsonl", "--out", "x", "--dropout", "1"], "--dropout must be a number from 0 below 1, got 1.0"),
        (["a.jsonl", "--out", "x", "--threads", "0"], "--threads is 0, expected 1 to 1024"),
        (
            ["a.jsonl", "--out", "x", "--optimizer", "muon", "--parallel", "fsdp"],
            "--optimizer must be adamw with --parallel fsdp",
        ),
        (
            ["a.jsonl", "--out", "x", "--schedule", "noam", "--warmup-steps", "0"],
            "--warmup-steps must be positive with --schedule noam",
        ),
        (["a.jsonl", "--out", "x", "--preset", "tiny", "--model", "m"], "not allowed with"),
        (
            ["a.jsonl", "--out", "x", "--preset", "tiny", "--lora", "4"],
            "--lora adapts a checkpoint, and --preset begins",
        ),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str) -> None:
    assert main(["train", *arguments]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "train.jsonl can be used; the files are empty"),
        ('{"turns": ["alone"]}\n', "train.jsonl, line 1: 1 turn, at least 2 needed"),
        ('{"turns": ["a", "b"]\n', "train.jsonl, line 1: not valid JSON"),
        ('{"turns": ["a", "' + "b " * 200 + '"]}\n', "can be trained on: all are first turns, longer than 64 tokens"),
    ],
)
def test_data_that_teaches_nothing_is_a_sentence(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, content: str, sentence: str
) -> None:
    monkeypatch.chdir(files)
    (files / "train.jsonl").write_text(content)
    assert main(["train", "train.jsonl", "--model", "model", "--out", "run", *QUICK]) == 1
    assert sentence in capsys.readouterr().err
    assert not (files / "run").exists()


def test_resume_takes_its_settings_from_the_run_and_refuses_others(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = files / "run"
    assert train(files, "--out", str(run)) == 0
    assert main(["train", "--resume", "--out", str(run)]) == 0  # done already: nothing happens
    assert main(["train", "--resume", "--out", str(run), "--lr", "1e-3"]) == 0
    assert main(["train", "--resume", "--out", str(run), "--lr", "0.5", "--preset", "tiny"]) == 1
    assert (
        "was begun with --lr 0.001 and not --lr 0.5; with no --preset and not --preset tiny" in capsys.readouterr().err
    )
    assert train(files, "--out", str(run)) == 1
    assert "holds a run already; pass --resume" in capsys.readouterr().err


def test_what_followed_from_the_data_is_not_what_was_typed(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--out", str(files / "run"), "--samples", "0"]
    data = [str(files / "train.jsonl"), "--model", str(files / "model"), "--batch-tokens", "1024", "--dtype", "float32"]
    assert main(["train", *data, *run, "--epochs", "3"]) == 0
    assert "120 dialogues" not in capsys.readouterr().err  # some are held out
    assert main(["train", "--resume", *run, "--epochs", "3"]) == 0
    assert main(["train", "--resume", *run, "--epochs", "4", "--lr", "0.1", "--valid", "x.jsonl", "--reverse"]) == 1
    error = capsys.readouterr().err
    for part in ("--epochs 3.0 and not --epochs 4.0", "no --lr and not --lr 0.1", "no --reverse and not --reverse"):
        assert part in error


def test_a_held_out_part_without_a_target_ends_no_run(
    files: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Of three dialogues the one with a reply beyond the window was held out, and nothing was trained.

    Its prompt was shown whole in the log, a page of it.
    """
    held_out, kept = [], []
    for n in range(200):
        long = Dialogue([f"question {n} " + "a the " * 100, "cat dog " * 100])
        if share_of(long) < 0.05:
            held_out.append(long.turns)
        elif share_of(Dialogue([f"what {n}", "good dog"])) >= 0.05:
            kept.append([f"what {n}", "good dog"])
    lines = [json.dumps({"turns": turns}) + "\n" for turns in kept + held_out]
    (files / "train.jsonl").write_text("".join(lines))
    assert train(files, "--out", str(files / "run"), "--samples", "1") == 0
    assert "nothing in the dialogues held out is a target; pass others with --valid" in caplog.text
    assert "validation loss" not in capsys.readouterr().err


def test_of_a_long_prompt_the_log_has_the_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    """A prompt of a whole window filled the terminal at every validation."""
    Screen(lambda: False).sampled(3, ["Hi\n" + "word " * 500], ["no", "yes " * 500])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("step 3: 'Hi word word ")
    assert line.endswith("...'; before training: 'no'")
    assert len(line) < 250


@needs_posix
def test_ctrl_c_saves_and_leaves_with_130(files: Path) -> None:
    """A first one while it trains; then the run goes on where it was."""
    write_dialogues(files / "train.jsonl", 400)
    run = files / "run"
    flags = ["--model", str(files / "model"), "--out", str(run), "--steps", "100000", "--batch-tokens", "64"]
    command = [sys.executable, "-m", "dialogpt", "train", str(files / "train.jsonl"), *flags, "--dtype", "float32"]
    with started(command, cwd=ROOT, env=environment(OMP_NUM_THREADS="1"), stderr=subprocess.PIPE) as process:
        end = time.monotonic() + WAIT_SECONDS
        while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_text().count("\n") <= 3:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert f"interrupted; to resume: dialogpt train --resume --out {run}" in errors
    steps = (run / "metrics.jsonl").read_text().count("\n")
    assert (run / "last").read_text() == f"step-{steps:08d}\n"
