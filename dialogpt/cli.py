"""The command line: flags, exit statuses, and every error as one sentence on stderr.

What a command does is left to `dialogpt.commands`. Nothing heavy is imported before a command runs; `--help` and
`--version` import no torch.
"""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from dialogpt import commands
from dialogpt import evaluate_command as evaluate
from dialogpt.errors import CLOSED, FAILED, INTERRUPTED, USAGE, DialogueError
from dialogpt.flags import (
    DTYPES,
    SOURCE,
    add_model_flags,
    add_n_head,
    installed_version,
    positive_number,
    wrong_usage,
)
from dialogpt.interrupt import leaving_at_once
from dialogpt.screen import one_line, printable
from dialogpt.serve import command as serve
from dialogpt.train import command as train


def console() -> NoReturn:
    """The installed command: `main`, and then the end of the process.

    Python's own way out takes torch apart module by module, half a second in which a Ctrl-C makes noise. Nothing is
    left to do there: what was printed is flushed, and files are closed by those who opened them.
    """
    signal.signal(signal.SIGINT, lambda _signal, _frame: os._exit(INTERRUPTED))
    status = main()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None is the process's own.

    Returns:
        0 done, 1 failed, 2 wrong usage, 130 interrupted, 141 stdout was closed.
    """
    return guarded(lambda: _run(argv))


def guarded(command: Callable[[], int]) -> int:
    """Run a command, and make a sentence and an exit status of whatever a person did wrong.

    Args:
        command: returns its exit status.
    """
    if sys.stderr is None:  # closed by the caller; print would write errors to stdout then
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - open as long as the process
    if sys.stdout is None:
        return CLOSED
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    logging.basicConfig(format="dialogpt: %(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        with leaving_at_once():
            status = command()
            sys.stdout.flush()
            return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if _is_closed_pipe(error):
            _abandon_stdout()
            return CLOSED
        sentence = _sentence(error)
        if sentence is None:
            raise
        _abandon_stdout()
        print(f"dialogpt: error: {printable(one_line(sentence))}", file=sys.stderr)
        return FAILED


def _run(argv: Sequence[str] | None) -> int:
    try:
        options, unknown = build_parser().parse_known_args(argv)
        if unknown:  # argparse itself would show the usage of all commands
            raise wrong_usage(options, f"unrecognized arguments: {' '.join(unknown)}")
        status: int = options.run(options)
    except SystemExit as stop:  # argparse, or `wrong_usage`, has said why
        return stop.code if isinstance(stop.code, int) else USAGE
    return status


def _sentence(error: Exception) -> str | None:
    """What to tell a person of an error that is not a fault of this program; None for one that is."""
    if isinstance(error, DialogueError) or type(error).__name__ == "CheckpointError":
        return str(error)  # CheckpointError is known by name, as its module imports torch
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError":
        return (
            "there is not enough memory; try a smaller model, --dtype bfloat16 or, to train, a smaller --batch-tokens"
        )
    if isinstance(error, OSError):
        return f"{error.filename or 'input or output'}: {error.strerror or error}"
    return None


def _is_closed_pipe(error: Exception) -> bool:
    """Whether nobody reads standard output any more: EPIPE or, on Windows, an EINVAL that another flush repeats."""
    if isinstance(error, BrokenPipeError):
        return True
    if not isinstance(error, OSError) or error.errno != errno.EINVAL or error.filename is not None:
        return False
    try:
        sys.stdout.flush()
    except OSError as again:
        return again.errno == errno.EINVAL
    except ValueError:  # it was closed
        return True
    return False


def _abandon_stdout() -> None:
    """Send what is still buffered nowhere: flushing it into a closed pipe at exit would raise once more."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def build_parser() -> argparse.ArgumentParser:
    """All commands and their flags."""
    parser = argparse.ArgumentParser(
        prog="dialogpt", description="Talk with DialoGPT, train it, convert its weights, and look inside a checkpoint."
    )
    parser.add_argument("--version", action="version", version=f"dialogpt {installed_version()}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    chat = subparsers.add_parser(
        "chat", usage="%(prog)s [FLAGS]  (--help lists them)", help="talk; in a pipe, one reply per input line"
    )
    chat.add_argument("--no-history", action="store_true", help="do not remember typed lines in a file")
    add_model_flags(chat)
    chat.set_defaults(run=commands.chat, parser=chat)

    reply = subparsers.add_parser(
        "reply",
        usage="%(prog)s [FLAGS] TURN...  (--help lists them)",
        help="replies to a dialogue given as arguments, or to a file of them",
    )
    reply.add_argument(
        "turns",
        nargs="*",
        metavar="TURN",
        help="what was said, oldest first; the last is answered (after --, one may begin with a dash)",
    )
    reply.add_argument("--num-replies", type=int, metavar="N", help="several replies to the same dialogue")
    reply.add_argument(
        "--json", action="store_true", help='write JSON; without a TURN, read {"turns": [...]} from standard input'
    )
    reply.add_argument(
        "--batch",
        type=Path,
        metavar="FILE",
        help='answer every line of a file, {"turns": [...]} each; - is standard input',
    )
    reply.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="with --batch: where replies go; what is there already is not repeated",
    )
    reply.add_argument(
        "--batch-size", type=positive_number, default=32, metavar="N", help="lines answered together (32)"
    )
    add_model_flags(reply)
    reply.set_defaults(run=commands.reply, parser=reply)

    convert = subparsers.add_parser("convert", help="a published checkpoint to ours, or ours back")
    convert.add_argument("source", help=SOURCE)
    add_n_head(convert)
    convert.add_argument("destination", type=Path, help="a new folder")
    convert.add_argument("--to", choices=("dialogpt", "hf"), default="dialogpt", help="hf: what transformers loads")
    convert.add_argument("--dtype", choices=DTYPES, help="of the written weights (default: as they are)")
    convert.add_argument(
        "--verify", action="store_true", help="compare the result with transformers, or check what can be checked alone"
    )
    convert.set_defaults(run=commands.convert, parser=convert)

    training = subparsers.add_parser(
        "train",
        usage="%(prog)s DATA... --out RUN [FLAGS]  (--help lists them)",
        help="learn from dialogues, from fresh weights or a checkpoint",
    )
    train.add_flags(training)
    training.set_defaults(run=train.run, parser=training)

    evaluating = subparsers.add_parser(
        "evaluate",
        usage="%(prog)s DIALOGUES [--model M | --replies FILE | --system FLAGS]... [FLAGS]  (--help lists them)",
        help="figures of replies and models on a file of dialogues, with intervals",
        conflict_handler="resolve",
    )
    evaluate.add_flags(evaluating)
    evaluating.set_defaults(run=evaluate.run, parser=evaluating)

    serving = subparsers.add_parser(
        "serve",
        usage="%(prog)s [FLAGS]  (--help lists them)",
        help="a page for people, and OpenAI's interface for programs",
        description="Answer many at once from one model: people by a page in the browser, programs by OpenAI's "
        "interface, with the base URL http://HOST:PORT/v1.",
    )
    serve.add_flags(serving)
    serving.set_defaults(run=serve.run, parser=serving)

    info = subparsers.add_parser("info", help="what a checkpoint is")
    info.add_argument("source", help=SOURCE)
    add_n_head(info)
    info.set_defaults(run=commands.info, parser=info)

    cache = subparsers.add_parser("cache", help="checkpoints from the hub that were converted and kept")
    cache.add_argument(
        "--clear",
        nargs="?",
        const=commands.ALL,
        metavar="OWNER/NAME",
        help="remove one of them, or all where none is named",
    )
    cache.set_defaults(run=commands.cache, parser=cache)
    return parser
