"""The Spark engine: the same two stages on a cluster, or with `local[2]` on one machine.

Stage 1 is a `mapInArrow` over the names of the dumps: a task unpacks a whole file, as no reader of Spark's takes their
window of 2 GiB, so the dumps have to lie where every executor can read them. Its rows are written to OUT/rows as
Parquet. Stage 2 groups them by bucket, the only shuffle, and calls the function of the local engine through
`applyInArrow`. Reports travel as rows, so that a task that Spark repeats is not counted twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from dialogpt.data.reddit.card import finish
from dialogpt.data.reddit.comments import WrongKindError
from dialogpt.data.reddit.dumps import blocks
from dialogpt.data.reddit.stages import DIALOGUES, ROWS, Report, dialogues_of, line_of, rows_of, table_of
from dialogpt.data.reddit.work import Dump, Job, begin, buckets_for
from dialogpt.data.reddit.workers import calm_collector
from dialogpt.errors import DialogueError, install_hint

BUCKET_BYTES = 256 << 20  # unpacked; a task takes about as much memory
_REPORT = -1  # the bucket of rows that hold a report, as JSON in the body
_PROBLEM = -2  # of rows that hold why a dump cannot be read


def run(job: Job, *, master: str, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Make dialogues of dumps.

    Args:
        job: what is to be done; all executors must see its folder and the dumps. A run that was stopped goes on after
            stage 1, if that was complete.
        master: "local[2]", "yarn", "spark://host:7077" and so on.
        progress: called with what begins.

    Returns:
        The content of report.json.

    Raises:
        DialogueError: Spark or Java is missing, the folder is of another run, or a dump cannot be read.
    """
    job.check()
    job.out.mkdir(parents=True, exist_ok=True)
    layout = begin(job, {"engine": "spark", "buckets": buckets_for(job, BUCKET_BYTES)})
    if not (job.out / "report.json").exists():
        session = _session(master)
        try:
            _run(session, job, layout["buckets"], progress)
        finally:
            session.stop()
    if not job.keep_rows:
        shutil.rmtree(job.out / "rows", ignore_errors=True)
    content: dict[str, Any] = json.loads((job.out / "report.json").read_text(encoding="utf-8"))
    return content


def _session(master: str) -> Any:
    if shutil.which("java") is None:
        raise DialogueError(
            "Spark needs Java 17 or newer, and there is none on the path; on Debian: apt-get install "
            "default-jre-headless"
        )
    try:
        sql = importlib.import_module("pyspark.sql")
    except ImportError:
        raise DialogueError(f"--engine spark needs the package pyspark: {install_hint('spark')}") from None
    builder = sql.SparkSession.builder.master(master).appName("dialogpt data reddit")
    for name, value in {
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "50000",
        "spark.sql.adaptive.coalescePartitions.enabled": "false",  # so that memory is bounded
        "spark.log.level": "ERROR",
    }.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def _run(session: Any, job: Job, buckets: int, progress: Callable[[str], None]) -> None:
    session.conf.set("spark.sql.shuffle.partitions", str(buckets))
    rows_folder = str((job.out / "rows").absolute())
    if not (job.out / "rows" / "_SUCCESS").exists():
        progress("stage 1: dumps to rows")
        names = session.createDataFrame(
            [
                (number, str(dump.path.absolute()), dump.kind, job.month_of(dump))
                for number, dump in enumerate(job.dumps)
            ],
            "number int, path string, kind string, month int",
        )
        stage1 = names.repartition(len(job.dumps), "number").mapInArrow(_stage1(job, buckets), _sql(ROWS))
        stage1.write.parquet(rows_folder, mode="overwrite")
    rows = session.read.parquet(rows_folder)
    problems = [row.body for row in rows.where(f"bucket = {_PROBLEM}").select("body").collect()]
    if problems:
        shutil.rmtree(job.out / "rows")
        raise DialogueError("; ".join(sorted(problems)))
    segments = sorted(
        (json.loads(row.body) for row in rows.where(f"bucket = {_REPORT}").select("body").collect()),
        key=lambda segment: int(segment["number"]),
    )
    progress("stage 2: rows to dialogues")
    schema = pa.schema([*DIALOGUES, ("report", pa.string())])
    found = rows.where("bucket >= 0").groupBy("bucket").applyInArrow(_stage2(job), _sql(schema))
    found = found.persist(importlib.import_module("pyspark").StorageLevel.DISK_ONLY)
    reports = [Report.from_json(row.report) for row in found.where("report is not null").select("report").collect()]
    found = found.where("report is null").drop("report")
    destination = str((job.out / "dialogues").absolute())
    if job.form == "parquet":
        found.write.parquet(destination, mode="overwrite", compression="zstd")
    else:
        found.mapInArrow(_lines(job.form), "line string").write.mode("overwrite").text(destination)
        for number, path in enumerate(sorted((job.out / "dialogues").glob("part-*.txt"))):
            path.rename(path.with_name(f"part-{number:05d}.{job.form}"))
    _remove_markers(job.out / "dialogues")
    finish(job, segments, reports)


def _sql(schema: pa.Schema) -> str:
    """A schema as Spark writes it."""
    names = {pa.int32(): "int", pa.int64(): "bigint", pa.string(): "string", pa.list_(pa.string()): "array<string>",
             pa.list_(pa.float32()): "array<float>"}  # fmt: skip
    return ", ".join(f"`{field.name}` {names[field.type]}" for field in schema)


def _remove_markers(folder: Path) -> None:
    """Remove _SUCCESS and the checksums beside the parts, which only Hadoop reads."""
    for path in [folder / "_SUCCESS", *folder.glob(".*.crc")]:
        with contextlib.suppress(OSError):
            path.unlink()


def _stage1(job: Job, buckets: int) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """The function of a task of stage 1: names of dumps to their rows, and a report for each."""

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        calm_collector()
        for batch in batches:
            for name in batch.to_pylist():
                try:
                    yield from _rows_of_dump(job, Dump(Path(name["path"]), name["kind"]), name, buckets)
                except DialogueError as error:  # raised here it would reach the driver as a Java traceback
                    yield _note(_PROBLEM, str(error))

    return task


def _rows_of_dump(job: Job, dump: Dump, name: dict[str, Any], buckets: int) -> Iterator[pa.RecordBatch]:
    checksum = hashlib.sha256()
    total = Report()
    for block in blocks(dump.path, checksum):
        try:
            rows, report = rows_of(block.data, block.first_line, dump.kind, name["month"], job.rules, buckets)
        except WrongKindError as error:
            raise dump.wrong_kind(error) from None
        if block.first_line == 1 and not rows.num_rows:
            raise dump.unusable(report.problems)
        total.add(report)
        yield rows
    lines = block.first_line + block.lines - 1
    if block.truncated and not job.allow_truncated:
        raise dump.truncated(lines)
    about = {
        "number": name["number"],
        "path": str(dump.path),
        "kind": dump.kind,
        "last": True,
        "lines": lines,
        "sha256": checksum.hexdigest(),
        "truncated": block.truncated,
        "report": total.to_json(),
    }
    yield _note(_REPORT, json.dumps(about))


def _note(bucket: int, text: str) -> pa.RecordBatch:
    """A row that is no comment."""
    values: dict[str, Any] = dict.fromkeys(ROWS.names)
    return pa.RecordBatch.from_pylist([{**values, "bucket": bucket, "body": text}], schema=ROWS)


def _stage2(job: Job) -> Callable[[pa.Table], pa.Table]:
    """The function of a bucket: its rows to dialogues, and a report."""
    rules = job.rules

    def task(rows: pa.Table) -> pa.Table:
        calm_collector()
        report = Report()
        table = table_of(list(dialogues_of(rows.cast(ROWS), rules, report)))
        table = table.append_column("report", pa.nulls(table.num_rows, pa.string()))
        note: dict[str, Any] = dict.fromkeys(table.schema.names)
        return pa.concat_tables(
            [table, pa.Table.from_pylist([{**note, "report": report.to_json()}], schema=table.schema)]
        )

    return task


def _lines(form: str) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """The function that turns dialogues into lines, as the local engine writes them."""
    from dialogpt.data.reddit.dialogues import Dialogue

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            lines = [line_of(Dialogue(**row), form).decode().rstrip("\n") for row in batch.to_pylist()]
            yield pa.record_batch([pa.array(lines, pa.string())], ["line"])

    return task
