"""The local engine: a pool of processes, bounded memory, and a run that goes on after a kill.

Stage 1 unpacks a dump in this process and hands blocks of lines to the workers, so that one file keeps all cores busy
and only one window of 2 GiB is in memory. Rows of a segment of the dump are collected, and written as a folder that
appears at once; a kill costs the segments that were being filled. Stage 2 gives each worker a bucket; a kill costs the
buckets under way.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dialogpt.data.reddit import workers as work
from dialogpt.data.reddit.card import finish
from dialogpt.data.reddit.comments import WrongKindError
from dialogpt.data.reddit.dumps import Block, blocks
from dialogpt.data.reddit.stages import ROWS, Report
from dialogpt.data.reddit.work import Dump, Job, Sizes, begin, plan
from dialogpt.errors import CheckpointError, DialogueError
from dialogpt.files.disk import lock, write_atomically

Progress = Callable[[str, int, int], None]  # (what is done, done, in all); may raise to stop; what is done is kept
_GO_ON = "repeat the command, which goes on where it stopped"
_POLL_SECONDS = 0.2


@dataclass
class _Reading:
    """Stage 1 of one dump.

    Attributes:
        number: of the dump, from 0.
        dump: the dump.
        done: packed bytes that were read.
        rows, report: of the segment that is being filled.
    """

    number: int
    dump: Dump
    done: int = 0
    rows: list[pa.RecordBatch] = field(default_factory=list)
    report: Report = field(default_factory=Report)


def run(job: Job, *, workers: int, memory: int, progress: Progress | None = None) -> dict[str, Any]:
    """Make dialogues of dumps, or go on with a run.

    Args:
        job: what is to be done.
        workers: processes.
        memory: bytes that all processes together may take.
        progress: called about five times a second.

    Returns:
        The content of report.json.

    Raises:
        DialogueError: a dump cannot be read or is of another kind, the folder is of another run or in use, the disk is
            full. What was done is kept, and the same command goes on.
    """
    job.check()
    try:
        job.out.mkdir(parents=True, exist_ok=True)
        try:
            release = lock(job.out / ".lock")
        except BlockingIOError:
            raise DialogueError(
                f"{job.out} is in use by another run; wait for its end, or name another --out"
            ) from None
        try:
            return _run(job, workers, memory, progress or (lambda *_: None))
        finally:
            release()
    except BrokenProcessPool:
        raise DialogueError(
            f"a worker was ended from outside; is there memory left? If not, use fewer --workers; {_GO_ON}"
        ) from None
    except CheckpointError as error:
        raise DialogueError(f"{error}; when that is mended, {_GO_ON}") from None
    except OSError as error:  # Parquet's writer names no file
        reason = f"{error.filename or job.out}: {error.strerror or error}"
        raise DialogueError(f"{reason}; when that is mended, {_GO_ON}") from None


def _run(job: Job, workers: int, memory: int, progress: Progress) -> dict[str, Any]:
    sizes = _begin(job, plan(job, workers, memory))
    finished = job.out / "report.json"
    if not finished.exists():
        with _pool(sizes.workers, job) as pool:
            if not all(_is_read(job, number, dump) for number, dump in enumerate(job.dumps)):
                for name in ("counts", "dialogues"):  # of rows as they were before a dump was replaced
                    shutil.rmtree(job.out / name, ignore_errors=True)
            _read_all(job, sizes, pool, progress)
            _write_parts(job, sizes, pool, progress)
        segments = [one for number, dump in enumerate(job.dumps) for one in _segments_of(job, number, dump)]
        counts = sorted((job.out / "counts").glob("part-*.json"))
        finish(job, segments, [Report.from_json(path.read_text(encoding="utf-8")) for path in counts])
    shutil.rmtree(job.out / "counts", ignore_errors=True)
    if not job.keep_rows:
        shutil.rmtree(job.out / "rows", ignore_errors=True)
    content: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
    return content


def _begin(job: Job, sizes: Sizes) -> Sizes:
    """Begin a run, or go on with one, whose buckets and segments stay as they were."""
    layout = begin(job, {"engine": "local", "buckets": sizes.buckets, "segment_bytes": sizes.segment_bytes})
    for leftover in [*job.out.glob("rows/.*.partial-*"), *job.out.glob("dialogues/.*.partial")]:
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
    return Sizes(sizes.workers, sizes.readers, layout["buckets"], layout["segment_bytes"])


class _Here(Executor):
    """Runs what is submitted at once, in this process: one worker needs no other."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        """Run it."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **options))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def _pool(workers: int, job: Job) -> Iterator[Executor]:
    if workers == 1:
        work.apply(job.rules)
        yield _Here()
        return
    workers = min(workers, 61) if sys.platform == "win32" else workers  # as many as Windows can wait for
    pool = ProcessPoolExecutor(workers, get_context("spawn"), work.start, (job.rules,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


# ---- Stage 1 ----


def _read_all(job: Job, sizes: Sizes, pool: Executor, progress: Progress) -> None:
    """Read the dumps, several at a time; one that cannot be read does not keep the others from being read."""
    readings = [_Reading(number, dump) for number, dump in enumerate(job.dumps)]
    total = sum(dump.path.stat().st_size for dump in job.dumps)
    stop = threading.Event()
    problems: list[str] = []
    with ThreadPoolExecutor(sizes.readers) as threads:
        waiting = {threads.submit(_read, job, reading, sizes, pool, stop) for reading in readings}
        try:
            while waiting:
                over, waiting = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
                for future in over:
                    try:
                        future.result()
                    except CheckpointError:  # a segment could not be written: no other can be
                        raise
                    except DialogueError as error:
                        problems.append(str(error))
                progress("reading", sum(reading.done for reading in readings), total)
        finally:
            stop.set()
            for future in waiting:
                future.cancel()
    if problems:
        raise DialogueError("; ".join(problems))


def _read(job: Job, reading: _Reading, sizes: Sizes, pool: Executor, stop: threading.Event) -> None:
    """Read one dump from where it was left, segment by segment."""
    dump = reading.dump
    if _is_read(job, reading.number, dump):
        reading.done = dump.path.stat().st_size
        return
    done = _segments_of(job, reading.number, dump)
    segment, begin = len(done), done[-1]["end"] if done else 0
    limit = begin + sizes.segment_bytes
    checksum = hashlib.sha256()
    under_way: deque[tuple[Block, Future[tuple[pa.RecordBatch, Report]]]] = deque()
    for block in blocks(dump.path, checksum):
        if stop.is_set():
            return
        end = block.start + len(block.data)
        if end > begin or block.last:
            data = block.data[max(0, begin - block.start) :]
            first_line = block.first_line + block.data.count(b"\n", 0, len(block.data) - len(data))
            future = pool.submit(work.read_rows, data, first_line, dump.kind, job.month_of(dump), sizes.buckets)
            under_way.append((block, future))
        else:
            reading.done = block.read
        while len(under_way) > (0 if block.last or end >= limit else 1 + sizes.workers // sizes.readers):
            _collect(reading, *under_way.popleft())
        if end >= limit and not block.last:
            _write_segment(job, reading, segment, {"end": end, "last": False}, sizes.buckets)
            segment, limit = segment + 1, end + sizes.segment_bytes
    line = block.first_line + block.lines - 1
    if block.truncated and not job.allow_truncated:
        raise dump.truncated(line)
    about = {"end": end, "last": True, "sha256": checksum.hexdigest(), "truncated": block.truncated, "lines": line}
    _write_segment(job, reading, segment, about, sizes.buckets)


def _collect(reading: _Reading, block: Block, future: Future[tuple[pa.RecordBatch, Report]]) -> None:
    """Add the rows of a block to the segment."""
    try:
        rows, report = future.result()
    except WrongKindError as error:
        raise reading.dump.wrong_kind(error) from None
    if block.first_line == 1 and not rows.num_rows:
        raise reading.dump.unusable(report.problems)
    reading.rows.append(rows)
    reading.report.add(report)
    reading.done = block.read


def _write_segment(job: Job, reading: _Reading, number: int, about: dict[str, Any], buckets: int) -> None:
    """Write the rows that were collected, a file for each bucket, as a folder that appears when it is complete."""
    from dialogpt.weights.formats import new_folder

    rows = pa.Table.from_batches(reading.rows, ROWS)
    report, reading.rows, reading.report = reading.report, [], Report()
    order = pc.sort_indices(rows.column("bucket"))
    counts = {entry["values"]: entry["counts"] for entry in rows.column("bucket").value_counts().to_pylist()}
    dump = reading.dump
    origin = {"fingerprint": dump.fingerprint(), "path": str(dump.path), "kind": dump.kind}
    destination = _segment_folder(job, reading.number, number)
    if destination.exists():  # of a file that was replaced since
        shutil.rmtree(destination)
    with new_folder(destination) as folder:
        start = 0
        for bucket in range(buckets):
            if count := counts.get(bucket, 0):
                of_bucket = rows.take(order.slice(start, count))
                pq.write_table(of_bucket, folder / f"bucket-{bucket:05d}.parquet", compression="zstd")
                start += count
        content = {**origin, **about, "report": report.to_json()}
        (folder / "segment.json").write_text(json.dumps(content), encoding="utf-8")


def _segment_folder(job: Job, dump: int, segment: int) -> Path:
    return job.out / "rows" / f"dump-{dump:04d}-segment-{segment:06d}"


def _segments_of(job: Job, number: int, dump: Dump) -> list[dict[str, Any]]:
    """The segments of a dump that are complete, in order; none if the file was replaced since."""
    found: list[dict[str, Any]] = []
    while (path := _segment_folder(job, number, len(found)) / "segment.json").exists():
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["fingerprint"] != dump.fingerprint():
            break
        found.append(content)
        if content["last"]:
            break
    return found


def _is_read(job: Job, number: int, dump: Dump) -> bool:
    """Whether all segments of a dump are there."""
    found = _segments_of(job, number, dump)
    return bool(found) and bool(found[-1]["last"])


# ---- Stage 2 ----


def _write_parts(job: Job, sizes: Sizes, pool: Executor, progress: Progress) -> None:
    """Write the parts that are not there yet."""
    for name in ("dialogues", "counts"):
        (job.out / name).mkdir(exist_ok=True)
    folders = [
        _segment_folder(job, number, segment)
        for number, dump in enumerate(job.dumps)
        for segment in range(len(_segments_of(job, number, dump)))
    ]
    waiting = deque(bucket for bucket in range(sizes.buckets) if not _count(job, bucket).exists())
    under_way: dict[Future[Report], int] = {}
    while waiting or under_way:
        while waiting and len(under_way) <= sizes.workers:
            bucket = waiting.popleft()
            files = [path for folder in folders if (path := folder / f"bucket-{bucket:05d}.parquet").exists()]
            part = job.out / "dialogues" / f"part-{bucket:05d}.{job.form}"
            under_way[pool.submit(work.write_part, files, part, job.form)] = bucket
        over, _ = wait(under_way, _POLL_SECONDS, FIRST_COMPLETED)
        for future in over:
            write_atomically(_count(job, under_way.pop(future)), future.result().to_json())
        progress("dialogues", sizes.buckets - len(waiting) - len(under_way), sizes.buckets)


def _count(job: Job, bucket: int) -> Path:
    return job.out / "counts" / f"part-{bucket:05d}.json"
