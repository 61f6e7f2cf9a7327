"""Compare what decoders make of one network, tiny: the table of docs/evaluation.md, from nothing, in one command.

    python scripts/compare_decoders.py FOLDER   # again, to resume after Ctrl-C or a kill

Small talk that tiny did not learn from is answered by each decoder of `SYSTEMS`; the reverse model that MMI needs is
trained first. The data, that model's run and the evaluation with its report are left in the folder.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dialogpt.cli.main import guarded
from dialogpt.cli.main import main as dialogpt
from scripts import small_talk
from scripts.train_tiny import stage, write

REVERSE = """
    --reverse --epochs 1 --batch-tokens 4096 --dropout 0.1
    --optimizer muon --lr 4e-3 --schedule linear --warmup-steps 20 --valid-every 100
"""
TOP_10 = "--temperature 1 --top-k 10 --top-p 1"  # the paper's sampling
SYSTEMS = {
    "greedy": "--greedy",
    "preset": "",
    "top 10": TOP_10,
    "10 beams": "--greedy --num-beams 10",
    "MMI of 16": TOP_10 + " --rerank mmi --num-candidates 16 --reverse-model {reverse}",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Train, generate and compare; returns the exit status of the first command that failed, or 0."""
    parser = argparse.ArgumentParser(description="Compare tiny's decoders, as docs/evaluation.md does.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="for the data, the reverse model and the report")
    parser.add_argument("--dialogues", type=int, default=200, metavar="N", help="how many are answered (default: 200)")
    options = parser.parse_args(argv)
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    dialogues = [{"turns": turns} for turns in small_talk.read()]
    held_out = [line for line in dialogues if small_talk.is_held_out(line["turns"])]
    learned = [line for line in dialogues if not small_talk.is_held_out(line["turns"])]
    status = stage(folder / "reverse", learned, held_out, REVERSE.split())
    if status:
        return status
    write(folder / "answered.jsonl", held_out[: options.dialogues])
    reverse = shlex.quote(str(folder / "reverse" / "best"))
    flags: list[str] = []
    for name, settings in SYSTEMS.items():
        flags += ["--system", f"{name}={settings.format(reverse=reverse)}"]
    return dialogpt(["evaluate", str(folder / "answered.jsonl"), "--bot", "--out", str(folder / "table"), *flags])


if __name__ == "__main__":
    sys.exit(guarded(main))
