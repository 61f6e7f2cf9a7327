"""`dialogpt chat`: talk in a terminal, or answer the lines of a pipe."""

from __future__ import annotations

import argparse
import codecs
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from dialogpt.cli.opening import open_chat
from dialogpt.cli.options import add_model_flags, check_reply_count, generation_from, installed_version, wrong_usage
from dialogpt.cli.output import print_reply
from dialogpt.cli.standard_input import stdin_bytes
from dialogpt.errors import DONE, DialogueError

if TYPE_CHECKING:
    from dialogpt.chat import Chat


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its flags."""
    parser = subparsers.add_parser(
        "chat",
        usage="%(prog)s [FLAGS] [NAME]  (--help lists them)",
        help="talk; in a pipe, one reply per input line",
        everyday=(
            *("--model", "--continue", "--no-history", "--temperature", "--top-p", "--max-new-tokens", "--greedy"),
            *("--history-tokens", "--seed", "--dtype", "--device"),
        ),
        examples=(
            "dialogpt chat                                       # tiny, which comes along",
            "dialogpt chat microsoft/DialoGPT-small --temperature 0.6",
            "dialogpt chat RUN                                   # the best checkpoint of a training run",
        ),
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the model; the same as --model NAME")
    parser.add_argument("--no-history", action="store_true", help="keep neither typed lines nor conversations")
    parser.add_argument(
        "--continue", action="store_true", dest="go_on", help="go on with the conversation that was kept last"
    )
    add_model_flags(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Talk: in a terminal, or through a pipe."""
    if options.name is not None:
        if options.model not in (options.parser.get_default("model"), options.name):
            raise wrong_usage(options, "NAME and --model name different models; omit one of them")
        options.model = options.name
    lines = stdin_bytes()
    if options.go_on and options.no_history:
        raise wrong_usage(options, "--continue needs what --no-history does not keep; omit one of them")
    if options.go_on and not (lines.isatty() and sys.stdout.isatty()):
        raise wrong_usage(options, "--continue is for talking in a terminal; omit it in a pipe")
    check_reply_count(options, generation_from(options), 1)
    opened = open_chat(options)
    if not (lines.isatty() and sys.stdout.isatty()):
        answer_lines(opened, lines, print_reply)
        return DONE
    import torch

    from dialogpt.cli.terminal.keyboard import open_terminal
    from dialogpt.model import GPT2

    with torch.device("meta"):  # packed weights are no parameters
        parameters = sum(parameter.numel() for parameter in GPT2(opened.model.config).parameters())
    title = (
        f"dialogpt {installed_version()}: {options.model}, {parameters / 1e6:.1f} million parameters, {options.dtype}"
        f"{'' if options.draft_model is None else f'; draft model {options.draft_model}'}."
    )
    return open_terminal(opened, title, remember=not options.no_history, go_on=options.go_on)


def answer_lines(chat: Chat, lines: BinaryIO, write: Callable[[str], None]) -> None:
    """Answer every line read: a reply, or nothing for a blank line.

    Raises:
        DialogueError: a line is not UTF-8; its number is named.
    """
    for number, raw in enumerate(lines, 1):
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)  # PowerShell begins what it pipes with it
        try:
            text = raw.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise DialogueError(
                f"line {number} of the input is not UTF-8 (byte 0x{raw[error.start]:02x} at place {error.start + 1}); "
                f"convert it to UTF-8 first"
            ) from None
        write(chat.reply(text) if text.strip() else "")
