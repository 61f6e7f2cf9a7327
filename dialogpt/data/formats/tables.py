"""Tables: CSV, Parquet, and the folders of the `datasets` library.

Three layouts of columns are known:

    response, context, context/0, ...     the notebook's, newest first: `context` is the turn before `response`
    a column a turn                       `columns` names them: ("question", "answer")
    a row a turn                          `columns` gives roles: ("speaker=name", "text=line", "dialogue=id", "time=t")

A cell of Parquet may also hold a whole dialogue, as a list of texts, or of messages as in `messages` and `sharegpt`.
"""

from __future__ import annotations

import csv
import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from dialogpt.data.dialogue import Dialogue, Message, grouped, texts
from dialogpt.data.formats.jsonl import messages_of, sharegpt_of
from dialogpt.data.formats.kind import Head, Kind, each, told
from dialogpt.data.formats.times import seconds_of_iso
from dialogpt.data.settings import Reading
from dialogpt.data.source import Source
from dialogpt.errors import DialogueError, install_hint

ROW_LINES, ROW_LETTERS = 200, 1 << 16  # of one row: a quote that is never closed would take the rest of the file
DELIMITERS = ",;\t|"
_SAID = re.compile(r"sep=([,;\t|])", re.IGNORECASE)
ROLES = ("speaker", "text", "dialogue", "time")
_TURN_COLUMNS = (("question", "answer"), ("input", "output"), ("prompt", "response"), ("prompt", "completion"))
_LIST_COLUMNS = ("turns", "dialog", "dialogue", "utterances")
ROWS_AT_ONCE = 256  # of Parquet

Row = tuple[int, Sequence[Any]]


def rows_of(source: Source) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file, the header among them, with the lines that they begin at.

    A first line such as `sep=;`, which tells Excel what stands between cells, is no row. A row whose quotes do not end
    within 200 lines is a problem, and reading goes on at the line behind its first.
    """
    lines = source.text_lines()
    again: deque[tuple[int, str]] = deque()
    delimiter = ""

    def next_line() -> tuple[int, str] | None:
        return again.popleft() if again else next(lines, None)

    while (found := next_line()) is not None:
        number, line = found
        if not line.strip():
            continue
        if not delimiter and (said := _SAID.fullmatch(line)):
            delimiter = said[1]
            continue
        delimiter = delimiter or delimiter_of(line)
        taken, quotes, letters = [found], line.count('"'), len(line)
        while quotes % 2 and len(taken) < ROW_LINES and letters < ROW_LETTERS and (found := next_line()) is not None:
            taken.append(found)
            quotes += found[1].count('"')
            letters += len(found[1])
        if not quotes:
            yield number, line.split(delimiter)
            continue
        try:
            (row,) = csv.reader(["\n".join(text for _, text in taken)], delimiter=delimiter, strict=True)
        except (csv.Error, ValueError):
            source.problem(
                number, "a quote is not closed, or stands within a cell; a quote in a quoted cell is doubled"
            )
            again.extendleft(reversed(taken[1:]))
        else:
            yield number, row


def delimiter_of(header: str) -> str:
    """What stands between the cells of a header."""
    bare = re.sub(r'"[^"]*"', "", header)
    return max(DELIMITERS, key=bare.count)


class Columns:
    """Which columns of a table hold what.

    Attributes:
        turns: places of the columns that are a turn each, oldest first; empty where a row is a turn.
        roles: places of the columns of a row that is a turn.
        whole: the place of a column that holds whole dialogues, and how its cells are read.
    """

    def __init__(self, names: Sequence[str], reading: Reading) -> None:
        """Find out.

        Raises:
            DialogueError: the columns do not say it, or what was asked for is not there.
        """
        self.names = [str(name).strip().lower() for name in names]
        self.turns: list[int] = []
        self.roles: dict[str, int] = {}
        self.whole: tuple[int, Callable[[Any], Dialogue]] | None = None
        if reading.columns:
            self._as_asked(reading.columns)
        elif {"response", "context"} <= set(self.names):
            numbers = {name: int(name[8:]) for name in self.names if re.fullmatch(r"context/\d{1,4}", name)}
            older = sorted(numbers, key=lambda name: -numbers[name])
            self.turns = [self.names.index(name) for name in (*older, "context", "response")]
        elif (both := next((pair for pair in _TURN_COLUMNS if set(pair) <= set(self.names)), None)) is not None:
            self.turns = [self.names.index(name) for name in both]
        elif (found := self._holding_dialogues(reading)) is not None:
            self.whole = found
        else:
            raise DialogueError(
                f"which columns are turns? It has {', '.join(map(repr, names))[:300]}; say it with "
                f"--columns question,answer (a column a turn) or --columns speaker=name,text=line,dialogue=id"
            )

    def _as_asked(self, columns: Sequence[str]) -> None:
        wanted = [self._role_and_name(column.strip().lower()) for column in columns]
        missing = [name for _, name in wanted if name not in self.names]
        if missing:
            raise DialogueError(f"there is no column {', '.join(missing)}; it has {', '.join(self.names)[:300]}")
        twice = next((name for _, name in wanted if self.names.count(name) > 1), None)
        if twice is not None:
            raise DialogueError(f"{self.names.count(twice)} columns are called {twice}; rename one of them")
        if all(not role for role, _ in wanted):
            self.turns = [self.names.index(name) for _, name in wanted]
            return
        self.roles = {role: self.names.index(name) for role, name in wanted}
        if not {"text"} <= self.roles.keys() <= set(ROLES) or len(self.roles) < len(wanted):
            raise DialogueError(
                f"--columns takes the roles {', '.join(ROLES)}, each once, and needs text; got {','.join(columns)}"
            )

    def _role_and_name(self, column: str) -> tuple[str, str]:
        """What "speaker=name" says; a column may have such a name itself."""
        role, equals, name = column.partition("=")
        return (role.strip(), name.strip()) if equals and column not in self.names else ("", column)

    def _holding_dialogues(self, reading: Reading) -> tuple[int, Callable[[Any], Dialogue]] | None:
        for place, name in enumerate(self.names):
            if name in _LIST_COLUMNS:
                return place, _texts_of
            if name in ("messages", "conversations", "conversation"):
                return place, lambda cell: _messages_in(cell, reading)
        return None

    def dialogue(self, row: Sequence[Any], line: int) -> Dialogue:
        """The dialogue of a row."""
        if self.whole is not None:
            place, read = self.whole
            dialogue = read(row[place])
            dialogue.line = line
            return dialogue
        if len(row) < max(self.turns) + 1:
            raise DialogueError(f"{len(row)} cells, expected {len(self.names)}")
        turns = [_cell(row[place]) for place in self.turns]
        first = next((n for n, turn in enumerate(turns) if turn), len(turns))  # dialogues that begin later: empty cells
        return Dialogue(turns[first:], line=line)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value).strip()


def _texts_of(cell: Any) -> Dialogue:
    if type(cell) is not list or not texts(cell):
        raise DialogueError("no list of texts")
    return Dialogue([turn.strip() for turn in cell])


def _messages_in(cell: Any, reading: Reading) -> Dialogue:
    if type(cell) is list and cell and type(cell[0]) is dict and "from" in cell[0]:
        return sharegpt_of({"conversations": cell}, reading)
    return messages_of({"messages": cell}, reading)


def dialogues_of(source: Source, names: Sequence[str], rows: Iterator[Row]) -> Iterator[Dialogue]:
    """The dialogues in a table: one a row, or one in several rows that have a cell in common.

    Raises:
        DialogueError: the columns do not say which.
    """
    columns = Columns(names, source.reading)
    if columns.roles:
        yield from _over_rows(source, columns.roles, rows)
        return
    for line, row in rows:
        try:
            yield columns.dialogue(row, line)
        except (DialogueError, IndexError) as error:
            source.problem(line, str(error) if isinstance(error, DialogueError) else f"{len(row)} cells")


def _over_rows(source: Source, roles: dict[str, int], rows: Iterator[Row]) -> Iterator[Dialogue]:
    """Dialogues whose rows stand together; where no column tells them apart, a pause does."""
    seen: set[int] = set()

    def messages(first: Row, name: Any) -> Iterator[Message]:
        row: Row | None = first
        while row is not None and _at(row[1], roles.get("dialogue")) == name:
            text = _cell(_at(row[1], roles["text"]))
            if text:
                speaker, time = (_at(row[1], roles.get(role)) for role in ("speaker", "time"))
                seconds = _seconds(time)
                if seconds is None and _cell(time):
                    shown = _cell(time)[:40]
                    source.problem(row[0], f"its time {shown!r} is not read; expected 2024-12-31 23:59, or seconds")
                yield Message(row[0], _cell(speaker), seconds, text)
            else:
                source.problem(row[0], "a row without text")
            row = next(rows, None)
        waiting.append(row)

    waiting: list[Row | None] = [next(rows, None)]
    while (row := waiting.pop()) is not None:
        name = _at(row[1], roles.get("dialogue"))
        if "dialogue" in roles and len(seen) < 1 << 20:
            if hash(name) in seen:
                source.problem(
                    row[0], f"the dialogue {_cell(name)[:50]} again, apart from its other rows; taken for another"
                )
            seen.add(hash(name))
        for dialogue in grouped(messages(row, name), source.reading.gap_seconds if "time" in roles else None):
            if "speaker" not in roles:
                dialogue.speakers = None
            yield dialogue


def _at(row: Sequence[Any], place: int | None) -> Any:
    return row[place] if place is not None and place < len(row) else None


def _seconds(value: Any) -> float | None:
    if hasattr(value, "timestamp"):
        return float(value.timestamp())
    return seconds_of_iso(value)


def read_csv(source: Source) -> Iterator[Dialogue]:
    """The dialogues of a CSV file, whose first row names its columns."""
    rows = rows_of(source)
    header = next(rows, None)
    if header is None:
        return
    yield from dialogues_of(source, header[1], rows)


def read_parquet(source: Source) -> Iterator[Dialogue]:
    """The dialogues of a Parquet file."""
    yield from _arrow_dialogues(source, partial(_batches_of_parquet, source))


def read_datasets(source: Source) -> Iterator[Dialogue]:
    """The dialogues of a folder of the `datasets` library: all its splits, one after the other.

    It is what `save_to_disk` wrote, or Parquet files as a data set on the hub has them.
    """
    for suffix, batches in (("arrow", _batches_of_arrow), ("parquet", _batches_of_parquet)):
        if files := sorted(source.path.rglob(f"*.{suffix}")):
            for own in map(source.other, files):
                yield from _arrow_dialogues(own, partial(batches, own))
            return
    raise DialogueError(f"{source.path} holds no .arrow or .parquet files; expected those of the datasets library")


def _arrow(path: Path, module: str) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise DialogueError(f"{path} needs pyarrow to be read: {install_hint('data')}") from None
    return getattr(pyarrow, module)


def _batches_of_parquet(source: Source) -> Iterator[Any]:
    with _arrow(source.path, "parquet").ParquetFile(source.path) as file:
        size, total = source.path.stat().st_size, max(1, file.metadata.num_rows)
        for batch in file.iter_batches(ROWS_AT_ONCE):
            source.on_bytes(size * batch.num_rows // total)
            yield batch


def _batches_of_arrow(source: Source) -> Iterator[Any]:
    with source.path.open("rb") as file:
        for batch in _arrow(source.path, "ipc").open_stream(file):
            source.on_bytes(batch.nbytes)
            for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                yield batch.slice(start, ROWS_AT_ONCE)


def _arrow_dialogues(source: Source, batches: Callable[[], Iterator[Any]]) -> Iterator[Dialogue]:
    """The dialogues in batches of rows; a file that pyarrow does not understand is a sentence."""
    not_understood = (_arrow(source.path, "lib").ArrowException, OSError, ValueError)
    try:
        found = batches()
        first = next(found, None)
        if first is None:
            return
        yield from told(source, dialogues_of(source, first.schema.names, _rows_in(first, found)))
    except not_understood as error:
        if isinstance(error, DialogueError):
            raise
        raise DialogueError(f"{source.path} cannot be read: {str(error).splitlines()[0][:200]}") from None


def _rows_in(first: Any, others: Iterator[Any]) -> Iterator[Row]:
    number = 0
    for batch in chain([first], others):
        for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            number += 1
            yield number, values


def _is_table(head: Head) -> bool:
    if not head.lines:
        return False
    named = head.path.suffix.lower() == ".csv"
    delimiter = delimiter_of(head.lines[0])
    cells = [line.count(delimiter) for line in head.lines]
    known = False
    with suppress(DialogueError):
        known = bool(Columns(head.lines[0].replace('"', "").split(delimiter), Reading()).names)
    return named or (known and len(cells) > 1 and cells[0] > 0)


def _is_datasets(head: Head) -> bool:
    if {"dataset_dict.json", "dataset_info.json", "state.json"} & head.names:
        return True
    return head.path.is_dir() and any(any(head.path.glob(pattern)) for pattern in ("*.parquet", "*/*.parquet"))


KINDS = (
    Kind(
        "csv", "a table: the notebook's response, context, context/0, ..., or any", _is_table, each(read_csv), weak=True
    ),
    Kind(
        "parquet",
        "Parquet, with columns as csv or cells as messages",
        lambda head: head.magic[:4] == b"PAR1",
        each(read_parquet),
    ),
    Kind(
        "datasets",
        "a folder of the datasets library: saved to disk, or Parquet files as on the hub",
        _is_datasets,
        each(read_datasets),
    ),
)
