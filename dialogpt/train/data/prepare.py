"""Dialogue files to memory-mapped token files, so that data larger than memory can be trained on.

A prepared folder holds

    tokens.bin      the ids of all turns, each turn ended by the end token: uint16, or uint32 for a large vocabulary
    dialogues.bin   for each dialogue, where its tokens and its turns end: two int64
    weights.bin     a float32 for each turn
    problems.txt    the lines that could not be used, or not whole, with their reasons; empty where there are none
    data.json       what the above is

Files are read in blocks of 8 MiB, in several processes where there are many, so that memory does not grow with the
data. Which tokens make a batch is left to `dialogpt.train.data.batches`.
"""

from __future__ import annotations

import codecs
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
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dialogpt.errors import DialogueError
from dialogpt.tokenizer import Tokenizer
from dialogpt.train.data.dialogues import LINE_LIMIT, Format, parse_line, parser_of
from dialogpt.weights import Vocabulary
from dialogpt.weights.formats import new_folder, read_json, write_json

PREPARED_VERSION = 1
BLOCK = 8 << 20  # bytes of text that one task reads; what it makes of them takes about as much again
SHOWN = 5  # problems that data.json repeats

Part = tuple[Path, int, int]  # a file, and the bytes in which the lines of a block begin
Progress = Callable[[int, int], None]  # (bytes done, bytes in all); may raise to stop, and nothing is left behind


class TokenFiles:
    """A prepared folder, mapped.

    Attributes:
        folder: where it is.
        tokens: ids of all dialogues, one after the other.
        ends: (dialogues, 2): where the tokens and the turns of each end.
        weights: of each turn.
        eos_id: the id that ends every turn.
        about: the content of data.json.
    """

    def __init__(self, folder: Path) -> None:
        """Map a folder that `prepare` made.

        Raises:
            CheckpointError: it has no data.json that can be read.
            DialogueError: it is of another version, or its files are not as long as it says.
        """
        self.folder = folder
        self.about = about = read_json(folder / "data.json")
        if about.get("prepared_version") != PREPARED_VERSION:
            raise DialogueError(f"{folder} was prepared by another version; prepare the dialogues again")
        numbers = [about.get(name) for name in ("eos_id", "vocabulary_size", "tokens", "dialogues", "turns")]
        if about.get("dtype") not in ("uint16", "uint32") or not all(type(n) is int and n > 0 for n in numbers):
            raise DialogueError(f"{folder / 'data.json'} is damaged; prepare the dialogues again")
        self.eos_id: int = about["eos_id"]
        self.tokens = _mapped(folder / "tokens.bin", np.dtype(about["dtype"]), about["tokens"])
        self.ends = _mapped(folder / "dialogues.bin", np.dtype(np.int64), 2 * about["dialogues"]).reshape(-1, 2)
        self.weights = _mapped(folder / "weights.bin", np.dtype(np.float32), about["turns"])
        steps = np.diff(self.ends, axis=0, prepend=0)
        if (steps < 1).any() or self.ends[-1].tolist() != [about["tokens"], about["turns"]]:
            raise DialogueError(f"{folder / 'dialogues.bin'} is damaged; prepare the dialogues again")

    def check(self, vocabulary: Vocabulary, form: Format) -> None:
        """Raise unless the folder was prepared for this vocabulary and is to be read in this way.

        Raises:
            DialogueError: it was not; what differs.
        """
        wanted = {**asdict(form), "vocabulary": digest(vocabulary), "eos_id": vocabulary.eos_id}
        del wanted["window"]  # it only decides what was reported
        others = [name for name, value in wanted.items() if self.about.get(name) != value]
        if others:
            raise DialogueError(f"{self.folder} was prepared with another {', '.join(others)}; prepare the files again")


def digest(vocabulary: Vocabulary) -> str:
    """A short name of what text becomes which ids."""
    content = json.dumps([sorted(vocabulary.ids.items()), vocabulary.merges, sorted(vocabulary.added.items())])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _mapped(path: Path, dtype: np.dtype[Any], length: int) -> NDArray[Any]:
    if not path.is_file() or path.stat().st_size != length * dtype.itemsize:
        raise DialogueError(f"{path} is not the {length:,} numbers that data.json beside it says; prepare it again")
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
        paths: .jsonl or .tsv files.
        folder: a new folder.
        vocabulary: of the model that will learn from it.
        form: how lines are read.
        workers: processes to use; more than one needs a main module that can be imported, as Python's spawn does.
        progress: called with the bytes read.

    Raises:
        DialogueError: a file cannot be read, or none holds a dialogue that can be used; the first reason is named.
        CheckpointError: the folder exists or cannot be written.
    """
    parts = [part for path in paths for part in _parts(path)]
    dtype = np.dtype(np.uint16 if vocabulary.size <= 1 << 16 else np.uint32)
    total = sum(end - start for _, start, end in parts)
    done = lines = 0
    counts = dict.fromkeys(("tokens", "dialogues", "turns", "unusable", "shortened"), 0)
    shown: list[str] = []
    with (
        new_folder(folder) as temporary,
        (temporary / "tokens.bin").open("wb") as tokens,
        (temporary / "dialogues.bin").open("wb") as ends,
        (temporary / "weights.bin").open("wb") as weights,
        (temporary / "problems.txt").open("w", encoding="utf-8", errors="backslashreplace") as problems,
    ):
        for (path, start, end), block in zip(parts, _read(parts, vocabulary, form, workers), strict=True):
            lines = 0 if start == 0 else lines
            tokens.write(block.tokens.astype(dtype).data)
            ends.write((block.ends + np.array([counts["tokens"], counts["turns"]])).data)
            weights.write(block.weights.data)
            for line, reason in block.problems:
                problem = f"{path}, line {lines + line}: {reason}"
                print(problem, file=problems)
                shown += [problem] if len(shown) < SHOWN else []
            lines += block.lines
            done += end - start
            counts["tokens"] += len(block.tokens)
            counts["dialogues"] += len(block.ends)
            counts["turns"] += len(block.weights)
            counts["shortened"] += block.shortened
            counts["unusable"] += len(block.problems) - block.shortened
            if progress is not None:
                progress(done, total)
        if [part for path in paths for part in _parts(path)] != parts:
            raise DialogueError(
                f"{', '.join(map(str, paths))} changed while it was read; try again when it is complete"
            )
        if not counts["dialogues"]:
            reason = f"the first problem: {shown[0]}" if shown else "the files are empty"
            raise DialogueError(f"no dialogue in {', '.join(map(str, paths))} can be used; {reason}")
        about = {
            "prepared_version": PREPARED_VERSION,
            "eos_id": vocabulary.eos_id,
            "dtype": dtype.name,
            "vocabulary": digest(vocabulary),
            "vocabulary_size": vocabulary.size,
        }
        write_json(temporary / "data.json", {**about, **counts, **asdict(form), "first_problems": shown})
    return TokenFiles(folder)


def check_paths(paths: Iterable[str | Path], form: Format) -> None:
    """Raise unless files can be read and their kind is known.

    Raises:
        DialogueError: one cannot, or is not.
    """
    for path in map(Path, paths):
        _parts(path)
        parser_of(path, form)


def _parts(path: Path) -> list[Part]:
    try:
        if not path.is_file():
            raise DialogueError(f"{path} is {'not a plain file' if path.exists() else 'not there'}; expected dialogues")
        size = path.stat().st_size
        path.open("rb").close()
    except OSError as error:
        raise DialogueError(f"{path} cannot be read: {error.strerror}") from None
    return [(path, start, min(start + BLOCK, size)) for start in range(0, size, BLOCK)]


@dataclass(frozen=True)
class _Block:
    """What the lines that begin in one part of a file hold; counted from the part's own start.

    Attributes:
        tokens, ends, weights: as in `TokenFiles`.
        problems: line, from 1, and reason.
        shortened: how many of the problems leave the dialogue in use.
        lines: how many there are.
    """

    tokens: NDArray[np.uint32]
    ends: NDArray[np.int64]
    weights: NDArray[np.float32]
    problems: list[tuple[int, str]]
    shortened: int
    lines: int


class _Reader:
    """Reads parts of files; each process builds its own once, as that takes 0.2 s."""

    def __init__(self, vocabulary: Vocabulary, form: Format) -> None:
        self.tokenizer = Tokenizer(vocabulary)
        self.form = form

    def read(self, part: Part) -> _Block:
        parse = parser_of(part[0], self.form)
        tokens: list[NDArray[np.uint32]] = [np.zeros(0, np.uint32)]
        ends, weights = array("q"), array("f")
        problems: list[tuple[int, str]] = []
        number = length = shortened = 0
        for number, line in enumerate(lines_of(part), 1):
            if not line.strip(b"\r\n"):
                continue
            try:
                dialogue = parse_line(line, parse, self.form)
                ids = self.tokenizer.encode_dialogue(dialogue.turns)
            except DialogueError as error:
                problems.append((number, f"{error}"))
                continue
            longest = int(np.diff(np.flatnonzero(ids == self.tokenizer.eos_id), prepend=-1).max())
            if longest > self.form.window:
                shortened += 1
                problems.append((number, f"a turn of {longest:,} tokens is more than the {self.form.window:,} that the "
                                         f"model sees; its end is shown, and it is not learned"))  # fmt: skip
            tokens.append(ids)
            length += len(ids)
            weights.extend(dialogue.weights or [1.0] * len(dialogue.turns))
            ends.extend((length, len(weights)))
        return _Block(
            tokens=np.concatenate(tokens),
            ends=np.array(ends, np.int64).reshape(-1, 2),
            weights=np.array(weights, np.float32),
            problems=problems,
            shortened=shortened,
            lines=number,
        )


@dataclass(frozen=True)
class Turn:
    """A turn as it is learned: its text, its ids with the end token, and whether each is learned."""

    text: str
    weight: float
    ids: list[int]
    learned: list[bool]


@dataclass(frozen=True)
class Line:
    """A line of a file as it is learned, or the problem with it."""

    number: int
    problem: str
    turns: list[Turn]


def preview(path: Path, vocabulary: Vocabulary, form: Format, *, learn_first: bool, most: int) -> Iterator[Line]:
    """How the first lines of a file are read, for people who wonder whether their data is right.

    Raises:
        DialogueError: the file cannot be read.
    """
    tokenizer, parse = Tokenizer(vocabulary), parser_of(path, form)
    _parts(path)
    filled = ((number, line) for number, line in enumerate(lines_of((path, 0, 1 << 62)), 1) if line.strip(b"\r\n"))
    for number, line in islice(filled, most):
        try:
            dialogue = parse_line(line, parse, form)
            weights = dialogue.weights or [1.0] * len(dialogue.turns)
            turns = []
            for place, (text, weight) in enumerate(zip(dialogue.turns, weights, strict=True)):
                ids = tokenizer.encode_dialogue([text]).tolist()
                fits = len(ids) <= form.window
                learned = [fits and weight > 0 and (place > 0 or (learn_first and n > 0)) for n in range(len(ids))]
                turns.append(Turn(text, weight, ids, learned))
            yield Line(number, "", turns)
        except DialogueError as error:
            yield Line(number, str(error), [])


def lines_of(part: Part) -> Iterator[bytes]:
    """The lines that begin in a part of a file; of one that is too long, only as much as shows that it is."""
    path, start, end = part
    try:
        yield from _lines(path, start, end)
    except OSError as error:
        raise DialogueError(f"{path} cannot be read: {error.strerror}") from None


def _lines(path: Path, start: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        if start == 0:
            file.seek(3 if file.read(3) == codecs.BOM_UTF8 else 0)  # a byte order mark is no text
        else:
            file.seek(start - 1)  # a line that began before belongs to the part before
            while (piece := file.readline(LINE_LIMIT)) and not piece.endswith(b"\n"):
                pass
        while file.tell() < end and (line := file.readline(LINE_LIMIT + 1)):
            yield line
            while not line.endswith(b"\n") and (line := file.readline(LINE_LIMIT)):
                pass


def _read(parts: Sequence[Part], vocabulary: Vocabulary, form: Format, workers: int) -> Iterator[_Block]:
    """The blocks of all parts in their order; with several processes, one more is under way than there are."""
    # A worker takes a second and a half to start, a block half a second.
    workers = min(workers, len(parts) // 4, most_workers())
    if workers < 2:
        yield from map(_Reader(vocabulary, form).read, parts)
        return
    spawn = get_context("spawn")  # a forked copy of a process with threads may hang
    with ProcessPoolExecutor(workers, spawn, _start_worker, (vocabulary, form)) as pool:
        under_way: deque[Future[_Block]] = deque()
        try:
            for part in parts:
                under_way.append(pool.submit(_work, part))
                if len(under_way) > workers:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool:
            raise DialogueError("a process that read dialogues was ended from outside; is there memory left?") from None
        finally:
            pool.shutdown(cancel_futures=True)


def most_workers(system: str = sys.platform) -> int:
    """How many processes a pool may have: Windows waits for at most 64 things at once, and a pool for three more."""
    return 61 if system == "win32" else 1024


_readers: list[_Reader] = []  # in a worker: its own


def _start_worker(vocabulary: Vocabulary, form: Format) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the process that asked decides
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _readers.append(_Reader(vocabulary, form))


def _leave_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(part: Part) -> _Block:
    return _readers[0].read(part)
