"""What the processes of the local engine do: the rows of a block, and the part of a bucket. Imports no torch."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import parent_process
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dialogpt.data.reddit.dialogues import Dialogue
from dialogpt.data.reddit.rules import Rules
from dialogpt.data.reddit.stages import DIALOGUES, ROWS, Report, dialogues_of, line_of, rows_of, table_of

_DIALOGUES_AT_ONCE = 1 << 14
_rules: list[Rules] = []  # of this process


def start(rules: Rules) -> None:
    """Begin a worker process: it ends with its parent, and Ctrl-C, which reaches all, is for the parent to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    calm_collector()
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    apply(rules)


def apply(rules: Rules) -> None:
    """Set the rules of this process."""
    _rules[:] = [rules]


def _leave_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def calm_collector() -> None:
    """Collect garbage rarely: rows hold no cycles, and looking for them takes a third of stage 1."""
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)


def read_rows(data: bytes, first_line: int, kind: str, month: int, buckets: int) -> tuple[pa.RecordBatch, Report]:
    """Stage 1 for a block."""
    return rows_of(data, first_line, kind, month, _rules[0], buckets)


def write_part(sources: list[Path], destination: Path, form: str) -> Report:
    """Stage 2 for a bucket: its Parquet files to a part, which appears when it is complete; none if it is empty.

    Args:
        sources: files of the bucket.
        destination: the part.
        form: "jsonl", "tsv" or "parquet".
    """
    report = Report()
    rows = pa.concat_tables([ROWS.empty_table(), *(pq.read_table(path, schema=ROWS) for path in sources)])
    found = dialogues_of(rows, _rules[0], report)
    temporary = destination.with_name(f".{destination.name}.partial")
    try:
        with temporary.open("wb") as file:
            if form == "parquet":
                with pq.ParquetWriter(file, DIALOGUES, compression="zstd") as writer:
                    for several in _in_turns(found):
                        writer.write_table(table_of(several))
            else:
                for dialogue in found:
                    file.write(line_of(dialogue, form))
            file.flush()
            os.fsync(file.fileno())
        if report.counts["dialogues"]:
            temporary.replace(destination)
    finally:
        temporary.unlink(missing_ok=True)
    return report


def _in_turns(found: Iterator[Dialogue]) -> Iterator[list[Dialogue]]:
    several: list[Dialogue] = []
    for dialogue in found:
        several.append(dialogue)
        if len(several) == _DIALOGUES_AT_ONCE:
            yield several
            several = []
    yield several
