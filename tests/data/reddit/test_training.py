"""From a month of comments to a network that was trained on it, by the two commands that a person types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dialogpt.cli.main import main
from dialogpt.train.run_folder import Run
from dialogpt.weights import load
from tests.data.reddit.synthetic import filled, write


@pytest.mark.slow
def test_tiny_takes_100_steps_on_the_dialogues(tmp_path: Path) -> None:
    """Turns with a blocked word are context only, so that training sees the weights 0 that the pipeline writes."""
    comments, _ = write(filled(400), tmp_path / "dumps")
    (tmp_path / "blocked.txt").write_text("quick\n", encoding="utf-8")
    flags = ["--workers", "1", "--blocked-words", str(tmp_path / "blocked.txt")]
    assert main(["data", "reddit", *map(str, comments), "--out", str(tmp_path / "reddit"), *flags]) == 0
    parts = sorted((tmp_path / "reddit" / "dialogues").iterdir())
    dialogues = [json.loads(line) for part in parts for line in part.read_text(encoding="utf-8").splitlines()]
    assert {weight for dialogue in dialogues for weight in dialogue["weights"]} == {0.0, 1.0}
    flags = ["--steps", "100", "--batch-tokens", "256", "--window", "64", "--samples", "0", "--threads", "1"]
    assert main(["train", *map(str, parts), "--out", str(tmp_path / "run"), *flags]) == 0
    metrics = Run(tmp_path / "run").metrics()
    before = next(line["loss"] for line in metrics if "loss" in line)
    after = [line["valid_loss"] for line in metrics if "valid_loss" in line][-1]
    assert metrics[-1]["step"] == 100
    assert after < before - 1  # nats a token; the text is 60 words in any order
    assert load(tmp_path / "run").config.n_embd == load("tiny").config.n_embd
