"""The two map-only stages as functions of Arrow tables, which every engine calls: no files, processes or Spark here.

Stage 1 turns a block of lines into rows with a bucket, a checksum of the thread's name. Stage 2 turns all rows of a
bucket into dialogues. Between them the engine brings the rows of a bucket together; nothing else moves.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from dialogpt.data.reddit.comments import SUBMISSIONS, Comment, UnreadableError, WrongKindError, comment, submission
from dialogpt.data.reddit.dialogues import Dialogue, dialogues, thread
from dialogpt.data.reddit.rules import Rules
from dialogpt.errors import DialogueError, install_hint

try:
    import orjson
    import pyarrow as pa
except ImportError as error:
    raise DialogueError(f"this needs the package {error.name}: {install_hint('reddit')}") from None

MAX_PROBLEMS = 20  # that a block lists; all are counted
ROWS_AT_ONCE = 1 << 14  # of a bucket that are Python objects at a time, besides the largest thread
FORMATS = ("jsonl", "tsv", "parquet")

ROWS = pa.schema(
    [
        ("bucket", pa.int32()),
        ("link_id", pa.string()),
        ("id", pa.string()),
        ("parent_id", pa.string()),
        ("subreddit", pa.string()),
        ("author", pa.int64()),
        ("body", pa.string()),
        ("score", pa.int32()),
        ("created_utc", pa.int64()),
        ("dropped", pa.string()),
        ("month", pa.int32()),
    ]
)
DIALOGUES = pa.schema(
    [
        ("id", pa.string()),
        ("subreddit", pa.string()),
        ("score", pa.int32()),
        ("created_utc", pa.int64()),
        ("turns", pa.list_(pa.string())),
        ("weights", pa.list_(pa.float32())),
    ]
)


@dataclass
class Report:
    """What happened to the lines of a block, or to the rows of a bucket; reports add up.

    Attributes:
        counts: by rule, and of lines, comments, threads, dialogues, turns.
        problems: line and reason of the first unreadable lines.
    """

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[int, str]] = field(default_factory=list)

    def to_json(self) -> str:
        """For a file or a column."""
        return json.dumps({"counts": dict(sorted(self.counts.items())), "problems": self.problems})

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read what `to_json` wrote."""
        content = json.loads(text)
        return cls(Counter(content["counts"]), [(line, reason) for line, reason in content["problems"]])

    def add(self, other: Report) -> None:
        """Add another report; problems beyond the first `MAX_PROBLEMS` are only counted."""
        self.counts.update(other.counts)
        self.problems += other.problems[: max(0, MAX_PROBLEMS - len(self.problems))]


def bucket_of(link_id: str, buckets: int) -> int:
    """The bucket of a thread: the same on every machine and in every run."""
    return zlib.crc32(link_id.encode()) % buckets


def rows_of(
    data: bytes, first_line: int, kind: str, month: int, rules: Rules, buckets: int
) -> tuple[pa.RecordBatch, Report]:
    """Stage 1: whole lines to rows.

    Args:
        data: lines of a dump.
        first_line: the number of the first, for problems.
        kind: "comments" or "submissions".
        month: of the dump.
        rules: which text is kept.
        buckets: how many there are.

    Raises:
        WrongKindError: the lines begin with one of the other kind of dump; the sentence begins with its number.
    """
    read = submission if kind == SUBMISSIONS else comment
    report = Report()
    rows: list[Comment] = []
    lines = data.split(b"\n")
    for number, line in enumerate(lines, first_line):
        if line:
            try:
                rows.append(read(line, rules, month))
            except WrongKindError as error:
                if not rows:
                    raise WrongKindError(f"line {number:,} is {error}") from None
                report.counts["unreadable"] += 1
            except UnreadableError as error:
                if line.isspace():
                    continue
                report.counts["unreadable"] += 1
                if len(report.problems) < MAX_PROBLEMS:
                    report.problems.append((number, str(error)))
    columns: list[Any] = list(zip(*rows, strict=True)) if rows else [()] * len(Comment._fields)
    dropped = Counter(columns[Comment._fields.index("dropped")])
    report.counts["usable"] += dropped.pop(None, 0) if kind != SUBMISSIONS else 0
    if kind != SUBMISSIONS:
        report.counts.update(dropped)
    report.counts[kind] += len(rows)
    bucket = {link_id: bucket_of(link_id, buckets) for link_id in set(columns[0])}
    named = [[bucket[link_id] for link_id in columns[0]], *columns]
    return pa.record_batch(
        [pa.array(values, field.type) for values, field in zip(named, ROWS, strict=True)], schema=ROWS
    ), report


def dialogues_of(rows: pa.Table, rules: Rules, report: Report) -> Iterator[Dialogue]:
    """Stage 2: the rows of a bucket, in any order, to dialogues in the order of their threads.

    Memory is the table, a sorted copy of it, and the Python objects of the largest thread.

    Args:
        rows: with the columns of `ROWS`.
        rules: which dialogues are kept.
        report: gets the counts.
    """
    by_thread = rows.sort_by([("link_id", "ascending"), ("month", "ascending")])
    for _, members in groupby(_comments(by_thread), key=lambda row: (row.link_id, row.month)):
        report.counts["threads"] += 1
        yield from dialogues(thread(members, report.counts), rules, report.counts)


def _comments(rows: pa.Table) -> Iterator[Comment]:
    names = list(Comment._fields)
    for start in range(0, rows.num_rows, ROWS_AT_ONCE):
        piece = rows.slice(start, ROWS_AT_ONCE)
        yield from map(Comment._make, zip(*(piece.column(name).to_pylist() for name in names), strict=True))


def table_of(found: Iterable[Dialogue]) -> pa.Table:
    """Dialogues as a table with the columns of `DIALOGUES`."""
    columns: list[Any] = list(zip(*found, strict=True)) or [()] * len(Dialogue._fields)
    return pa.table([pa.array(values, field.type) for values, field in zip(columns, DIALOGUES, strict=True)], DIALOGUES)


def line_of(dialogue: Dialogue, form: str) -> bytes:
    """A dialogue as a line of JSONL, or of DialoGPT's TSV, where each turn begins with its weight."""
    if form == "tsv":
        turns = [f"{weight:.1f} {turn}" for weight, turn in zip(dialogue.weights, dialogue.turns, strict=True)]
        return f"{' EOS '.join(turns[:-1])}\t{turns[-1]}\n".encode()
    content = {"turns": dialogue.turns, "weights": dialogue.weights, **dialogue._asdict()}
    return orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE)
