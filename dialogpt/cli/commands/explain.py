"""`dialogpt explain`: look inside a reply, in the terminal, as a page, as JSON or as a picture."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from dialogpt.cli.opening import open_chat
from dialogpt.cli.options import add_model_flags, check_reply_count, generation_from, wrong_usage
from dialogpt.cli.printable import printable
from dialogpt.cli.signals import interrupts_flagged
from dialogpt.errors import DONE, DialogueError


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its flags."""
    parser = subparsers.add_parser(
        "explain",
        usage="%(prog)s [FLAGS] TURN...  (--help lists them)",
        help="look inside a reply: what else could have come, which layer decided, where attention went",
        everyday=("--model", "--reply", "--out", "--png", "--json", "--text", "--greedy", "--seed", "--dtype"),
        examples=('dialogpt explain "How are you?" --out PAGE.html', 'dialogpt explain "How are you?" --greedy --text'),
    )
    parser.add_argument(
        "turns",
        nargs="*",
        metavar="TURN",
        help="what was said, oldest first; the last is answered (after --, one may begin with a dash)",
    )
    parser.add_argument("--reply", metavar="TEXT", help="look into this answer instead of generating one")
    parser.add_argument(
        "--out", type=Path, metavar="PAGE.html", help="write a page, which loads nothing from elsewhere"
    )
    parser.add_argument("--png", type=Path, metavar="FILE.png", help="write the panels as a picture (needs matplotlib)")
    parser.add_argument("--json", action="store_true", help="write all the numbers to standard output, as JSON")
    parser.add_argument("--text", action="store_true", help="write the essentials to standard output (the default)")
    add_model_flags(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Answer a dialogue, and show what the network computed on its way."""
    if not options.turns:
        raise wrong_usage(options, "name at least one TURN")
    if options.json and options.text:
        raise wrong_usage(options, "--json and --text both write to standard output; omit one of them")
    if options.reply is None:
        check_reply_count(options, generation_from(options), 1)
    for path in filter(None, (options.out, options.png)):
        _require_writable(path)
    chat = open_chat(options)
    from dialogpt.files.disk import write_atomically
    from dialogpt.inspect import explain, render_page
    from dialogpt.inspect.text import render_text

    name = Path(options.model).name or options.model
    inspection = explain(chat, options.turns, options.reply, seed=options.seed, name=name)
    if options.json:
        print(json.dumps(inspection, ensure_ascii=False, allow_nan=False))
    elif options.text or (options.out is None and options.png is None):
        print(render_text(inspection, colours=has_true_colour(), width=shutil.get_terminal_size((80, 24)).columns))
    with interrupts_flagged():  # so that no half of a file is left
        if options.out is not None:
            write_atomically(options.out, render_page(inspection))
            print(f"written to {printable(str(options.out))}; open it in a browser", file=sys.stderr)
        if options.png is not None:
            from dialogpt.inspect.picture import draw_picture

            draw_picture(inspection, options.png)
            print(f"written to {printable(str(options.png))}", file=sys.stderr)
    return DONE


def has_true_colour() -> bool:
    """Whether standard output is a terminal that says it has 24-bit colour (COLORTERM), and may use it (NO_COLOR)."""
    colours = os.environ.get("COLORTERM") in ("truecolor", "24bit")
    return colours and sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _require_writable(path: Path) -> None:
    """Refuse a name that cannot become a file, before a model is loaded."""
    if path.is_dir():
        raise DialogueError(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise DialogueError(f"there is no folder {path.parent}; create it, or name a file elsewhere")
    from dialogpt.files.disk import require_replaceable

    require_replaceable(path)
