"""Train the checkpoint that this project carries, `weights/tiny`, from nothing but two packages of dialogues.

    python scripts/train_tiny.py RUN            # about an hour and a half on two cores; again, to go on after Ctrl-C
    dialogpt convert RUN/best weights/tiny --dtype float16

It writes the dialogues of chitchat-dataset (Will Myers, MIT licence) as JSONL and calls `dialogpt train`. What one
person says in several messages is one turn. Conversations whose sha256 of the id begins with 0 are held out for
validation, one in sixteen. The short conversations of chatterbot-corpus (Gunther Cox, BSD licence), in English, are
learned too and never judged by. Both packages come with the extra `train`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dialogpt.cli import guarded
from dialogpt.cli import main as dialogpt
from dialogpt.errors import DialogueError

SETTINGS = """
    --preset tiny --loss-on all --epochs 6 --batch-tokens 4096
    --optimizer muon --lr 6e-3 --schedule linear --warmup-steps 50 --valid-every 500 --save-every 100
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the data and train, or go on with a run; returns the exit status of `dialogpt train`."""
    parser = argparse.ArgumentParser(description="Train the checkpoint that this project carries.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder; its data goes beside it")
    options = parser.parse_args(argv)
    run = options.run.absolute()
    if (run / "run.json").exists():
        return dialogpt(["train", "--resume", "--out", str(run)])
    train, valid = (run.with_name(f"{run.name}-{name}.jsonl") for name in ("train", "valid"))
    write(train, [*conversations(held_out=False), *short_conversations()])
    write(valid, conversations(held_out=True))
    return dialogpt(["train", str(train), "--valid", str(valid), "--out", str(run), *SETTINGS.split()])


def write(path: Path, dialogues: Sequence[list[str]] | Iterator[list[str]]) -> None:
    """Write dialogues as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for turns in dialogues:
            file.write(json.dumps({"turns": turns}, ensure_ascii=False) + "\n")


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
        raise DialogueError(f"{name} is not installed; pip install -c constraints.txt '.[train]'")
    return Path(spec.origin).parent


if __name__ == "__main__":
    sys.exit(guarded(main))
