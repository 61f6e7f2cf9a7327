"""`dialogpt reply --batch`: a file of dialogues in, a file of replies out, many at once and safe against kills.

Line n of the output answers line n of the input, whatever happens: a line that cannot be answered has its reason there.
An input of another kind than `turns` counts by dialogues, not by lines.
With --output a run that was killed goes on behind the last whole line. Every answer repeats what it answers, so that of
an input that was edited since only what changed is answered anew. With --seed each line has draws of its own, and
its replies depend on no other line (but for the last digits of float32, which may tip two that are equally likely).
"""

from __future__ import annotations

import argparse
import codecs
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from dialogpt.candidates import candidates_for_all
from dialogpt.chat import Chat
from dialogpt.cli.output import described
from dialogpt.cli.printable import one_line, printable
from dialogpt.cli.progress import ProgressLine
from dialogpt.cli.reading import reading_from
from dialogpt.cli.signals import interrupts_flagged
from dialogpt.cli.standard_input import stdin_bytes
from dialogpt.data import Dialogue, Problem
from dialogpt.data.detect import kind_of
from dialogpt.data.formats.kind import Kind
from dialogpt.data.read import read_one
from dialogpt.data.settings import AUTO
from dialogpt.data.transform import Transformer
from dialogpt.decoding.noise import fresh_generator
from dialogpt.decoding.stop import Stop, Stopped
from dialogpt.errors import DONE, FAILED, DialogueError
from dialogpt.files import json_input
from dialogpt.files.disk import lock_output, reason_of
from dialogpt.generation import Reply

SHOWN = 5  # problems of an input of another kind
SEED_STRIDE = 1_000_003  # a prime, so that lines of runs with neighbouring seeds sample other replies


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
        kind = _kind(options)
        source = stdin_bytes() if str(options.batch) == "-" else files.enter_context(_opened(options.batch, kind))
        output: IO[bytes] = sys.stdout.buffer
        lines = _lines(source, options, kind)
        total = _count(source) if kind is None else None
        earlier = None
        if options.output is not None:
            _require_output(options.output, source)
            files.callback(_held(options.output))  # first, as what is entered last is left first
            output = files.enter_context(_output(options.output))
            earlier = _Earlier(output, options.output)
            lines = earlier.skip(lines, lambda: _count(source) if kind is None else _count_dialogues(options, kind))
        chat = open_chat()
        if earlier is not None:
            files.callback(earlier.begin())
        base = fresh_generator().initial_seed() if options.seed is None else options.seed
        counts = Counter[str]()
        with interrupts_flagged() as interrupted, ProgressLine() as progress:
            progress.count("answering", 0 if earlier is None else earlier.there, total, "lines")

            def stop() -> bool:
                progress.refresh()
                return interrupted()

            for group in _grouped(lines, options.batch_size):
                if interrupted():
                    raise KeyboardInterrupt
                kept = {} if earlier is None else earlier.kept(group)
                found = _answers(chat, [line for line in group if line.number not in kept], number, base, stop)
                answers = (
                    kept.get(line.number)
                    or _answered(chat, line, line.problem or found[line.number], counts, progress.say)
                    for line in group
                )
                _store(output, b"".join(answers), options.output)
                progress.count("answering", group[-1].number, total, "lines")
        if earlier is not None:
            earlier.end()
    there, failed = (earlier.there, earlier.failed) if earlier is not None else (0, 0)
    answered, failed = counts["answered"] - counts["failed"], failed + counts["failed"]
    print(f"dialogpt: {answered} lines answered, {there} were there already, {failed} failed", file=sys.stderr)
    if earlier is not None and earlier.changed:
        print(f"dialogpt: {earlier.changed} of them had changed in the input and were answered again", file=sys.stderr)
    return FAILED if failed else DONE


def _answered(
    chat: Chat, line: Line, answer: list[Reply] | str, counts: Counter[str], say: Callable[[str], None]
) -> bytes:
    """A line of the output; counts what it is, and says why it is none."""
    counts["answered"] += 1
    if isinstance(answer, str):
        counts["failed"] += 1
        say(f"dialogpt: line {line.number}: {answer}")
        content: dict[str, Any] = {**line.others, "line": line.number, "error": answer}
    else:
        content = {**line.others, "replies": described(chat.tokenizer, answer)}
    return json.dumps(content, ensure_ascii=False).encode(errors="replace") + b"\n"


class _Earlier:
    """What earlier runs wrote to an output, line by line.

    Where the input has changed, what they wrote is set aside in a file beside, from which lines that are still right
    are taken; a kill meanwhile loses nothing.

    Attributes:
        there: how many lines are kept.
        failed: how many of these are failures.
        changed: how many are answered anew.
    """

    def __init__(self, output: IO[bytes], path: Path) -> None:
        """Look at an output.

        Raises:
            DialogueError: it is not of this command's making: it would be cut off, and might be somebody's notes.
        """
        self.output, self.path = output, path
        self.aside = path.with_name(f".{path.name}.before")
        self.there = self.failed = self.changed = self._whole = 0
        self._count = sum(1 for _ in _entries(output, path))
        self._left: Iterator[tuple[dict[str, Any], bytes]] = iter(())
        self._close: Callable[[], None] = lambda: None

    def skip(self, lines: Iterator[Line], count: Callable[[], int | None]) -> Iterator[Line]:
        """The lines of the input behind those whose answers stand at the beginning of the output.

        Args:
            lines: of the input.
            count: counts them without taking any; None where it cannot, as of a pipe.

        Raises:
            DialogueError: the input is shorter than the output.
        """
        self.output.seek(0)
        entries = _entries(self.output, self.path)
        compared = 0
        for line in lines:
            entry, raw = next(entries, ({}, b""))
            compared += 1
            if raw and self._is_answer(entry, line):
                self._keep(entry)
                self._whole += len(raw)
                continue
            if raw:
                self._require_as_long(count())
            return chain([line], lines)
        self._require_as_long(compared)
        return iter(())

    def _require_as_long(self, count: int | None) -> None:
        """Raise if the input is known to have fewer lines than the output."""
        if count is not None and count < self._count:
            raise DialogueError(
                f"the output has {self._count} lines and the input {count}; it belongs to another input"
            )

    def begin(self) -> Callable[[], None]:
        """Set aside what stands behind the lines that are kept, and cut it off; returns what closes the file."""
        if self._count > self.there and not self.aside.exists():
            temporary = self.path.with_name(f".{self.path.name}.partial")
            shutil.copyfile(self.path, temporary)
            temporary.replace(self.aside)
        self.output.truncate(self._whole)
        self.output.seek(self._whole)
        if self.aside.exists():
            file = self.aside.open("rb")
            self._left = islice(_entries(file, self.aside), self.there, None)
            self._close = file.close
        return self._close

    def kept(self, group: list[Line]) -> dict[int, bytes]:
        """Of the next lines those that were answered before, and their answers."""
        found = {}
        for line in group:
            entry, raw = next(self._left, ({}, b""))
            if raw and self._is_answer(entry, line):
                self._keep(entry)
                found[line.number] = raw
            elif raw:
                self.changed += 1
        return found

    def end(self) -> None:
        """Everything is answered: forget what was set aside."""
        self._close()  # on Windows a file that is open stays
        self.aside.unlink(missing_ok=True)

    def _keep(self, entry: dict[str, Any]) -> None:
        self.there += 1
        self.failed += "replies" not in entry

    @staticmethod
    def _is_answer(entry: dict[str, Any], line: Line) -> bool:
        return bool(_without_answer(entry) == line.others)


def _without_answer(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in ("replies", "error", "line")}


def _answers(chat: Chat, group: list[Line], number: int, base: int, stop: Stop) -> dict[int, list[Reply] | str]:
    """Replies to each line that is a dialogue, or why it cannot be answered; by the line's number.

    Raises:
        KeyboardInterrupt: `stop` returned true.
    """
    good = [line for line in group if line.problem is None]

    def answer(lines: list[Line]) -> list[list[Reply]]:
        seeds = [(base + SEED_STRIDE * line.number) % (1 << 63) for line in lines]
        return candidates_for_all(chat, [line.turns for line in lines], number, seeds, stop)

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


def _opened(path: Path, kind: Kind | None) -> IO[bytes]:
    """The input as bytes; of a folder, which some kinds are, there are none.

    Raises:
        DialogueError: it cannot be read.
    """
    try:
        if kind is not None and path.is_dir():
            return BytesIO()
        if path.exists() and not (path.is_file() or path.is_dir()):  # it would be looked at, and then read again
            raise DialogueError(f"{path} is not a plain file; send it to standard input, and pass --batch -")
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


def _store(output: IO[bytes], answers: bytes, path: Path | None) -> None:
    """Write answers, and wait until they are on the disk; the path is None for standard output.

    Raises:
        DialogueError: the disk is full, say.
        OSError: standard output cannot be written.
    """
    try:
        output.write(answers)
        output.flush()
        if path is not None:
            os.fsync(output.fileno())
    except OSError as error:
        if path is None:
            raise
        with suppress(OSError):  # what is still buffered
            output.close()
        raise DialogueError(
            f"{path} cannot be written: {reason_of(error)}; run the command again to go on after its last whole line"
        ) from None


def _held(path: Path) -> Callable[[], None]:
    """Keep other runs from an output, by a lock file beside it; returns what releases it.

    Raises:
        DialogueError: another run has it, or it cannot be locked.
    """
    try:
        return lock_output(path)  # links in a circle are found on opening
    except OSError as error:
        raise DialogueError(str(error)) from None


def _entries(file: IO[bytes], path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The lines of an output; a last one that a kill left unfinished does not count.

    Raises:
        DialogueError: it holds something else.
    """
    for raw in file:
        entry = None
        with suppress(ValueError):
            entry = json_input.parse(raw.decode())
        ours = isinstance(entry, dict) and ("replies" in entry or "error" in entry)
        if not raw.endswith(b"\n") and (ours or (raw.startswith(b"{") and entry is None)):
            return
        if not ours:
            raise DialogueError(f"{path} holds something else than replies; name another --output")
        assert isinstance(entry, dict)
        yield entry, raw


def _count(source: IO[bytes]) -> int | None:
    """How many lines an input has, which is left where it is; None of a pipe."""
    if not source.seekable():
        return None
    place = source.tell()
    source.seek(0)
    count = sum(1 for _ in source)
    source.seek(place)
    return count


def _count_dialogues(options: argparse.Namespace, kind: Kind) -> int:
    """How many dialogues an input of another kind has."""
    return sum(1 for _ in _dialogues(options, kind, lambda problem: None))


def _dialogues(options: argparse.Namespace, kind: Kind, on_problem: Callable[[Problem], None]) -> Iterator[Dialogue]:
    reading = replace(reading_from(options), min_turns=1)
    return read_one(options.batch, kind, Transformer(reading, trains=False), on_problem)


def _kind(options: argparse.Namespace) -> Kind | None:
    """What the input is; None where each line is a dialogue in JSON."""
    reading = reading_from(options)
    kind = None
    if str(options.batch) != "-":
        with suppress(DialogueError) if reading.kind == AUTO else nullcontext():
            kind = kind_of(options.batch, reading)
    return None if kind is None or kind.name == "turns" else kind


def _lines(source: IO[bytes], options: argparse.Namespace, kind: Kind | None) -> Iterator[Line]:
    """The lines of the input, or the dialogues of an input of another kind."""
    if kind is None:
        yield from _lines_of_json(source)
        return
    problems: list[Problem] = []
    for number, dialogue in enumerate(_dialogues(options, kind, problems.append), 1):
        yield Line(number, dialogue.turns, {"turns": dialogue.turns})
    for problem in problems[:SHOWN]:
        print(f"dialogpt: left out: {printable(one_line(str(problem)))}", file=sys.stderr)
    if len(problems) > SHOWN:
        print(f"dialogpt: and {len(problems) - SHOWN} more; dialogpt import lists them all", file=sys.stderr)


def _raw_lines(source: IO[bytes]) -> Iterator[bytes]:
    """The lines of the input as bytes.

    Raises:
        DialogueError: it cannot be read any more; otherwise the error would be taken for the output's.
    """
    try:
        yield from source
    except OSError as error:
        raise DialogueError(f"{getattr(source, 'name', 'the input')} cannot be read: {error.strerror}") from None


def _lines_of_json(source: IO[bytes]) -> Iterator[Line]:
    for number, raw in enumerate(_raw_lines(source), 1):
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
        others = _without_answer(others)
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
            yield Line(number, [], others, 'it holds no turns; expected {"turns": ["what was said", ...]}')
            continue
        yield Line(number, turns, others)


def _grouped(lines: Iterator[Line], size: int) -> Iterator[list[Line]]:
    group: list[Line] = []
    for line in lines:
        group.append(line)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
