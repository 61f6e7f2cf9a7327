"""`dialogpt data`: dialogues from Reddit's dumps and from Open Assistant's trees, for `dialogpt train`."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogpt.cli.options import positive_number, wrong_usage
from dialogpt.cli.printable import printable
from dialogpt.cli.progress import IN_LOG, MEGABYTES, ProgressLine
from dialogpt.cli.signals import interrupts_flagged
from dialogpt.errors import DONE, DialogueError

if TYPE_CHECKING:
    from dialogpt.data.reddit import Rules
    from dialogpt.data.reddit.work import Job

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its sources."""
    parser = subparsers.add_parser("data", help="dialogues from Reddit's dumps or Open Assistant's trees")
    sources = parser.add_subparsers(required=True, metavar="SOURCE")
    _add_reddit(sources)
    oasst = sources.add_parser("oasst", help="Open Assistant's conversation trees")
    oasst.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="*.trees.jsonl or *.messages.jsonl, also .gz"
    )
    oasst.add_argument("--out", type=Path, required=True, metavar="DATA.jsonl", help="a new file")
    oasst.add_argument("--language", metavar="LANG", help="only messages in it, such as en")
    oasst.add_argument("--best", action="store_true", help="only replies that were ranked first")
    oasst.add_argument("--synthetic", action="store_true", help="also messages that a model wrote")
    oasst.add_argument("--train-prompter", action="store_true", help="the prompter's turns have the weight 1, not 0")
    oasst.add_argument("--max-turns", type=positive_number, metavar="N", help="of a dialogue, counted from its end")
    oasst.set_defaults(run=run_oasst, parser=oasst)
    trigrams = sources.add_parser("trigrams", help="frequent tri-grams of replies, for reddit --bland")
    trigrams.add_argument("files", nargs="+", type=Path, metavar="DATA.jsonl", help="the parts of a run")
    trigrams.add_argument("--out", type=Path, required=True, metavar="FILE", help="one tri-gram a line")
    trigrams.add_argument(
        "--min-count", type=positive_number, default=1000, metavar="N", help="seen more than N times (1000)"
    )
    trigrams.set_defaults(run=run_trigrams, parser=trigrams)


def _add_reddit(sources: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = sources.add_parser(
        "reddit",
        usage="%(prog)s DUMPS... --out FOLDER [FLAGS]  (--help lists them)",
        help="the paths in Reddit's comment trees, filtered as for DialoGPT",
        description="Repeat the same command to resume a run that was stopped.",
        everyday=(
            *("--out", "--format", "--workers", "--memory", "--rules", "--min-score", "--max-turns", "--bots"),
            *("--blocked-words", "--submissions", "--titles"),
        ),
        examples=("dialogpt data reddit RC_2011-12.zst --out FOLDER --workers 8 --memory 4G",),
    )
    parser.add_argument("dumps", nargs="+", type=Path, metavar="DUMPS", help="RC_YYYY-MM.zst, also .gz or plain NDJSON")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder, or one to go on with")
    parser.add_argument(
        "--format", choices=("jsonl", "tsv", "parquet"), default="jsonl", help="of the dialogues (jsonl)"
    )
    engine = parser.add_argument_group("engine")
    engine.add_argument("--engine", choices=("local", "spark"), default="local", help="(local)")
    engine.add_argument("--workers", type=positive_number, metavar="N", help="processes (one for each core)")
    engine.add_argument(
        "--memory", type=_size, default=_size("2G"), metavar="SIZE", help="of all processes together (2G)"
    )
    engine.add_argument(
        "--master", metavar="URL", help="of Spark: local[2], yarn, spark://... (local with all workers)"
    )
    engine.add_argument(
        "--allow-truncated", action="store_true", help="use what is there of a file that ends too early"
    )
    engine.add_argument("--keep-rows", action="store_true", help="leave the Parquet files between the stages")
    rules = parser.add_argument_group("rules")
    rules.add_argument(
        "--rules", choices=("paper", "strict"), default="paper", help="sets of rules, see docs/reddit.md"
    )
    rules.add_argument("--like-original", action="store_true", help="what the published extractor does, oversights too")
    rules.add_argument("--min-score", type=int, default=1, metavar="N", help="votes of a reply (1)")
    rules.add_argument("--max-turns", type=positive_number, default=5, metavar="N", help="of a dialogue (5)")
    rules.add_argument("--max-turn-words", type=positive_number, default=30, metavar="N", help="of a comment (30)")
    rules.add_argument("--respect-deletions", action=argparse.BooleanOptionalAction, default=True,
                       help="leave out what was deleted or removed after it was first read (on)")  # fmt: skip
    rules.add_argument(
        "--plain-text", action="store_true", help="write text as it was typed, not as words and signs apart"
    )
    _add_lists(parser)
    titles = parser.add_argument_group("submissions")
    titles.add_argument(
        "--submissions", nargs="+", type=Path, default=[], metavar="FILE", help="RS_YYYY-MM.zst and so on"
    )
    titles.add_argument("--titles", action="store_true", help="a submission's title is the first turn")
    parser.set_defaults(run=run_reddit, parser=parser)


def _add_lists(parser: argparse.ArgumentParser) -> None:
    lists = parser.add_argument_group("lists, one entry a line")
    lists.add_argument(
        "--bots", type=Path, metavar="FILE", help="authors to leave out, in place of the list that comes along"
    )
    lists.add_argument(
        "--blocked-words", type=Path, metavar="FILE", help="turns with one of these phrases get the weight 0"
    )
    lists.add_argument("--blocked-subreddits", type=Path, metavar="FILE", help="to leave out")
    lists.add_argument("--allowed-subreddits", type=Path, metavar="FILE", help="the only ones to read")
    lists.add_argument("--bland", type=Path, metavar="FILE", help="frequent tri-grams, from dialogpt data trigrams")
    lists.add_argument(
        "--keys", type=Path, metavar="FILE", help="Microsoft's list of comments to keep, such as keys-test.gz"
    )
    lists.add_argument("--discarded-targets", type=Path, metavar="FILE", help="SHA-224 of turns that get the weight 0")
    lists.add_argument("--test-ids", type=Path, metavar="FILE",
                       help="make the paper's test set of test-multi-refs-ids.txt: FOLDER/test.refs.txt")  # fmt: skip


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 2G or 500M, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def run_reddit(options: argparse.Namespace) -> int:
    """Make dialogues of dumps, and say what was done."""
    if options.titles and not options.submissions:
        raise wrong_usage(options, "--titles needs --submissions, the dumps that have the titles")
    if options.test_ids and options.format != "jsonl":
        raise wrong_usage(options, "--test-ids reads the dialogues as jsonl; omit --format")
    from dialogpt.data.reddit import testset
    from dialogpt.data.reddit.work import Dump, Job

    rules = _rules(options)
    contexts = testset.read_ids(options.test_ids) if options.test_ids else []
    if contexts:
        rules = testset.rules_for(contexts, rules)
    dumps = [*map(Dump, options.dumps), *(Dump(path, "submissions") for path in options.submissions)]
    job = Job(tuple(dumps), options.out, rules, options.format, options.allow_truncated, options.keep_rows)
    report = _run(options, job)
    totals, dropped = report["totals"], Counter(report["dropped"])
    print(
        f"{totals['dialogues']:,} dialogues with {totals['turns']:,} turns, from {totals['comments']:,} comments in "
        f"{totals['threads']:,} threads, in {options.out / 'dialogues'}"
    )
    print("left out: " + ", ".join(f"{name} {count:,}" for name, count in dropped.most_common(8) if count))
    if dropped["unreadable"]:
        print(
            f"dialogpt: {dropped['unreadable']:,} lines could not be read; see {options.out / 'problems.txt'}",
            file=sys.stderr,
        )
    if contexts:
        found = testset.write(contexts, _written(options.out), options.out)
        print(
            f"{found.found_contexts:,} of {found.contexts:,} contexts and {found.found_references:,} of "
            f"{found.references:,} replies of the test set, in {options.out / 'test.refs.txt'}"
        )
    return DONE


def _run(options: argparse.Namespace, job: Job) -> dict[str, Any]:
    workers = options.workers or os.cpu_count() or 1
    with interrupts_flagged() as interrupted, ProgressLine(log_seconds=IN_LOG) as line:

        def say(text: str) -> None:
            line.say(f"dialogpt: {text}")

        def show(what: str, done: int, total: int) -> None:
            if interrupted():
                raise KeyboardInterrupt
            line.count(what, done, total, "parts" if what == "dialogues" else MEGABYTES)

        try:
            if options.engine == "spark":
                from dialogpt.data.reddit import spark

                return spark.run(job, master=options.master or f"local[{workers}]", progress=say)
            from dialogpt.data.reddit import local

            return local.run(job, workers=workers, memory=options.memory, progress=show)
        except KeyboardInterrupt:
            say("interrupted; repeat the command to resume")
            raise
        except Exception:
            if interrupted():  # it can surface as an error of the library that it hit
                raise KeyboardInterrupt from None
            raise


def _rules(options: argparse.Namespace) -> Rules:
    from dialogpt.data.reddit import rules as known

    kept, needed = known.read_keys(options.keys) if options.keys else (None, None)
    return known.Rules(
        name=options.rules,
        like_original=options.like_original,
        min_score=options.min_score,
        max_turns=options.max_turns,
        max_turn_words=options.max_turn_words,
        respect_deletions=options.respect_deletions,
        titles=options.titles,
        need_submission=options.like_original and bool(options.submissions),
        plain_text=options.plain_text,
        bots=known.read_names(options.bots) if options.bots else known.shipped_bots(),
        blocked_subreddits=known.read_names(options.blocked_subreddits),
        allowed_subreddits=known.read_names(options.allowed_subreddits),
        blocked_words=known.read_phrases(options.blocked_words),
        frequent_trigrams=frozenset(known.read_list(options.bland)) if options.bland else frozenset(),
        kept_keys=kept,
        needed_keys=needed,
        discarded_targets=frozenset(known.read_list(options.discarded_targets))
        if options.discarded_targets
        else frozenset(),
    )


def _written(out: Path) -> list[tuple[str, list[str]]]:
    """Id and turns of all dialogues of a run."""
    lines = [line for path in sorted((out / "dialogues").iterdir()) for line in path.read_bytes().splitlines()]
    return [(content["id"], content["turns"]) for content in map(json.loads, lines)]


def run_oasst(options: argparse.Namespace) -> int:
    """Make dialogues of trees, and say what was left out."""
    from dialogpt.data import oasst
    from dialogpt.data.import_ import new_files

    _require_new(options.out)
    wanted = oasst.Options(options.language, options.best, options.synthetic, options.train_prompter, options.max_turns)
    counts: Counter[str] = Counter()
    problems: list[str] = []
    with interrupts_flagged() as interrupted, new_files(options.out) as (file,):
        for path in options.files:
            for line in oasst.dialogues(path, wanted, counts, problems):
                file.write(f"{json.dumps(line._asdict(), ensure_ascii=False)}\n".encode(errors="backslashreplace"))
                if interrupted():
                    raise KeyboardInterrupt
        if not counts["dialogues"]:
            raise DialogueError(
                f"no dialogue was kept of {counts['messages']:,} messages; {_left_out(counts, oasst.RULES)}"
            )
    made = f"{counts['dialogues']:,} dialogues with {counts['turns']:,} turns"
    print(f"{made}, from {counts['trees']:,} trees, in {options.out}")
    print(_left_out(counts, oasst.RULES))
    for problem in problems[:5]:
        print(f"dialogpt: {printable(problem)}", file=sys.stderr)
    return DONE


def _left_out(counts: Counter[str], names: dict[str, str]) -> str:
    return "left out: " + (", ".join(f"{name} {counts[name]:,}" for name in names if counts[name]) or "nothing")


def _require_new(path: Path) -> None:
    if path.exists():
        raise DialogueError(f"{path} exists; name a new file for --out, or remove it")
    if not path.absolute().parent.is_dir():
        raise DialogueError(f"{path.parent} is not there; make the folder, or name another --out")


def run_trigrams(options: argparse.Namespace) -> int:
    """Count the tri-grams of replies."""
    from dialogpt.data.import_ import new_files
    from dialogpt.data.reddit.trigrams import frequent, replies

    _require_new(options.out)
    with new_files(options.out) as (file,):
        found = frequent(replies(options.files), options.min_count)
        file.write("".join(f"{name}\n" for name, _ in found).encode())
    print(f"{len(found):,} tri-grams that were seen more than {options.min_count:,} times, in {options.out}")
    return DONE
