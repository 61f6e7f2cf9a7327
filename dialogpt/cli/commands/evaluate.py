"""`dialogpt evaluate`: its flags, which systems they name, and what is printed.

The table, or JSON, goes to stdout; progress and notes go to stderr. Evaluating is left to `dialogpt.evaluate.run`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogpt.cli.options import SOURCE, add_model_flags, generation_from, positive_number, rerankers_from, wrong_usage
from dialogpt.cli.printable import one_line, printable
from dialogpt.cli.progress import ProgressLine
from dialogpt.cli.reading import add_files, reading_from
from dialogpt.cli.signals import interrupts_flagged
from dialogpt.errors import DONE, INTERRUPTED, DialogueError

if TYPE_CHECKING:
    from dialogpt.evaluate.run import EvaluationRequest, Result, System


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its flags."""
    parser = subparsers.add_parser(
        "evaluate",
        usage="%(prog)s DIALOGUES [--model M | --replies FILE | --system FLAGS]... [FLAGS]  (--help lists them)",
        help="figures of replies and models on a file of dialogues, with intervals",
        conflict_handler="resolve",  # --model may be given again here
        everyday=(
            *("--model", "--replies", "--system", "--protocol", "--bot", "--out", "--json", "--blind", "--greedy"),
            *("--num-beams", "--seed", "--dtype"),
        ),
        examples=(
            "dialogpt evaluate HELD-OUT.jsonl --model tiny --model RUN --out REPORT",
            "dialogpt evaluate HELD-OUT.jsonl --system 'beams=--greedy --num-beams 10'",
        ),
    )
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument(
        "dialogues",
        nargs="?",
        type=Path,
        metavar="DIALOGUES",
        help='dialogues of any kind (--from); of {"turns": [...], "references": [...]} the last turn is answered, of '
        "others the last reply is the reference",
    )
    add_model_flags(parser)
    add_files(parser.add_argument_group("reading"))
    _add_systems(parser)
    _add_measures(parser)
    _add_output(parser)


def _add_systems(parser: argparse.ArgumentParser) -> None:
    systems = parser.add_argument_group(
        "systems", "compared on the same dialogues; the first is what others differ from"
    )
    systems.add_argument(
        "--model", action=_Named, dest="systems", metavar="M", help=f"{SOURCE}; may be given again (default: tiny)"
    )
    systems.add_argument(
        "--replies",
        action=_Named,
        dest="systems",
        metavar="[NAME=]FILE",
        help='replies that are there already, line n to dialogue n: .jsonl of {"reply": "..."}, or text; may be given '
        "again",
    )
    systems.add_argument(
        "--system",
        action=_Named,
        dest="systems",
        metavar="[NAME=]FLAGS",
        help="a model with flags of its own, such as 'beams=--model M --greedy --num-beams 10'; may be given again",
    )


def _add_measures(parser: argparse.ArgumentParser) -> None:
    measured = parser.add_argument_group("what is measured")
    measured.add_argument(
        "--protocol", default="paper-6k", metavar="P", help="paper-6k (the default), paper-dstc or sacrebleu"
    )
    measured.add_argument(
        "--every-turn", action="store_true", help="answer every second turn, and not the last one only"
    )
    measured.add_argument(
        "--bot", action="store_true", dest="bot_only", help="perplexity of the bot's turns only: every second one"
    )
    measured.add_argument(
        "--window",
        type=positive_number,
        metavar="N",
        help="tokens read at once for perplexity (default: all positions)",
    )
    measured.add_argument(
        "--fed", metavar="M", help="judge replies by FED with this model (DialoGPT-large in the paper)"
    )
    measured.add_argument(
        "--rank", action="append", default=[], metavar="HEAD=M", help="mean of a DialogRPT head; may be given again"
    )
    measured.add_argument(
        "--resamples",
        type=int,
        default=1000,
        metavar="N",
        help="bootstrap resamples for intervals (default: 1000; 0: none)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", type=Path, metavar="FOLDER", help="report, pictures, replies; the same call resumes there"
    )
    output.add_argument("--json", action="store_true", help="print JSON with all figures")
    output.add_argument(
        "--blind", type=positive_number, metavar="N", help="with --out: N pairs of replies for a blind evaluation"
    )
    output.add_argument("--judged", type=Path, metavar="FILE", help="score a blind.jsonl that was filled in")
    output.add_argument(
        "--batch-size", type=positive_number, default=32, metavar="N", help="dialogues answered together"
    )


class _Named(argparse._AppendAction):
    """Keeps systems in the order in which they are typed, with the flag that each was given by."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        kept = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, [*kept, (self.option_strings[0], values)])


def run(options: argparse.Namespace) -> int:
    """Evaluate, or score blind judgements."""
    if options.judged is not None:
        return _score(options)
    if options.dialogues is None:
        raise wrong_usage(options, "name the file of DIALOGUES")
    if options.blind is not None and options.out is None:
        raise wrong_usage(options, "--blind writes files; name their folder with --out")
    if not 0 <= options.resamples <= 100_000 or options.resamples == 1:
        raise wrong_usage(options, f"--resamples is {options.resamples}, expected 0 or 2 to 100,000")
    systems = [_system(options, flag, value) for flag, value in options.systems or [("--model", "tiny")]]
    from dialogpt.decoding.stop import Stopped
    from dialogpt.evaluate.blind import write_pairs
    from dialogpt.evaluate.comparison import table
    from dialogpt.evaluate.run import Evaluation, write_results

    request = _request(options)
    with interrupts_flagged() as interrupted, ProgressLine() as line:

        def stop() -> bool:
            line.refresh()
            return interrupted()

        def show(stage: str, done: int, total: int) -> None:
            line.count(stage, done, total, "dialogues")

        try:
            result = Evaluation(request, systems, stop=stop, on_stage=show).run()
        except Stopped:
            kept = "nothing was kept, as there is no --out"
            if options.out is not None:
                kept = f"what was computed is in {options.out}; the same command resumes"
            line.say(f"dialogpt: interrupted; {kept}")
            return INTERRUPTED
        line.end()
        written = write_results(request.out, result, request.seed) if request.out is not None else []
        for note in result.notes:
            _say(note)
        if request.out is not None and options.blind is not None:
            count = write_pairs(request.out, result.dialogues, result.replies, options.blind, request.seed)
            _say(f"{count} pairs to judge are in {request.out / 'blind.jsonl'}")
        if written:
            _say(f"written: {', '.join(map(str, written))}")
    _print(result, as_json=options.json, shown=table(result.comparison, result.protocol))
    return DONE


def _print(result: Result, *, as_json: bool, shown: str) -> None:
    if as_json:
        print(json.dumps(result.to_dict(), ensure_ascii=False))
        return
    print(f"{len(result.dialogues):,} dialogues, protocol {result.protocol.name}: {result.protocol.about}\n\n{shown}")


def _say(sentence: str) -> None:
    print(f"dialogpt: {printable(one_line(sentence))}", file=sys.stderr)


def _request(options: argparse.Namespace) -> EvaluationRequest:
    from dialogpt.evaluate.run import EvaluationRequest

    heads = []
    for part in options.rank:
        name, equals, source = part.partition("=")
        if not equals or not source:
            raise wrong_usage(options, f"--rank {part!r} is not HEAD=M")
        heads.append((name, source))
    return EvaluationRequest(
        options.dialogues,
        options.protocol,
        reading_from(options),
        every_turn=options.every_turn,
        bot_only=options.bot_only,
        window=options.window,
        fed=options.fed,
        heads=tuple(heads),
        resamples=options.resamples,
        seed=1 if options.seed is None else options.seed,
        batch_size=options.batch_size,
        out=options.out,
    )


def _system(options: argparse.Namespace, flag: str, value: str) -> System:
    """What one of --model, --replies and --system names; nothing is loaded yet."""
    from dialogpt.evaluate.run import System

    name, equals, rest = value.partition("=")
    is_named = bool(equals) and bool(name) and not name.startswith("-") and "/" not in name
    if flag == "--replies":
        is_named = is_named and not Path(value).exists()
        file = Path(rest if is_named else value)
        return System(name if is_named else file.stem, file)
    if flag == "--model":
        return _network(options, value, value)
    flags = rest if is_named else value
    try:
        words = shlex.split(flags)
    except ValueError as error:
        raise wrong_usage(options, f"--system {value!r} cannot be read: {error}") from None
    own = options.parser.parse_args([str(options.dialogues), *words])
    models = own.systems or [("--model", "tiny")]
    if any(kind != "--model" for kind, _ in models):
        raise wrong_usage(options, "--system holds flags of a model and its replies, and no other systems")
    return _network(own, name if is_named else flags, models[-1][1])


def _network(options: argparse.Namespace, name: str, model: str) -> System:
    """A model with the settings of its replies."""
    own = argparse.Namespace(**{**vars(options), "model": model, "draft_model": None})
    generation_from(own)  # wrong usage is found now
    sources = rerankers_from(own)
    from dataclasses import asdict

    from dialogpt.cli.opening import open_chat
    from dialogpt.evaluate.run import System
    from dialogpt.weights import open_checkpoint

    checkpoint = open_checkpoint(model, n_head=own.n_head, adapter=own.adapter, turn_prefix=own.turn_prefix)
    if checkpoint.vocabulary is None:
        raise DialogueError(f"{model} has no vocabulary; put its vocab.json and merges.txt beside it")
    digest = checkpoint.sha256() + (f" {checkpoint.turn_prefix}" if checkpoint.turn_prefix else "")
    settings = {
        "sha256": digest,
        "generation": asdict(generation_from(own, checkpoint)),
        "dtype": own.dtype,
        "history_tokens": own.history_tokens,
        "normalize_text": own.normalize_text,
        "rerank": [[kind, weight, open_checkpoint(source).sha256()] for kind, weight, source in sources],
        "num_candidates": own.num_candidates,
    }
    return System(name, None, partial(open_chat, own), settings, f"{digest} {own.dtype}")


def _score(options: argparse.Namespace) -> int:
    """Print how blind judgements went."""
    from dialogpt.evaluate.blind import score_answers

    if options.dialogues is not None:
        raise wrong_usage(options, "--judged scores a finished evaluation; omit DIALOGUES")
    verdicts = score_answers(options.judged)
    if options.json:
        print(json.dumps([vars(verdict) for verdict in verdicts], ensure_ascii=False))
        return DONE
    for verdict in verdicts:
        (left, right), (ours, theirs) = verdict.systems, verdict.wins
        print(
            printable(
                f"{left} {ours}, {right} {theirs}, the same {verdict.same}; p = {verdict.p_value:.3f} (sign test)"
            )
        )
    return DONE
