"""`dialogpt import`: the dialogues that people have become training data, with a report of what was left out."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path

from dialogpt.cli.options import wrong_usage
from dialogpt.cli.printable import one_line, printable
from dialogpt.cli.progress import MEGABYTES, ProgressLine
from dialogpt.cli.reading import add_kind, reading_from
from dialogpt.cli.signals import interrupts_flagged
from dialogpt.cli.standard_input import copied_stdin
from dialogpt.data.settings import Reading
from dialogpt.errors import DONE, DialogueError

CHECKED = 3  # dialogues of each source that --check shows
CHECKED_BYTES = 16 << 20  # of standard input that --check reads; a line has 4 MiB at most
STDIN = "-"
DEDUP = ("exact", "near")  # dialogpt.data.dedup's


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its flags."""
    parser = subparsers.add_parser(
        "import",
        usage="%(prog)s SOURCE... --out DATA.jsonl [FLAGS]  (--help lists them)",
        help="dialogues of any kind to training data",
        everyday=(
            *("--out", "--check", "--from", "--columns", "--bot", "--min-turns", "--max-turns", "--split", "--dedup"),
            "--redact",
        ),
        examples=(
            "dialogpt import chat.txt --check                    # what is in it",
            "dialogpt import chat.txt --bot Ada --out DATA.jsonl --split 0.05",
        ),
        description="Read dialogues of the kinds that people have, and write them as one file that train reads. train "
        "reads every kind itself, too; this command shows what is in it, and cleans it once.",
    )
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="files, folders of some kinds, or - for standard input"
    )
    parser.add_argument("--out", type=Path, metavar="DATA.jsonl", help="a new file")
    parser.add_argument("--check", action="store_true", help="only show the first dialogues, and write nothing")
    parser.add_argument(
        "--split", type=float, default=0.0, metavar="SHARE",
        help="hold this share of the dialogues out, by their hash, in a file beside (0.05, say)",
    )  # fmt: skip
    parser.add_argument(
        "--dedup", nargs="?", const="exact", choices=DEDUP,
        help="leave out dialogues whose words were there before: all of them, or nearly (near)",
    )  # fmt: skip
    parser.add_argument("--tsv-weights", action="store_true", help="each turn of a .tsv file begins with its weight")
    add_kind(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Import, or show what would be imported."""
    if not 0 <= options.split < 1:
        raise wrong_usage(options, f"--split is {options.split}, expected a share from 0 below 1")
    if options.check == (options.out is not None):
        raise wrong_usage(options, "name the file to write with --out, or look at the data with --check")
    if options.sources.count(STDIN) > 1:
        raise wrong_usage(options, f"{STDIN} is standard input, which can be read once")
    reading = reading_from(options, options.tsv_weights)
    with ExitStack() as stack, ProgressLine() as progress:
        count = partial(progress.count, "reading standard input", total=None, unit=MEGABYTES)
        limit = CHECKED_BYTES if options.check else None
        sources = [
            stack.enter_context(copied_stdin(limit, count)) if name == STDIN else Path(name) for name in options.sources
        ]
        progress.end()
        return _check(sources, reading) if options.check else _import(sources, reading, options)


def _check(sources: Sequence[Path], reading: Reading) -> int:
    """Show the first dialogues of each source, and the first problems."""
    from dialogpt.data import Problem, read
    from dialogpt.data.detect import kind_of

    shown = 0
    for path in sources:
        print(printable(f"{path}: {kind_of(path, reading).name}"))
        problems: list[Problem] = []
        for dialogue in islice(read(path, reading, on_problem=problems.append), CHECKED):
            shown += 1
            print(f"  line {dialogue.line}")
            for number, turn in enumerate(dialogue.turns):
                weight = 1.0 if dialogue.weights is None else dialogue.weights[number]
                speaker = "" if dialogue.speakers is None else f"{one_line(dialogue.speakers[number])}: "
                print(printable(f"    weight {weight:g}: {speaker}{one_line(turn)}"))
        for problem in problems[:CHECKED]:
            print(printable(f"  left out: {one_line(str(problem))}"))
    if not shown:
        raise DialogueError(f"no dialogue in {', '.join(map(str, sources))} can be used")
    return DONE


def _import(sources: Sequence[Path], reading: Reading, options: argparse.Namespace) -> int:
    from dialogpt.data.import_ import import_dialogues, names_beside
    from dialogpt.data.report import described

    start = time.monotonic()
    with interrupts_flagged() as interrupted, ProgressLine() as progress:
        found = import_dialogues(
            sources,
            options.out,
            reading,
            split=options.split,
            dedup=options.dedup,
            on_progress=progress.counter("importing", MEGABYTES, interrupted),
        )
    held_out, problems = names_beside(options.out)
    for path, kind in found.kinds.items():
        _say(f"{path}: {kind}")
    for line in described(found.kept, _token_counter()):
        _say(line)
    if options.split:
        _say(f"{found.held_out:,} dialogues are held out in {held_out}")
    if found.problems:
        _say(f"left out, each with its line in {problems}:")
        for reason, count in found.problems.most_common(12):
            _say(f"  {count:,} times: {reason}")
    for warning in found.kept.warnings():
        _say(f"warning: {warning}")
    _say(f"wrote {options.out} in {time.monotonic() - start:.1f} s")
    return DONE


def _say(text: str) -> None:
    print(printable(one_line(text)), file=sys.stderr)


def _token_counter() -> Callable[[Sequence[str]], list[int]]:
    """Counts tokens as the model that is shipped does."""
    from dialogpt.tokenizer import Tokenizer

    tokenizer = Tokenizer.load("tiny")
    return lambda turns: [len(tokenizer.encode(turn)) + 1 for turn in turns]
