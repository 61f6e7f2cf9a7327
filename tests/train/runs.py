"""What tests of training runs share: a small checkpoint to go on from, dialogues, and a run of a few steps."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dialogpt.train.distributed import Processes
from dialogpt.train.listener import Listener
from dialogpt.train.loop import TrainingRequest, begin, fit, resume
from dialogpt.train.run_folder import Run
from dialogpt.train.settings import TrainConfig
from dialogpt.train.trainer import Trainer
from dialogpt.weights import load
from tests.helpers import write_published

WORDS = ("a", "the", "cat", "dog", "saw", "likes", "you", "me", "and", "not", "what", "why", "yes", "no", "good", "bad")
ALONE = Processes(0, 1, torch.device("cpu"))


def write_dialogues(path: Path, number: int, seed: int = 0, weighted: bool = False) -> Path:
    """Dialogues of 2 to 5 turns of nonsense that has some order: most words have two likely successors."""
    draw = random.Random(seed)

    def turn() -> str:
        words = [draw.randrange(len(WORDS))]
        while len(words) < draw.randint(2, 7):
            words.append((words[-1] * 2 + draw.randrange(2)) % len(WORDS))
        return " ".join(WORDS[word] for word in words)

    with path.open("w") as file:
        for _ in range(number):
            turns = [turn() for _ in range(draw.randint(2, 5))]
            weights = {"weights": [draw.choice([0.5, 1, 2]) for _ in turns]} if weighted else {}
            file.write(json.dumps({"turns": turns, **weights}) + "\n")
    return path


def a_request(folder: Path, *, weighted: bool = False, **settings: Any) -> TrainingRequest:
    """A checkpoint with dropout, 120 dialogues, and 12 steps."""
    folder.mkdir(exist_ok=True)
    if not (folder / "model").exists():
        write_published(folder / "model", n_positions=64)
        write_dialogues(folder / "train.jsonl", 120, weighted=weighted)
        write_dialogues(folder / "valid.jsonl", 20, seed=1)
    settings = {"steps": 12, "batch_tokens": 256, "lr": 1e-3, "warmup_steps": 3, "valid_every": 4, "save_every": 3,
                "dtype": "float32", **settings}  # fmt: skip
    data, valid = ((str(folder / f"{name}.jsonl"),) for name in ("train", "valid"))
    return TrainingRequest(data, valid, None, str(folder / "model"), TrainConfig(**settings))


def a_long_request(folder: Path) -> TrainingRequest:
    """Many small steps and a checkpoint after every second, to be killed in."""
    return a_request(folder, steps=300, save_every=2, valid_every=50, batch_tokens=64)


def train(
    out: Path,
    request: TrainingRequest | None,
    *,
    stop: Callable[[], bool] = lambda: False,
    listener: Listener | None = None,
) -> Trainer:
    """Begin a run, or go on with it where there is no request."""
    with resume(out, ALONE) if request is None else begin(out, request, ALONE) as run:
        return fit(run, ALONE, stop=stop, listener=listener)


def after(steps: int) -> Callable[[], bool]:
    """Stops after so many steps."""
    left = iter([False] * (steps - 1))
    return lambda: next(left, True)


def measured(out: Path) -> list[dict[str, Any]]:
    """What was measured, without what differs from run to run."""
    return [{key: value for key, value in line.items() if key != "seconds"} for line in Run(out).metrics()]


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    """The weights of the last checkpoint."""
    return load(out / "last", dtype="float64").state_dict()
