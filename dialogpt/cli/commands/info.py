"""`dialogpt info`: what a checkpoint is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dialogpt.cli.options import SOURCE, add_adapter, add_n_head
from dialogpt.cli.output import ignored_rows, table
from dialogpt.errors import DONE
from dialogpt.files import own_files

if TYPE_CHECKING:
    from dialogpt.weights import Checkpoint


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its flags."""
    parser = subparsers.add_parser(
        "info", help="what a checkpoint is", examples=("dialogpt info RUN", "dialogpt info microsoft/DialoGPT-small")
    )
    parser.add_argument("source", nargs="?", default="tiny", help=f"{SOURCE} (default: tiny)")
    add_n_head(parser)
    add_adapter(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Say what a checkpoint is; reads all of it."""
    from dialogpt.weights import open_checkpoint

    print(table(_info_rows(open_checkpoint(options.source, n_head=options.n_head, adapter=options.adapter))))
    return DONE


def _info_rows(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    from dialogpt.weights.formats import count_non_finite, dtype_name

    config = checkpoint.config
    rows = [
        ("path", str(checkpoint.path)),
        ("format", "dialogpt" if checkpoint.ours else "as published (transformers' names)"),
        ("weights", f"{', '.join(file.name for file in checkpoint.files)}, {dtype_name(checkpoint.dtype)}"),
        ("sha256", checkpoint.sha256()),
        ("parameters", f"{checkpoint.parameters:,} in {len(checkpoint.stored)} tensors"),
        (
            "sizes",
            f"{config.n_layer} layers, {config.n_embd} wide, {config.n_head} heads, {config.n_positions} positions",
        ),
    ]
    if checkpoint.ours or checkpoint.merged_from is not None:
        origin = checkpoint.origin()
        rows.append(("origin", origin.name + (f", sha256 {origin.sha256}" if origin.sha256 else "")))
    if checkpoint.run is not None:
        rows += _run_rows(checkpoint.run, checkpoint.path.name)
    vocabulary = checkpoint.vocabulary
    tokens = "none" if vocabulary is None else f"{len(vocabulary.ids):,} tokens, from {vocabulary.origin}"
    rows.append(("vocabulary", f"{tokens}; {config.vocab_size:,} embedding rows"))
    if vocabulary is not None:
        rows.append(("end of a turn", f"{vocabulary.eos_token}, token {vocabulary.eos_id}"))
    if checkpoint.turn_prefix is not None:
        rows.append(("turns begin with", " and ".join(map(repr, checkpoint.turn_prefix))))
    if checkpoint.history_tokens is not None:
        rows.append(("history tokens", str(checkpoint.history_tokens)))
    if checkpoint.chat:
        rows.append(("chat settings", ", ".join(f"{name} {value}" for name, value in checkpoint.chat.items())))
    if checkpoint.about is not None:
        rows.append(("about", checkpoint.about))
    if checkpoint.reverse is not None:
        rows.append(("direction", "reverse: ranks replies (MMI)" if checkpoint.reverse else "forward: answers"))
    if checkpoint.ranking_head is not None:
        rows.append(("ranking head", "scores replies (DialogRPT), and was not trained to write them"))
    rows += ignored_rows(checkpoint.ignored)
    damaged = {t.name: count for t in checkpoint.stored.values() if (count := count_non_finite(t.read()))}
    rows += [("NOT FINITE", f"{name}: {count:,} values are NaN or infinite") for name, count in damaged.items()]
    return rows


def _run_rows(run: Path, step: str) -> list[tuple[str, str]]:
    """What a training run says of its checkpoint: what it began with, the data with its checksum, and the step."""
    from dialogpt.weights.formats import read_json

    about = read_json(run / "run.json")
    own_files.require(about, {"data": own_files.TEXTS}, str(run / "run.json"))
    base = about.get("source") or f"fresh weights ({about.get('preset')})"
    rows = [("run", run.name), ("step", f"{int(step.removeprefix('step-')):,}"), ("base", str(base))]
    prepared = run / "data" / "train" / "data.json"
    if prepared.is_file():
        data = read_json(prepared)
        own_files.require(data, {"dialogues": own_files.COUNT, "sources": own_files.TEXT_BY_TEXT}, str(prepared))
        sums = [f"{path}, sha256 {digest}" for path, digest in data.get("sources", {}).items()]
        rows.append(("data", "; ".join([f"{data.get('dialogues', 0):,} dialogues", *sums])))
    else:
        rows.append(("data", ", ".join(map(str, about.get("data", [])))))
    return rows
