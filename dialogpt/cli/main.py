"""The command line: flags, exit statuses, and every error as one sentence on stderr.

What a command does is left to `dialogpt.cli.commands`. Nothing heavy is imported before a command runs; `--help` and
`--version` import no torch.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from dialogpt.cli.commands import (
    bench,
    cache,
    chat,
    completion,
    convert,
    data,
    evaluate,
    explain,
    import_,
    info,
    push,
    reply,
    serve,
    train,
)
from dialogpt.cli.options import installed_version, wrong_usage
from dialogpt.cli.parser import CommandParser
from dialogpt.cli.printable import one_line, printable
from dialogpt.cli.signals import interrupts_exiting
from dialogpt.errors import CLOSED, FAILED, INTERRUPTED, USAGE, DialogueError, did_you_mean

COMMANDS = (  # in the order of --help
    chat,
    reply,
    explain,
    convert,
    import_,
    train,
    evaluate,
    data,
    serve,
    info,
    cache,
    bench,
    push,
    completion,
)


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
        with interrupts_exiting():
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
            hint = did_you_mean(unknown[0].partition("=")[0], (f"--{flag}" for flag in options.parser.flags()))
            raise wrong_usage(options, f"unrecognized arguments: {' '.join(unknown)}{hint}")
        status: int = options.run(options)
    except SystemExit as stop:  # argparse, or `wrong_usage`, has said why
        return stop.code if isinstance(stop.code, int) else USAGE
    return status


def _sentence(error: Exception) -> str | None:
    """What to tell a person of an error that is not a fault of this program; None for one that is."""
    if isinstance(error, DialogueError):
        return str(error)
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


def build_parser() -> CommandParser:
    """All commands and their flags."""
    parser = CommandParser(
        prog="dialogpt", description="Talk with DialoGPT, train it, convert its weights, and look inside a checkpoint."
    )
    parser.add_argument("--version", action="version", version=f"dialogpt {installed_version()}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(subparsers)
    parser.complete_commands()
    return parser
