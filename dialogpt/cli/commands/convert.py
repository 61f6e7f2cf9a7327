"""`dialogpt convert`: a published checkpoint to ours, or ours back; and the comparison of the two."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dialogpt.cli.options import DTYPES, SOURCE, add_adapter, add_n_head, add_turn_prefix, wrong_usage
from dialogpt.cli.output import ignored_rows, table
from dialogpt.cli.progress import ProgressLine
from dialogpt.cli.signals import interrupts_flagged, interrupts_raised
from dialogpt.errors import DONE, DialogueError

if TYPE_CHECKING:
    from dialogpt.weights import Checkpoint, Report


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its flags."""
    parser = subparsers.add_parser(
        "convert",
        help="a published checkpoint to ours, or ours back",
        everyday=("--adapter", "--to", "--dtype", "--verify"),
        examples=(
            "dialogpt convert microsoft/DialoGPT-small OURS --verify",
            "dialogpt convert RUN FOLDER --to hf                 # for transformers",
        ),
    )
    parser.add_argument("source", help=SOURCE)
    add_n_head(parser)
    add_adapter(parser)
    add_turn_prefix(parser)
    parser.add_argument("destination", type=Path, help="a new folder")
    parser.add_argument(
        "--to",
        choices=("dialogpt", "hf", "gguf"),
        default="dialogpt",
        help="hf: what transformers loads; gguf: llama.cpp",
    )
    parser.add_argument(
        "--dtype", choices=(*DTYPES, "q8_0"), help="of the written weights (default: as they are; for gguf float16)"
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare the result with transformers, or check what can be checked alone"
    )
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Convert a checkpoint, and say what was done."""
    if options.to == "hf" and options.dtype is not None:
        raise wrong_usage(options, "--dtype goes with our own format; convert with it first, then --to hf")
    if options.to == "gguf" and options.verify:
        raise wrong_usage(options, "--verify compares with transformers, which a .gguf is not for; verify --to hf")
    allowed = ("float32", "float16", "q8_0") if options.to == "gguf" else DTYPES
    if options.dtype not in (None, *allowed):
        raise wrong_usage(options, f"--to {options.to} has no --dtype {options.dtype}; choose of {', '.join(allowed)}")
    from dialogpt import weights
    from dialogpt.weights.formats import require_new

    require_new(options.destination)  # before anything is downloaded
    with ProgressLine() as line:
        checkpoint = weights.open_checkpoint(
            options.source,
            n_head=options.n_head,
            adapter=options.adapter,
            turn_prefix=options.turn_prefix,
            progress=line.counter("converting what was downloaded", "tensors"),
        )
    if checkpoint.turn_prefix is not None:
        from dialogpt.tokenizer import Tokenizer

        Tokenizer.load(checkpoint)  # a prefix that cannot be used is refused before anything is written
    with interrupts_flagged() as interrupted, ProgressLine() as line:
        show_progress = line.counter("converting", "tensors", interrupted)
        try:
            if options.to == "hf":
                report = weights.export(checkpoint, options.destination, progress=show_progress)
            elif options.to == "gguf":
                dtype = options.dtype or "float16"
                report = weights.export_gguf(checkpoint, options.destination, dtype=dtype, progress=show_progress)
            else:
                report = weights.convert(checkpoint, options.destination, dtype=options.dtype, progress=show_progress)
        except Exception:
            if interrupted():  # a second Ctrl-C can surface as any error of the library that it hit
                raise KeyboardInterrupt from None
            raise
    rows = _report_rows(report)
    if checkpoint.name is not None:
        rows.insert(1, ("downloaded as", f"{checkpoint.origin().name}, sha256 {checkpoint.origin().sha256}"))
    print(table(rows), flush=True)
    if not options.verify:
        return DONE
    try:
        with interrupts_raised():  # not at once: what is compared may lie in a temporary folder
            return _verify(options, checkpoint)
    except KeyboardInterrupt:
        print(f"dialogpt: {options.destination} is written, and not verified", file=sys.stderr)
        raise


def _verify(options: argparse.Namespace, source: Checkpoint) -> int:
    """Compare what was written with what it was made from, and print the table."""
    from dialogpt.cli import verify
    from dialogpt.weights import hub, open_checkpoint

    results = []
    if source.heads_assumed:
        heads = f"{source.config.n_head} of {source.config.head_dim} are assumed; no file says, and no comparison sees"
        results = [verify.Result("heads", heads, None)]
    wrong = "computes something else than what it was made from"
    if not verify.installed():
        results += verify.check_alone(open_checkpoint(options.destination), source)
        wrong = "is no better than guessing: its weights are scrambled, or untrained, or speak another language"
        print("transformers is not installed; this is what shows without it (.[test] installs it):")
    elif options.to == "hf":
        results += verify.compare(source, options.destination, "float32", 0, layers=False)
    else:
        written = open_checkpoint(options.destination)
        plain = source.name is not None and options.adapter is None
        downloaded = hub.snapshot(source.origin().name) if plain else None  # of the same commit
        original = source if downloaded is None else open_checkpoint(downloaded, n_head=options.n_head)
        merges = find_spec("peft") is not None and original.dtype.itemsize > 2  # in 16 bits each rounds in its own way
        if options.adapter is not None and merges:
            base = open_checkpoint(options.source, n_head=options.n_head)
            theirs = verify.merged_by_peft(base, options.adapter)
        else:
            theirs = verify.readable(original)
        with theirs as folder:
            rounded = None if options.dtype is None else written.dtype
            results += verify.compare(written, folder, "float32", 0, layers=False, rounded=rounded)
    print(verify.table(results))
    if not verify.passed(results):
        raise DialogueError(f"{options.destination} {wrong}; do not use it")
    return DONE


def _report_rows(report: Report) -> list[tuple[str, str]]:
    return [
        ("source", str(report.source)),
        ("source sha256", report.sha256),
        ("written to", str(report.destination)),
        ("tensors", f"{report.tensors}, {report.parameters:,} parameters, {report.dtype}"),
        *ignored_rows(report.ignored),
    ]
