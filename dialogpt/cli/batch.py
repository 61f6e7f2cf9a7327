"""`dialogpt reply --batch`: a file of dialogues in, a file of replies out, many at once and safe against kills.

Line n of the output answers line n of the input, whatever happens: a line that cannot be answered has its reason there.
With --output a run that was killed goes on behind the last whole line. With --seed each line has draws of its own, and
its replies depend on no other line (but for the last digits of float32, which may tip two that are equally likely).
"""

from __future__ import annotations

import argparse
import codecs
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dialogpt import json_input
from dialogpt.chat import Chat
from dialogpt.cli.output import described
from dialogpt.cli.signals import flagged
from dialogpt.cli.standard_input import stdin_bytes
from dialogpt.decoding.loop import Stop, Stopped, fresh_generator
from dialogpt.errors import DONE, FAILED, DialogueError
from dialogpt.generation import Reply
from dialogpt.weights.disk import lock, reason_of

EVERY = 1.0  # seconds between progress lines
SEED_STRIDE = 1_000_003  # a prime, so that lines of runs with neighbouring seeds have other draws


@dataclass(frozen=True)
class Line:
    """One line of the input: a dialogue and what else it holds, or why it is none."""

    number: int
    turns: list[str]
    others: dict[str, Any]
    problem: str | None = None


def answer_file(open_chat: Callable[[], Chat], options: argparse.Namespace, number: int) -> int:
    """Answer every line of a file.

    Args:
        open_chat: opens the model, once the files are known to be usable.
        options: batch, output, batch_size and seed are used.
        number: how many replies to each line.

    Raises:
        DialogueError: the input cannot be read, or the output is something else.
    """
    with ExitStack() as files:
        source = stdin_bytes() if str(options.batch) == "-" else files.enter_context(_opened(options.batch))
        output: IO[bytes] = sys.stdout.buffer
        done = failed = 0
        if options.output is not None:
            _require_output(options.output, source)
            files.callback(_held(options.output))  # first, as what is entered last is left first
            output = files.enter_context(_output(options.output))
            done, failed, whole = _answered(output, options.output)
        chat = open_chat()
        if options.output is not None:
            output.truncate(whole)
            output.seek(whole)
        base = fresh_generator().initial_seed() if options.seed is None else options.seed
        answered = 0
        shown = time.monotonic()
        with flagged() as interrupted:
            for group in _grouped(_lines(source, done), options.batch_size):
                if interrupted():
                    raise KeyboardInterrupt
                found = _answers(chat, group, number, base, interrupted)
                for line in group:
                    answer = line.problem or found[line.number]
                    if isinstance(answer, str):
                        failed += 1
                        print(f"dialogpt: line {line.number}: {answer}", file=sys.stderr)
                        content: dict[str, Any] = {**line.others, "line": line.number, "error": answer}
                    else:
                        content = {**line.others, "replies": described(chat.tokenizer, answer)}
                    output.write(json.dumps(content, ensure_ascii=False).encode(errors="replace") + b"\n")
                output.flush()
                if options.output is not None:
                    os.fsync(output.fileno())
                answered += len(group)
                if time.monotonic() - shown > EVERY:
                    shown = time.monotonic()
                    print(f"dialogpt: {done + answered} lines answered", file=sys.stderr)
    print(f"dialogpt: {answered} lines answered, {done} were there already, {failed} failed", file=sys.stderr)
    return FAILED if failed else DONE


def _answers(chat: Chat, group: list[Line], number: int, base: int, stop: Stop) -> dict[int, list[Reply] | str]:
    """Replies to each line that is a dialogue, or why it cannot be answered; by the line's number.

    Raises:
        KeyboardInterrupt: `stop` said so.
    """
    good = [line for line in group if line.problem is None]

    def answer(lines: list[Line]) -> list[list[Reply]]:
        seeds = [(base + SEED_STRIDE * line.number) % (1 << 63) for line in lines]
        return chat.candidates_for_all([line.turns for line in lines], number, seeds, stop)

    found: dict[int, list[Reply] | str] = {}
    try:
        try:
            found |= zip((line.number for line in good), answer(good), strict=True)
        except DialogueError:  # one of them: find out which
            for line in good:
                try:
                    (found[line.number],) = answer([line])
                except DialogueError as error:
                    found[line.number] = str(error)
    except Stopped:
        raise KeyboardInterrupt from None
    return found


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise DialogueError(f"{path} cannot be read: {error.strerror}") from None


def _require_output(path: Path, source: IO[bytes]) -> None:
    """Refuse an output that is no plain file, or the input.

    Raises:
        DialogueError: as said.
    """
    try:
        if path.exists() and not path.is_file():
            raise DialogueError(f"{path} is not a plain file; leave --output away to write to standard output")
        same = False
        with suppress(OSError, ValueError):  # the input has no file of its own
            same = path.exists() and os.path.samestat(path.stat(), os.fstat(source.fileno()))
        if same:
            raise DialogueError(f"{path} is the input too; name another --output")
    except OSError as error:
        raise DialogueError(f"{path} cannot be written: {reason_of(error)}") from None


def _output(path: Path) -> IO[bytes]:
    """Open the output, and change nothing in it yet.

    Raises:
        DialogueError: it cannot be written.
    """
    try:
        return path.open("r+b" if path.exists() else "w+b")
    except OSError as error:
        raise DialogueError(f"{path} cannot be written: {reason_of(error)}") from None


def _held(path: Path) -> Callable[[], None]:
    """Keep other runs from an output, by a lock file beside it; returns what releases it.

    Raises:
        DialogueError: another run has it, or it cannot be locked.
    """
    where = Path(os.path.realpath(path))  # two names of one file are one lock; links in a circle are found on opening
    try:
        return lock(where.with_name(f".{where.name}.lock"))
    except BlockingIOError:
        raise DialogueError(f"{path} is being written by another run; wait for it to end") from None
    except OSError as error:
        raise DialogueError(str(error)) from None


def _answered(file: IO[bytes], path: Path) -> tuple[int, int, int]:
    """What an output holds already: whole lines, how many of them are failures, and where they end.

    A last line that a kill left unfinished does not count. What is there must be of this command's making: it would be
    cut off otherwise, and might be somebody's notes.
    """
    lines = failures = end = 0
    for raw in file:
        entry = None
        with suppress(ValueError, RecursionError):
            entry = json.loads(raw)
        ours = isinstance(entry, dict) and ("replies" in entry or "error" in entry)
        if not raw.endswith(b"\n") and (ours or (raw.startswith(b"{") and entry is None)):
            break
        if not ours:
            raise DialogueError(f"{path} holds something else than replies; name another --output")
        assert isinstance(entry, dict)
        lines, failures, end = lines + 1, failures + ("replies" not in entry), end + len(raw)
    return lines, failures, end


def _lines(source: IO[bytes], done: int) -> Iterator[Line]:
    """The lines that are not answered yet."""
    number = 0
    for number, raw in enumerate(source, 1):
        if number <= done:
            continue
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)  # Windows' tools begin files with it
        if not raw.strip():
            yield Line(number, [], {}, "it is empty")
            continue
        try:
            content = json_input.parse(raw.decode())
        except ValueError as error:
            yield Line(number, [], {}, f"it is not valid JSON in UTF-8 ({str(error)[:100]})")
            continue
        turns = content.get("turns") if isinstance(content, dict) else None
        others = content if isinstance(content, dict) else {}
        others = {name: value for name, value in others.items() if name not in ("replies", "error", "line")}
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
            yield Line(number, [], others, 'it holds no turns; expected {"turns": ["what was said", ...]}')
            continue
        yield Line(number, turns, others)
    if number < done:
        raise DialogueError(f"the output has {done} lines and the input {number}; it belongs to another input")


def _grouped(lines: Iterator[Line], size: int) -> Iterator[list[Line]]:
    group: list[Line] = []
    for line in lines:
        group.append(line)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
