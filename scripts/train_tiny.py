"""Train the checkpoint that this project carries, `weights/tiny`: English from people's chats, then how to answer.

    python scripts/train_tiny.py TINY           # about four hours on two cores; again, to resume after Ctrl-C or a kill
    dialogpt convert TINY/tiny weights/tiny --dtype float16

Each stage is a run of `dialogpt train` in a folder of its own:

- ``TINY/chats``: fresh weights learn from the dialogues of chitchat-dataset (Will Myers, MIT licence) and, in English,
  of chatterbot-corpus (Gunther Cox, BSD licence); both packages come with the extra ``train``. What one person says in
  several messages is one turn. Conversations of the first whose sha256 of the id begins with 0 are held out, one in
  sixteen.
- ``TINY/small-talk-1`` to ``-3``: what that gave learns from the dialogues in `weights/tiny/dialogues`, which were
  written for this project, in copies that differ (see `scripts/small_talk.py`), in rounds; in each the learning rate
  falls anew. One dialogue in twenty is held out, and chooses the checkpoint.
- ``TINY/care``: a short round in which dialogues on despair, and on who Tiny is, come more often than others.

``TINY/tiny`` is the mean of the weights before and after the last round: it remembers like the first of the two and
cares like the second.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    --optimizer muon --lr 4e-3 --schedule linear --warmup-steps 50 --valid-every 200 --save-every 100
"""
Line = Mapping[str, object]  # of a file of dialogues
COPIES = (5, 5, 4)  # of each dialogue in each round, no two alike
CARE = ("18-care", "26-care-and-human", "32-care-and-who-tiny-is", "34-life-and-death")  # files of the last round
CARE_COPIES = 4  # of each dialogue of those files in it; one of all others
CARE_LR = "2e-3"
CARE_SHARE = 0.7  # of the weights after the last round in the mean of both; chosen by `judge_tiny.py check`
USER_WEIGHT = 0.3  # of the user's turns beside Tiny's; in judging they do not count


def main(argv: Sequence[str] | None = None) -> int:
    """Write the data and train, or resume; returns the exit status of the last `dialogpt train`."""
    parser = argparse.ArgumentParser(description="Train the checkpoint that this project carries.")
    parser.add_argument("folder", type=Path, metavar="TINY", help="a folder for both runs and their data")
    parser.add_argument("--model", metavar="M", help="begin the second stage with this checkpoint, without the first")
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
    care = [turns for turns in small_talk.read(*CARE) if not small_talk.is_held_out(turns)]
    rounds = [(folder / f"small-talk-{number}", teaching, copies) for number, copies in enumerate(COPIES, 1)]
    rounds.append((folder / "care", teaching + (CARE_COPIES - 1) * care, 1))
    before = model
    for number, (run, chosen, copies) in enumerate(rounds, 1):
        train = (weighted(turns, USER_WEIGHT) for turns in small_talk.varied(chosen, copies, seed=number))
        flags = SMALL_TALK.split() + (["--lr", CARE_LR] if run.name == "care" else [])
        status = stage(run, train, map(weighted, held_out), ["--model", model, *flags])
        if status:
            return status
        before, model = model, str(run / "best")
    if not (folder / "tiny").exists():
        write_mean(before, model, folder / "tiny")
    return DONE


def write_mean(before: str, after: str, destination: Path) -> None:
    """Write a checkpoint whose weights are the mean of two, `CARE_SHARE` of it of the second."""
    first, second = open_checkpoint(before), open_checkpoint(after)
    mean = {
        name: torch.lerp(first.tensors[name].read(), stored.read(), CARE_SHARE)
        for name, stored in second.tensors.items()
    }
    with new_folder(destination) as folder:
        save(folder, second, mean, second.origin())


def stage(run: Path, train: Iterable[Line], valid: Iterable[Line], flags: list[str]) -> int:
    """Run one stage, or resume it; one that is complete ends at once. Returns the exit status."""
    if (run / "run.json").exists():
        return dialogpt(["train", "--resume", "--out", str(run)])
    files = [run.with_name(f"{run.name}-{name}.jsonl") for name in ("train", "valid")]
    for path, dialogues in zip(files, (train, valid), strict=True):
        write(path, dialogues)
    return dialogpt(["train", str(files[0]), "--valid", str(files[1]), "--out", str(run), *flags])


def weighted(turns: list[str], user: float = 0.0) -> Line:
    """A line of small talk; how much the user's turns count beside Tiny's."""
    return {"turns": turns, "weights": small_talk.weights_of(turns, user)}


def write(path: Path, dialogues: Iterable[Line]) -> None:
    """Write dialogues as JSONL."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(dialogue, ensure_ascii=False) + "\n" for dialogue in dialogues)


def conversations(*, held_out: bool) -> Iterator[list[str]]:
    """The conversations of chitchat-dataset with at least two turns, those for training or those for validation."""
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
    """The English conversations of chatterbot-corpus with at least two turns."""
    import yaml

    for path in sorted((package("chatterbot_corpus") / "data" / "english").glob("*.yml")):
        for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            spoken = [str(turn).strip() for turn in turns if turn is not None and str(turn).strip()]
            if len(spoken) > 1:
                yield spoken


def package(name: str) -> Path:
    """Where an installed package lies, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise DialogueError(f"{name} is not installed; {install_hint('train')}")
    return Path(spec.origin).parent


if __name__ == "__main__":
    sys.exit(guarded(main))
