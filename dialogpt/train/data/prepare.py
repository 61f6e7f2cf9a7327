"""Dialogue files to memory-mapped token files, so that data larger than memory can be trained on.

A prepared folder holds

    tokens.bin      the ids of all turns, each turn ended by the end token: uint16, or uint32 for a large vocabulary
    dialogues.bin   for each dialogue, where its tokens and its turns end: two int64
    weights.bin     a float32 for each turn
    problems.txt    the lines that were skipped or shortened, with the reasons; empty if there are none
    data.json       the format, the counts and the sources of these files

Files are read in blocks of 8 MiB, by several processes if there are many blocks, so that memory does not grow with the
data. Batching is left to `dialogpt.train.data.batches`.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby, islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dialogpt.data import KINDS, Dialogue, Problem
from dialogpt.data.detect import kind_of
from dialogpt.data.formats.jsonl import is_array
from dialogpt.data.import_ import size_of
from dialogpt.data.read import read_one
from dialogpt.data.report import Statistics
from dialogpt.data.source import UTF16, Source, lines_of
from dialogpt.errors import DialogueError
from dialogpt.files import own_files
from dialogpt.history import BOT, USER
from dialogpt.settings import choice
from dialogpt.tokenizer import Tokenizer
from dialogpt.train.data.dialogues import Format
from dialogpt.weights import Vocabulary
from dialogpt.weights.formats import new_folder, read_json, sha256_of, write_json

PREPARED_VERSION = 1
BLOCK = 8 << 20  # bytes of text that one task reads; what it makes of them takes about as much again
MAX_SHOWN = 5  # problems that data.json repeats
CHECKED = 1 << 22  # tokens that are compared with the index at a time
MIN_WEIGHT, MAX_WEIGHT = np.float32(1e-6), np.float32(1e6)  # of those that are not 0, as `dialogpt.data` takes them
SHOWN_TURNS = 100  # of a dialogue in a preview; a line of 4 MiB may hold 800,000
BLOCK_TOKENS = 1 << 20  # of files that are read whole: what is held before it is written

Part = tuple[Path, str, int, int]  # a file, its kind, and the range of bytes in which the block's lines start
Progress = Callable[
    [int, int], None
]  # receives (bytes read, total bytes); an exception stops preparing, and no files remain


_SCHEMA: own_files.Schema = {  # of what is used of data.json
    "eos_id": own_files.COUNT,
    "dtype": choice("uint16", "uint32"),
    "vocabulary_size": own_files.AT_LEAST_ONE,
    "tokens": own_files.AT_LEAST_ONE,
    "dialogues": own_files.AT_LEAST_ONE,
    "turns": own_files.AT_LEAST_ONE,
    "targets": own_files.COUNT,
    "unusable": own_files.COUNT,
    "shortened": own_files.COUNT,
    "warnings": own_files.TEXTS,
    "first_problems": own_files.TEXTS,
    "sources": own_files.TEXT_BY_TEXT,
}


class TokenFiles:
    """A prepared folder, mapped into memory.

    Attributes:
        folder: its path.
        tokens: the ids of all dialogues, concatenated.
        ends: (dialogues, 2) the end offsets of each dialogue, in tokens and in turns.
        weights: the weight of each turn.
        eos_id: the id that ends every turn.
        about: the content of data.json.
    """

    def __init__(self, folder: Path) -> None:
        """Map a folder that `prepare` made.

        Raises:
            CheckpointError: its data.json cannot be read.
            DialogueError: it has another version, or files of an unexpected length.
        """
        self.folder = folder
        self.about = about = read_json(folder / "data.json")
        if about.get("prepared_version") != PREPARED_VERSION:
            raise DialogueError(f"{folder} was prepared by another version; prepare the dialogues again")
        own_files.require({"targets": 0, "warnings": [], "sources": {}, **about}, _SCHEMA, str(folder / "data.json"))
        self.eos_id: int = about["eos_id"]
        self.tokens = _mapped(folder / "tokens.bin", np.dtype(about["dtype"]), about["tokens"])
        self.ends = _mapped(folder / "dialogues.bin", np.dtype(np.int64), 2 * about["dialogues"]).reshape(-1, 2)
        self.weights = _mapped(folder / "weights.bin", np.dtype(np.float32), about["turns"])
        self._check_content()

    def _check_content(self) -> None:
        """Raise unless tokens, turns and weights are what the index says; all is read once, a part at a time."""
        totals = [self.about["tokens"], self.about["turns"]]
        within = ((self.ends > 0) & (self.ends <= totals)).all()  # before differences, which may overflow
        if not within or (np.diff(self.ends, axis=0, prepend=0) < 1).any() or self.ends[-1].tolist() != totals:
            raise self._damaged("dialogues.bin")
        turns = done = 0  # turns that end before a part, dialogues that do
        for start in range(0, totals[0], CHECKED):
            part = np.asarray(self.tokens[start : start + CHECKED])
            if int(part.max()) >= self.about["vocabulary_size"]:
                raise self._damaged("tokens.bin")
            turn_ends = start + 1 + np.flatnonzero(part == self.eos_id)
            after = int(np.searchsorted(self.ends[:, 0], start + len(part), "right"))
            ends = np.asarray(self.ends[done:after])
            places = np.searchsorted(turn_ends, ends[:, 0])  # of each dialogue's end among those of turns
            known = places < len(turn_ends)
            if not known.all() or (turn_ends[places] != ends[:, 0]).any() or (turns + places + 1 != ends[:, 1]).any():
                where = self.folder / "tokens.bin"
                raise DialogueError(f"{where} does not match dialogues.bin beside it; prepare the dialogues again")
            turns, done = turns + len(turn_ends), after
        for start in range(0, totals[1], CHECKED):
            weights = np.asarray(self.weights[start : start + CHECKED])
            if not ((weights == 0) | ((weights >= MIN_WEIGHT) & (weights <= MAX_WEIGHT))).all():  # a NaN is neither
                raise self._damaged("weights.bin")

    def _damaged(self, name: str) -> DialogueError:
        return DialogueError(f"{self.folder / name} is damaged; prepare the dialogues again")

    def check(self, vocabulary: Vocabulary, form: Format) -> None:
        """Check that the folder was prepared for this vocabulary and format.

        Raises:
            DialogueError: it was not; the message names what differs.
        """
        wanted = {
            "fewest_turns": form.fewest_turns,
            "reverse": form.reverse,
            "vocabulary": digest(vocabulary),
            "vocabulary_size": vocabulary.size,
            "eos_id": vocabulary.eos_id,
        }
        others = [name for name, value in wanted.items() if self.about.get(name) != value]
        if others:
            raise DialogueError(f"{self.folder} was prepared with another {', '.join(others)}; prepare the files again")


def digest(vocabulary: Vocabulary) -> str:
    """A short name of what text becomes which ids."""
    content: list[Any] = [sorted(vocabulary.ids.items()), vocabulary.merges, sorted(vocabulary.added.items())]
    content += [vocabulary.turn_prefix] if vocabulary.turn_prefix else []
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _mapped(path: Path, dtype: np.dtype[Any], length: int) -> NDArray[Any]:
    if not path.is_file() or path.stat().st_size != length * dtype.itemsize:
        raise DialogueError(f"{path} does not hold the {length:,} numbers that its data.json names; prepare it again")
    return np.memmap(path, dtype, "r")


def prepare(
    paths: Sequence[Path],
    folder: Path,
    vocabulary: Vocabulary,
    form: Format,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> TokenFiles:
    """Turn dialogue files into a prepared folder, which appears only when it is complete.

    Args:
        paths: files, or folders of some kinds.
        folder: a new folder.
        vocabulary: the vocabulary of the model to train.
        form: how lines are read.
        workers: number of processes; more than one needs an importable main module, as spawn does.
        progress: see `Progress`.

    Raises:
        DialogueError: a file cannot be read, or none holds a usable dialogue; the first reason is named.
        CheckpointError: the folder exists or cannot be written.
    """
    sizes = [size_of(path) for path in paths]
    dtype = np.dtype(np.uint16 if vocabulary.size <= 1 << 16 else np.uint32)
    with new_folder(folder) as temporary:
        prepared = _write_blocks(temporary, _blocks(paths, vocabulary, form, workers), dtype, sum(sizes), progress)
        counts, shown = prepared.counts, prepared.shown
        if [size_of(path) for path in paths] != sizes:
            raise DialogueError(
                f"{', '.join(map(str, paths))} changed while it was read; try again when it is complete"
            )
        if not counts["dialogues"]:
            reason = f"the first problem: {shown[0]}" if shown else "the files are empty"
            raise NothingUsable(f"no dialogue in {', '.join(map(str, paths))} can be used; {reason}")
        about = {
            "prepared_version": PREPARED_VERSION,
            "eos_id": vocabulary.eos_id,
            "dtype": dtype.name,
            "vocabulary": digest(vocabulary),
            "vocabulary_size": vocabulary.size,
            "warnings": prepared.statistics.warnings(),
            "sources": {str(path): sha256_of(_files_of(path)) for path in paths},
        }
        write_json(temporary / "data.json", {**about, **counts, **asdict(form), "first_problems": shown})
    return TokenFiles(folder)


@dataclass
class _Prepared:
    """Counts and problems of the blocks that were written.

    Attributes:
        counts: the number of tokens, dialogues, turns and so on.
        statistics: merged over all blocks.
        shown: the first problems, as sentences.
    """

    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("tokens", "dialogues", "turns", "targets", "unusable", "shortened"), 0)
    )
    statistics: Statistics = field(default_factory=Statistics)
    shown: list[str] = field(default_factory=list)

    def add(self, block: _Block) -> None:
        """Count a block."""
        self.counts["tokens"] += len(block.tokens)
        self.counts["dialogues"] += len(block.ends)
        self.counts["turns"] += len(block.weights)
        self.counts["targets"] += block.targets
        self.counts["shortened"] += block.shortened
        self.counts["unusable"] += len(block.problems) - block.shortened
        self.statistics.merge(block.statistics)


def _write_blocks(
    folder: Path,
    blocks: Iterator[tuple[Path, int, _Block]],
    dtype: np.dtype[Any],
    size: int,
    progress: Progress | None,
) -> _Prepared:
    """Write the token files and the list of problems."""
    prepared, done = _Prepared(), 0
    with (
        (folder / "tokens.bin").open("wb") as tokens,
        (folder / "dialogues.bin").open("wb") as ends,
        (folder / "weights.bin").open("wb") as weights,
        (folder / "problems.txt").open("w", encoding="utf-8", errors="backslashreplace") as problems,
    ):
        for path, before, block in blocks:
            tokens.write(block.tokens.astype(dtype).data)
            ends.write((block.ends + np.array([prepared.counts["tokens"], prepared.counts["turns"]])).data)
            weights.write(block.weights.data)
            for line, reason in block.problems:
                problem = str(Problem(path, before + line if line else 0, reason))
                print(problem, file=problems)
                prepared.shown += [problem] if len(prepared.shown) < MAX_SHOWN else []
            prepared.add(block)
            done += block.bytes
            if progress is not None:
                progress(min(done, size), size)
    return prepared


def _files_of(path: Path) -> tuple[Path, ...]:
    return tuple(sorted(file for file in path.rglob("*") if file.is_file())) if path.is_dir() else (path,)


class NothingUsable(DialogueError):
    """No dialogue is usable, or none falls into the requested share."""


def _blocks(
    paths: Sequence[Path], vocabulary: Vocabulary, form: Format, workers: int
) -> Iterator[tuple[Path, int, _Block]]:
    """Yield all blocks in order, each with its file and the number of lines before it.

    Files with one dialogue per line are distributed to worker processes; others are streamed in this one.
    """
    kinds = [(path, kind_of(path, form.reading).name) for path in paths]
    for by_line, group in groupby(kinds, key=lambda pair: is_by_line(pair[0], pair[1], form)):
        if not by_line:
            for path, kind in group:
                for block in _Reader(vocabulary, form).stream(path, kind):
                    yield path, 0, block
            continue
        parts = [part for path, kind in group for part in _parts(path, kind)]
        lines = 0
        for (path, _, start, _), block in zip(parts, _read(parts, vocabulary, form, workers), strict=True):
            lines = 0 if start == 0 else lines
            yield path, lines, block
            lines += block.lines


def is_by_line(path: Path, kind: str, form: Format) -> bool:
    """Whether every line of a file is a dialogue, so that its parts can be read independently."""
    if KINDS[kind].parse is None or path.is_dir() or is_array(Source(path, form.reading)):
        return False
    with path.open("rb") as file:
        return file.read(2) not in UTF16


def check_paths(paths: Iterable[str | Path], form: Format) -> None:
    """Check that files exist and that their kind is known.

    Raises:
        DialogueError: a file does not exist, or its kind is unknown.
    """
    for path in map(Path, paths):
        kind_of(path, form.reading)


def _parts(path: Path, kind: str) -> list[Part]:
    size = size_of(path)
    return [(path, kind, start, min(start + BLOCK, size)) for start in range(0, size, BLOCK)]


@dataclass
class _Block:
    """The dialogues whose lines start in one part of a file; offsets and lines are relative to that part.

    Attributes:
        tokens, ends, weights: as in `TokenFiles`.
        problems: pairs of a line, from 1, and a reason.
        shortened: the number of problems whose dialogue is used all the same.
        targets: the number of target tokens.
        statistics: of the dialogues.
        lines: the number of lines.
        bytes: the number of bytes read.
    """

    tokens: NDArray[np.uint32]
    ends: NDArray[np.int64]
    weights: NDArray[np.float32]
    problems: list[tuple[int, str]]
    shortened: int
    targets: int
    statistics: Statistics
    lines: int
    bytes: int


@dataclass
class _Building:
    """Collects the dialogues of a block."""

    tokens: list[NDArray[np.uint32]] = field(default_factory=lambda: [np.zeros(0, np.uint32)])
    ends: array[int] = field(default_factory=lambda: array("q"))
    weights: array[float] = field(default_factory=lambda: array("f"))
    problems: list[tuple[int, str]] = field(default_factory=list)
    length: int = 0
    shortened: int = 0
    targets: int = 0
    statistics: Statistics = field(default_factory=Statistics)

    def built(self, lines: int, size: int) -> _Block:
        """Return the finished block."""
        return _Block(
            tokens=np.concatenate(self.tokens),
            ends=np.array(self.ends, np.int64).reshape(-1, 2),
            weights=np.array(self.weights, np.float32),
            problems=self.problems,
            shortened=self.shortened,
            targets=self.targets,
            statistics=self.statistics,
            lines=lines,
            bytes=size,
        )


class _Reader:
    """Reads files and parts of files; each process creates one, as that takes 0.2 s."""

    def __init__(self, vocabulary: Vocabulary, form: Format) -> None:
        self.tokenizer = Tokenizer(vocabulary)
        self.form = form
        self.transformer = form.transformer()

    def read(self, part: Part) -> _Block:
        """Read a part of a file with one dialogue per line."""
        path, kind, start, end = part
        parse, building = KINDS[kind].parse, _Building()
        assert parse is not None
        number = 0
        for number, line in enumerate(lines_of(path, start, end), 1):
            if not line:
                continue
            try:
                dialogue = parse(line, self.form.reading)
            except DialogueError as error:
                self._note(building, number, str(error))
                continue
            for piece in self.transformer.apply(dialogue, partial(self._note, building, number)):
                self._add(building, number, piece)
        return building.built(number, end - start)

    def stream(self, path: Path, kind: str) -> Iterator[_Block]:
        """Read a file that cannot be split, and yield a block whenever `BLOCK_TOKENS` are buffered."""
        building, size = _Building(), 0

        def on_bytes(count: int) -> None:
            nonlocal size
            size += count

        def on_problem(problem: Problem) -> None:
            self._note(building, problem.line, problem.reason)

        for dialogue in read_one(path, KINDS[kind], self.transformer, on_problem, on_bytes):
            self._add(building, dialogue.line, dialogue)
            if building.length > BLOCK_TOKENS:
                yield building.built(0, size)
                building, size = _Building(), 0
        self.transformer.require_bot()
        yield building.built(0, size)

    def _note(self, building: _Building, line: int, reason: str) -> None:
        """Record a problem; a file that is split is read twice, and only the share that ends at 1 records problems."""
        if self.form.share[1] == 1:
            building.problems.append((line, reason))

    def _add(self, building: _Building, line: int, dialogue: Dialogue) -> None:
        """Add a dialogue as ids, if it is in the share."""
        if not self.form.takes(dialogue):
            return
        try:
            ids = self.tokenizer.encode_dialogue(dialogue.turns)
        except DialogueError as error:
            self._note(building, line, str(error))
            return
        lengths = np.diff(np.flatnonzero(ids == self.tokenizer.eos_id), prepend=-1)
        longest = int(lengths.max())
        targets = lengths[self.form.fewest_turns - 1 :]  # a first turn that just fills the window loses nothing
        if longest > self.form.window or self.form.window in targets:
            building.shortened += 1
            building.problems.append((line, _too_long(longest, self.form.window)))
        weights = np.array(dialogue.weights or [1.0] * len(dialogue.turns), np.float32)
        learned = (weights > 0) & (lengths <= self.form.window)
        learned[: self.form.fewest_turns - 1] = False
        building.targets += int(lengths[learned].sum())
        building.tokens.append(ids)
        building.length += len(ids)
        building.weights.frombytes(weights.tobytes())
        building.ends.extend((building.length, len(building.weights)))
        building.statistics.add([dialogue])


def _too_long(length: int, window: int) -> str:
    if length == window:
        return f"a turn of {length:,} tokens fills the model's window; its first token has no context and is no target"
    return (
        f"a turn of {length:,} tokens exceeds the model's window of {window:,}; its end is context, and it is not a "
        f"target"
    )


@dataclass(frozen=True)
class PreviewTurn:
    """A turn as training sees it: its text, its ids with the end token, and whether each is a target (`learned`)."""

    text: str
    weight: float
    ids: list[int]
    learned: list[bool]


@dataclass(frozen=True)
class PreviewLine:
    """A line of a file as training sees it, or the problem with it."""

    number: int
    problem: str
    turns: list[PreviewTurn]
    more_turns: int = 0  # that are not shown


def preview(
    path: Path, vocabulary: Vocabulary, form: Format, *, first_is_target: bool, most: int
) -> Iterator[PreviewLine]:
    """Yield the first lines of a file as training sees them, so that users can check their data.

    Raises:
        DialogueError: the file cannot be read.
    """
    tokenizer, problems, shown = Tokenizer(vocabulary), list[Problem](), 0
    found = read_one(path, kind_of(path, form.reading), form.transformer(), problems.append)
    while shown < most:
        dialogue = None
        with suppress(DialogueError):  # a file without a usable dialogue: its problems are shown
            dialogue = next(found, None)
        for problem in islice(problems, most - shown):
            shown += 1
            yield PreviewLine(problem.line, problem.reason, [])
        problems.clear()
        if dialogue is None:
            return
        if shown < most:
            shown += 1
            turns = _turns(dialogue, tokenizer, form.window, first_is_target)
            yield PreviewLine(dialogue.line, "", turns, len(dialogue.turns) - len(turns))


def _turns(dialogue: Dialogue, tokenizer: Tokenizer, window: int, first_is_target: bool) -> list[PreviewTurn]:
    turns = []
    weights = dialogue.weights or [1.0] * len(dialogue.turns)
    for place, (text, weight) in enumerate(zip(dialogue.turns, weights, strict=True)):
        if place == SHOWN_TURNS:
            break
        ids = tokenizer.whole_turn(text, (USER, BOT)[place % 2])
        is_target = len(ids) <= window and weight > 0 and (place > 0 or first_is_target)
        preceded = place > 0 and len(ids) < window  # of a turn that fills the window nothing is before its first token
        learned = [is_target and (n > 0 or preceded) for n in range(len(ids))]
        turns.append(PreviewTurn(text, weight, ids, learned))
    return turns


def _read(parts: Sequence[Part], vocabulary: Vocabulary, form: Format, workers: int) -> Iterator[_Block]:
    """Yield the blocks of all parts in order; with several workers, one more part than workers is in flight."""
    # A worker takes a second and a half to start, a block half a second.
    workers = min(workers, len(parts) // 4, most_workers())
    if workers < 2:
        yield from map(_Reader(vocabulary, form).read, parts)
        return
    spawn = get_context("spawn")  # forking a process with threads may deadlock
    with ProcessPoolExecutor(workers, spawn, _start_worker, (vocabulary, form)) as pool:
        in_flight: deque[Future[_Block]] = deque()
        try:
            for part in parts:
                in_flight.append(pool.submit(_work, part))
                if len(in_flight) > workers:
                    yield in_flight.popleft().result()
            while in_flight:
                yield in_flight.popleft().result()
        except BrokenProcessPool:
            raise DialogueError(
                "a worker process was killed while reading dialogues; free some memory and try again"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def most_workers(system: str = sys.platform) -> int:
    """Return the maximum size of a process pool: Windows waits for at most 64 handles, and a pool needs three more."""
    return 61 if system == "win32" else 1024


_readers: list[_Reader] = []  # of a worker process


def _start_worker(vocabulary: Vocabulary, form: Format) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent handles it
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _readers.append(_Reader(vocabulary, form))


def _exit_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(part: Part) -> _Block:
    return _readers[0].read(part)
