"""`dialogpt reply`: answer a dialogue that is given whole, or a file of them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dialogpt.cli.opening import open_chat
from dialogpt.cli.options import add_model_flags, check_reply_count, generation_from, positive_number, wrong_usage
from dialogpt.cli.output import described, print_reply
from dialogpt.cli.reading import add_kind
from dialogpt.cli.standard_input import stdin_bytes, turns_from
from dialogpt.errors import DONE


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its flags."""
    parser = subparsers.add_parser(
        "reply",
        usage="%(prog)s [FLAGS] TURN...  (--help lists them)",
        help="replies to a dialogue given as arguments, or to a file of them",
        everyday=(
            *("--model", "--num-replies", "--json", "--batch", "--output", "--temperature", "--top-p"),
            *("--max-new-tokens", "--greedy", "--num-beams", "--seed", "--dtype"),
        ),
        examples=(
            'dialogpt reply "Hi!" "Hello, how are you?" "Fine, and you?"',
            'dialogpt reply --greedy --model microsoft/DialoGPT-small "Does money buy happiness?"',
            "dialogpt reply --batch DIALOGUES.jsonl --output REPLIES.jsonl --seed 1",
        ),
    )
    parser.add_argument(
        "turns",
        nargs="*",
        metavar="TURN",
        help="what was said, oldest first; the last is answered (after --, one may begin with a dash)",
    )
    parser.add_argument("--num-replies", type=int, metavar="N", help="several replies to the same dialogue")
    parser.add_argument(
        "--json", action="store_true", help='write JSON; without a TURN, read {"turns": [...]} from standard input'
    )
    parser.add_argument(
        "--batch",
        type=Path,
        metavar="FILE",
        help='answer every line of a file, {"turns": [...]} each, or every dialogue of one of another kind (--from); '
        "- is standard input",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="with --batch: where replies go; what is there already is not repeated",
    )
    parser.add_argument(
        "--batch-size", type=positive_number, default=32, metavar="N", help="lines answered together (32)"
    )
    add_kind(parser)
    add_model_flags(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Answer a dialogue that was given whole, or a file of them."""
    config = generation_from(options)
    number = 1 if options.num_replies is None else options.num_replies
    check_reply_count(options, config, number)
    if options.batch is not None:
        if options.turns or options.json:
            raise wrong_usage(options, "--batch reads a file; omit TURN and --json")
        if options.draft_model is not None:
            raise wrong_usage(options, "--draft-model is for chat and single replies; omit it with --batch")
        if str(options.batch) == "-" and options.kind not in (None, "auto", "turns"):
            raise wrong_usage(options, f"--from {options.kind} needs a file; save standard input to one")
        from dialogpt.cli.batch import answer_file

        return answer_file(lambda: open_chat(options), options, number)
    if options.output is not None:
        raise wrong_usage(options, "--output goes with --batch")
    if not options.turns and not options.json:
        raise wrong_usage(options, "name at least one TURN, or pass --json and the dialogue on standard input")
    turns = options.turns or turns_from(stdin_bytes().read())
    from dialogpt.candidates import candidates

    opened = open_chat(options)
    found = candidates(opened, turns, number)
    if options.json:
        print(json.dumps({"replies": described(opened.tokenizer, found)}, ensure_ascii=False))
    else:
        for answer in found:
            print_reply(opened.tokenizer.reply_text(answer.ids))
    return DONE
