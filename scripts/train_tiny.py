"""Train the bundled checkpoint, `weights/tiny`: first English from people's chats, then small talk.

    python scripts/train_tiny.py TINY           # about four hours on two cores; repeat it to resume
    dialogpt convert TINY/tiny weights/tiny --dtype float16

Each stage is a run of `dialogpt train` in a folder of its own:

- ``TINY/chats``: fresh weights learn from the dialogues of chitchat-dataset (Will Myers, MIT licence) and, in English,
  of chatterbot-corpus (Gunther Cox, BSD licence); both packages come with the extra ``train``. Consecutive
  messages of one person are joined into a turn. Conversations of the first whose id has a sha256 that starts with 0 are
  held out, one in sixteen.
- The rounds in `ROUNDS`, each a run of that name, fine-tune the result on the dialogues in `weights/tiny/dialogues`,
  which were written for this project, in augmented copies (see `scripts/small_talk.py`); each round has its own
  learning rate schedule. One dialogue in twenty is held out to choose the checkpoint of a round.
- After two of them the weights of two checkpoints are averaged, which combines the recall of one with the care of the
  other.

``TINY/tiny`` is the result of the last round.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dialogpt.cli.main import guarded
from dialogpt.cli.main import main as dialogpt
from dialogpt.errors import DONE, DialogueError, install_hint
from dialogpt.weights import open_checkpoint, save
from dialogpt.weights.formats import new_folder
from scripts import small_talk

CHATS = """
    --preset tiny --loss-on all --epochs 6 --batch-tokens 4096
    --optimizer muon --lr 6e-3 --schedule linear --warmup-steps 50 --valid-every 500 --save-every 100
"""
SMALL_TALK = """
    --epochs 1 --batch-tokens 4096 --dropout 0.1
    --optimizer muon --schedule linear --warmup-steps 50 --valid-every 200 --save-every 100
"""
Line = Mapping[str, object]  # of a file of dialogues
USER_WEIGHT = 0.3  # of the user's turns; validation ignores them
CARE = ("18-care", "26-care-and-human", "32-care-and-who-tiny-is", "34-life-and-death")
ALARMS = ("34-life-and-death", "35-alarms-and-false-alarms")


@dataclass(frozen=True)
class Round:
    """One round of small talk.

    Attributes:
        name: the name of its run.
        copies: how many augmented copies of each dialogue there are.
        often: files whose dialogues are repeated `OFTEN` times as often as others.
        lr: the peak learning rate.
        user: the loss weight of the user's turns; Tiny's have 1.
        advice: the loss weight of Tiny's advice to call someone. At 1 it becomes the likeliest reply to whatever Tiny
            does not understand: it was the reply to 23 of 350 ordinary questions.
        mean: an earlier round to average with, and the share of this one; chosen by
            `judge_tiny.py check`.
    """

    name: str
    copies: int = 1
    often: tuple[str, ...] = ()
    lr: str = "4e-3"
    user: float = USER_WEIGHT
    advice: float = 1.0
    mean: tuple[str, float] | None = None


OFTEN = 4
ROUNDS = (
    Round("small-talk-1", copies=5),
    Round("small-talk-2", copies=5),
    Round("small-talk-3", copies=4),
    Round("care", often=CARE, lr="2e-3", mean=("small-talk-3", 0.7)),
    Round("settle", copies=3, lr="2e-3", user=0.0, advice=0.25),
    Round("alarms", often=ALARMS, lr="2e-3", user=0.0, advice=0.5, mean=("care", 0.5)),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the data and train, or resume; returns the exit status of the last `dialogpt train`."""
    parser = argparse.ArgumentParser(description="Train the checkpoint that this project carries.")
    parser.add_argument("folder", type=Path, metavar="TINY", help="a folder for both runs and their data")
    parser.add_argument("--model", metavar="M", help="start the second stage from this checkpoint, and skip the first")
    options = parser.parse_args(argv)
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if options.model is None:
        chats = [*conversations(held_out=False), *short_conversations()]
        train: Iterable[Line] = ({"turns": turns} for turns in chats)
        judging: Iterable[Line] = ({"turns": turns} for turns in conversations(held_out=True))
        status = stage(folder / "chats", train, judging, CHATS.split())
        if status:
            return status
    dialogues = small_talk.read()
    teaching = [turns for turns in dialogues if not small_talk.is_held_out(turns)]
    held_out = [turns for turns in dialogues if small_talk.is_held_out(turns)]
    model = options.model or str(folder / "chats" / "best")
    results: dict[str, str] = {}
    for number, this in enumerate(ROUNDS, 1):
        often = [turns for turns in small_talk.read(*this.often) if not small_talk.is_held_out(turns)] * bool(
            this.often
        )
        copies = small_talk.varied(teaching + (OFTEN - 1) * often, this.copies, seed=number)
        train = (weighted(turns, this.user, this.advice) for turns in copies)
        flags = ["--model", model, *SMALL_TALK.split(), "--lr", this.lr]
        status = stage(folder / this.name, train, map(weighted, held_out), flags)
        if status:
            return status
        model = str(folder / this.name / "best")
        if this.mean is not None:
            earlier, share = this.mean
            mean = folder / (f"{this.name}-mean" if this is not ROUNDS[-1] else "tiny")
            if not mean.exists():
                write_mean(results[earlier], model, mean, share)
            model = str(mean)
        results[this.name] = model
    return DONE


def write_mean(before: str, after: str, destination: Path, share: float) -> None:
    """Write a checkpoint whose weights are the weighted mean of two; `share` is the second one's."""
    first, second = open_checkpoint(before), open_checkpoint(after)
    mean = {
        name: torch.lerp(first.tensors[name].read(), stored.read(), share) for name, stored in second.tensors.items()
    }
    with new_folder(destination) as folder:
        save(folder, second, mean, second.origin())


def stage(run: Path, train: Iterable[Line], valid: Iterable[Line], flags: list[str]) -> int:
    """Run or resume one stage, unless it is complete; returns the exit status."""
    if (run / "run.json").exists():
        return dialogpt(["train", "--resume", "--out", str(run)])
    files = [run.with_name(f"{run.name}-{name}.jsonl") for name in ("train", "valid")]
    for path, dialogues in zip(files, (train, valid), strict=True):
        write(path, dialogues)
    return dialogpt(["train", str(files[0]), "--valid", str(files[1]), "--out", str(run), *flags])


def weighted(turns: list[str], user: float = 0.0, advice: float = 1.0) -> Line:
    """Return a line of small talk with loss weights; see `Round`."""
    return {"turns": turns, "weights": small_talk.weights_of(turns, user, advice)}


def write(path: Path, dialogues: Iterable[Line]) -> None:
    """Write dialogues as JSONL."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(dialogue, ensure_ascii=False) + "\n" for dialogue in dialogues)


def conversations(*, held_out: bool) -> Iterator[list[str]]:
    """Yield the conversations of chitchat-dataset with at least two turns, for training or for validation."""
    content = json.loads((package("chitchat_dataset") / "dataset.json").read_text(encoding="utf-8"))
    for name, conversation in content.items():
        if (hashlib.sha256(name.encode()).hexdigest()[0] == "0") != held_out:
            continue
        turns: list[str] = []
        last = None
        for message in conversation["messages"]:
            text = " ".join(part for utterance in message if (part := utterance["text"].strip()))
            if not text:
                continue
            if message[0]["sender"] == last:
                turns[-1] += " " + text
            else:
                turns.append(text)
            last = message[0]["sender"]
        if len(turns) > 1:
            yield turns


def short_conversations() -> Iterator[list[str]]:
    """Yield the English conversations of chatterbot-corpus with at least two turns."""
    import yaml

    for path in sorted((package("chatterbot_corpus") / "data" / "english").glob("*.yml")):
        for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            spoken = [str(turn).strip() for turn in turns if turn is not None and str(turn).strip()]
            if len(spoken) > 1:
                yield spoken


def package(name: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise DialogueError(f"{name} is not installed; {install_hint('train')}")
    return Path(spec.origin).parent


if __name__ == "__main__":
    sys.exit(guarded(main))
