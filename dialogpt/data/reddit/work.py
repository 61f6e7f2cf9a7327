"""What a run is and where its files are: the same for every engine.

OUT/run.json          what was asked, so that the same command goes on where it stopped
OUT/rows/             between the stages: a folder for each segment of a dump, in it a Parquet file for each bucket
OUT/dialogues/        the result: part-00000.jsonl and so on
OUT/counts/           a report for each part; a part counts once its report is there
OUT/report.json       counts by rule and source files with checksums, once all is done
OUT/problems.txt      lines that could not be read
OUT/README.md         the data card
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dialogpt.data.reddit.comments import COMMENTS
from dialogpt.data.reddit.dumps import month_of, window_of
from dialogpt.data.reddit.rules import Rules
from dialogpt.errors import DialogueError
from dialogpt.files.disk import write_atomically

WORK_VERSION = 1
MB = 1 << 20
_MAIN, _WORKER, _LEAST = (
    400 * MB,
    220 * MB,
    100 * MB,
)  # measured: the process that reads, a worker, what is left to rows
_UNPACKED = {".zst": 10, ".gz": 6}  # times as large as packed; an estimate for the number of buckets
_ROWS_SHARE = 0.35  # of the unpacked bytes that rows take as an Arrow table
_BUCKET_COPIES = 3  # the table, a sorted copy, Python objects
_MIN_BUCKETS, _MAX_BUCKETS = 16, 1024
_MIN_SEGMENT, _MAX_SEGMENT = 32 * MB, 1024 * MB


@dataclass(frozen=True)
class Dump:
    """A source file.

    Attributes:
        path: the file.
        kind: "comments" or "submissions".
    """

    path: Path
    kind: str = COMMENTS

    def wrong_kind(self, error: Exception) -> DialogueError:
        """What to say of a dump of the other kind."""
        return DialogueError(
            f"{self.path}, {error}; expected a dump of {self.kind}: RC_ files are comments, RS_ files submissions, "
            f"which are named after --submissions"
        )

    def unusable(self, problems: Sequence[tuple[int, str]]) -> DialogueError:
        """What to say of a file whose beginning holds nothing that can be read."""
        line, reason = problems[0] if problems else (1, "there is nothing in it")
        return DialogueError(f"{self.path}, line {line}: {reason}; expected {self.kind}, one JSON object a line")

    def truncated(self, lines: int) -> DialogueError:
        """What to say of a file that ends too early."""
        return DialogueError(
            f"{self.path} ends in the middle, after line {lines:,}; is the download complete? Fetch it again and "
            f"repeat the command, or use what is there with --allow-truncated"
        )

    def fingerprint(self) -> str:
        """What changes when the file does: size and time."""
        about = self.path.stat()
        return f"{about.st_size}-{about.st_mtime_ns}"


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
        dumps: source files.
        out: the folder of the run.
        rules: what is kept.
        form: "jsonl", "tsv" or "parquet".
        allow_truncated: use what is there of a file that ends too early.
        keep_rows: leave OUT/rows when all is done.
    """

    dumps: tuple[Dump, ...]
    out: Path
    rules: Rules
    form: str = "jsonl"
    allow_truncated: bool = False
    keep_rows: bool = False

    def check(self) -> None:
        """Raise unless all files can be read.

        Raises:
            DialogueError: names every file that cannot.
        """
        problems = []
        seen: set[Path] = set()
        for dump in self.dumps:
            if not dump.path.is_file():
                what = "is a folder; name the files in it" if dump.path.is_dir() else "is not there"
                problems.append(f"{dump.path} {what}")
                continue
            if dump.path.resolve() in seen:
                problems.append(f"{dump.path} is named twice")
            seen.add(dump.path.resolve())
            try:
                window_of(dump.path)
            except DialogueError as error:
                problems.append(str(error))
        if not any(dump.kind == COMMENTS for dump in self.dumps):
            problems.append("no dump of comments is named, such as RC_2018-03.zst")
        if problems:
            raise DialogueError("; ".join(problems))

    def month_of(self, dump: Dump) -> int:
        """The month with which threads of a dump end: the extractor's way. With ours they go on, and it is 0."""
        return month_of(dump.path) if self.rules.like_original else 0

    def about(self) -> dict[str, Any]:
        """What run.json says, and what must be the same to go on."""
        return {
            "work_version": WORK_VERSION,
            "dumps": [[dump.kind, str(dump.path.absolute())] for dump in self.dumps],
            "form": self.form,
            "allow_truncated": self.allow_truncated,
            "rules": self.rules.summary(),
        }

    def unpacked_bytes(self) -> int:
        """About how large the dumps are unpacked."""
        return sum(dump.path.stat().st_size * _UNPACKED.get(dump.path.suffix, 1) for dump in self.dumps)


@dataclass(frozen=True)
class Sizes:
    """How much is done at a time, so that memory stays within the limit.

    Attributes:
        workers: processes.
        readers: dumps that are unpacked at a time.
        buckets: parts of stage 2.
        segment_bytes: unpacked bytes of a dump that make one folder of rows.
    """

    workers: int
    readers: int
    buckets: int
    segment_bytes: int


def plan(job: Job, workers: int, memory: int) -> Sizes:
    """Choose sizes for a limit of memory.

    Args:
        job: what is to be done.
        workers: processes that are wished for; fewer are used where memory is short.
        memory: bytes, for all processes together.

    Raises:
        DialogueError: it is too little for one worker and one open file.
    """
    windows = sorted((window_of(dump.path) for dump in job.dumps), reverse=True)
    needed = _MAIN + _WORKER + windows[0] + _LEAST
    if memory < needed:
        widest = next(dump.path for dump in job.dumps if window_of(dump.path) == windows[0])
        raise DialogueError(
            f"{memory / MB:,.0f} MiB of memory are too little: {widest} was packed with a window of "
            f"{windows[0] / MB:,.0f} MiB, which takes as much to unpack, and the rest takes "
            f"{(needed - windows[0]) / MB:,.0f} MiB; give --memory {-(-needed // MB)}M or more"
        )
    workers = min(workers, (memory - _MAIN - windows[0] - _LEAST) // _WORKER)
    free = memory - _MAIN - workers * _WORKER
    readers = 1
    while readers < min(len(windows), max(1, workers // 4)) and sum(windows[: readers + 1]) + _LEAST < free // 2:
        readers += 1
    rows = (free - sum(windows[:readers])) // readers
    segment = int(min(max(rows / 2 / _ROWS_SHARE, _MIN_SEGMENT), _MAX_SEGMENT))
    of_a_worker = max((memory - _MAIN) // workers - _WORKER, _LEAST // 2)
    bucket = of_a_worker / _BUCKET_COPIES / _ROWS_SHARE / 2  # half, as buckets are uneven and the size is an estimate
    return Sizes(workers, readers, buckets_for(job, bucket), segment)


def buckets_for(job: Job, bucket_bytes: float) -> int:
    """How many buckets a run has, for about so many unpacked bytes in each."""
    buckets = _MIN_BUCKETS
    while buckets < min(job.unpacked_bytes() / bucket_bytes, _MAX_BUCKETS):
        buckets *= 2
    return buckets


def begin(job: Job, layout: dict[str, Any]) -> dict[str, Any]:
    """Write run.json, or see that the folder's run is the one that is asked for.

    Args:
        job: what is to be done; its folder exists.
        layout: what the engine has chosen.

    Returns:
        The layout with which the run was begun.

    Raises:
        DialogueError: the folder is of another run, or holds other files.
    """
    path = job.out / "run.json"
    if not path.exists():
        there = sorted(
            entry.name
            for entry in job.out.iterdir()
            if entry.name != ".lock" and not entry.name.startswith(".run.json")
        )
        if there:
            raise DialogueError(f"{job.out} holds {there[0]} and no run.json; name a new folder for --out")
        write_atomically(path, json.dumps({**job.about(), "layout": layout}, indent=1) + "\n")
        return layout
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        before: dict[str, Any] = kept.pop("layout")
        others = differences({**kept, "engine": before["engine"]}, {**job.about(), "engine": layout["engine"]})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DialogueError(f"{path} is damaged; remove {job.out}, or name a new folder for --out") from None
    if others:
        raise DialogueError(
            f"{job.out} was begun with other settings: {'; '.join(others)}; repeat the command as it was, or name "
            f"another --out"
        )
    return before


def differences(kept: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> list[str]:
    """The settings in which two descriptions of a run differ, each with both values."""
    found = []
    for name in sorted({*kept, *asked}):
        one, two = kept.get(name), asked.get(name)
        if isinstance(one, dict) and isinstance(two, dict) and prefix == "":
            found += differences(one, two, f"{name}.")
        elif one != two:
            found.append(f"{prefix}{name} (then {json.dumps(one)[:80]}, now {json.dumps(two)[:80]})")
    return found
