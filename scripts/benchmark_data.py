"""Measure `dialogpt data reddit` on synthetic dumps: processor time, time and memory as the input grows.

    python scripts/benchmark_data.py [--gigabytes 0.5] [--times 1 2 4 8] [--workers 1] [--memory 2G] [--picture FILE]
    python scripts/benchmark_data.py --engine spark --times 1 2 4
    python scripts/benchmark_data.py --dumps FOLDER --times 40      keeps the dumps there, and reuses existing ones

One dump of `--gigabytes` of NDJSON (before packing) is written for each of the largest of `--times`; each run reads so
many of them. Processor time and memory include all subprocesses, sampled five times a second; memory is
the sum of their proportional set sizes (PSS), which count shared pages once. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import zstandard

from dialogpt.cli.commands.bench import processor
from dialogpt.cli.main import guarded
from dialogpt.data.reddit.dumps import blocks
from dialogpt.errors import DialogueError
from tests.data.reddit.synthetic import lines_of_size

ROOT = Path(__file__).parents[1]
EVERY_SECONDS = 0.2


@dataclass(frozen=True)
class Usage:
    """What a command took.

    Attributes:
        seconds: by the clock.
        processor_seconds: of all its processes.
        peak_bytes: peak memory of all its processes together.
    """

    seconds: float
    processor_seconds: float
    peak_bytes: int


def main(argv: Sequence[str] | None = None) -> int:
    """Write dumps, and run the command on increasing numbers of them; returns 0."""
    parser = argparse.ArgumentParser(description="Measure dialogpt data reddit on synthetic dumps.")
    parser.add_argument("--gigabytes", type=float, default=0.5, help="NDJSON of one dump (0.5)")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 2, 4, 8], help="dumps of each run (1 2 4 8)")
    parser.add_argument("--engine", choices=("local", "spark"), default="local")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--memory", default="2G")
    parser.add_argument("--dumps", type=Path, metavar="FOLDER", help="where dumps are kept (a temporary folder)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="keep the last run's result here")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw time and memory over the input")
    options = parser.parse_args(argv)
    if not sys.platform.startswith("linux"):
        raise DialogueError("this measures memory by /proc, which only Linux has; measure on Linux, or in WSL")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.dumps or Path(temporary, "dumps")
        dumps = write_dumps(folder, max(options.times), options.gigabytes)
        for count in options.times:
            is_last = count == options.times[-1]
            out = options.out if is_last and options.out is not None else Path(temporary, f"out-{count}")
            flags = ["--engine", options.engine, "--workers", str(options.workers), "--memory", options.memory]
            usage = run(["data", "reddit", *map(str, dumps[:count]), "--out", str(out), *flags])
            report = json.loads((out / "report.json").read_text(encoding="utf-8"))
            rows.append({"gigabytes": round(count * options.gigabytes, 3), **asdict(usage), **report["totals"]})
            print(
                f"{rows[-1]['gigabytes']:6.2f} GB, {report['totals']['comments']:11,} comments: "
                f"{usage.processor_seconds:7.1f} s of processor, {usage.seconds:7.1f} s by the clock, "
                f"{usage.peak_bytes / 2**20:6,.0f} MiB",
                flush=True,
            )
            if options.picture is not None:  # after each run, so that an interrupted one leaves a picture too
                draw(rows, f"{options.engine}, {options.workers} workers, --memory {options.memory}", options.picture)
    about = {"processor": processor(), "engine": options.engine, "workers": options.workers, "memory": options.memory}
    print(json.dumps({**about, "rows": rows}))
    return 0


def write_dumps(folder: Path, count: int, gigabytes: float) -> list[Path]:
    """Write a number of dumps, one per month; existing ones are kept.

    The first is generated line by line; the others repeat its lines with other ids, which is five times as fast.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"RC_{2015 + number // 12}-{number % 12 + 1:02d}.zst" for number in range(count)]
    for number, path in enumerate(paths):
        if path.exists():
            continue
        lines = lines_of_size(gigabytes * 1000, 1) if number == 0 else renamed(paths[0], number)
        unfinished = path.with_suffix(".part")
        with unfinished.open("wb") as file, zstandard.ZstdCompressor(level=1).stream_writer(file) as packed:
            for line in lines:
                packed.write(line + b"\n")
        unfinished.rename(path)
    return paths


def renamed(path: Path, number: int) -> Iterator[bytes]:
    """Yield the lines of a dump in blocks, with two letters for the number of the new dump in front of every id.

    Numeric parents are unchanged, and thus missing in the new dump.
    """
    letters = bytes([97 + number // 26, 97 + number % 26])
    for block in blocks(path):
        data = block.data.rstrip(b"\n")
        for prefix in (b'"id":"', b'"t1_', b'"t3_'):
            data = data.replace(prefix, prefix + letters)
        yield data


def run(arguments: Sequence[str]) -> Usage:
    """Run `dialogpt` with arguments, sampling its processes meanwhile.

    Raises:
        DialogueError: it failed; the message has the end of its output.
    """
    start = time.perf_counter()
    spent: dict[tuple[int, float], float] = {}  # of each process, by its id and start time
    peak = 0
    with tempfile.TemporaryFile() as printed:
        command = [sys.executable, "-m", "dialogpt", *arguments]
        process = psutil.Popen(command, cwd=ROOT, stdout=printed, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, _look(process, spent))
            time.sleep(EVERY_SECONDS)
        seconds = time.perf_counter() - start
        printed.seek(0)
        if process.returncode:
            raise DialogueError(f"dialogpt {arguments[0]} failed: {printed.read().decode(errors='replace')[-500:]}")
    return Usage(round(seconds, 1), round(sum(spent.values()), 1), peak)


def _look(process: psutil.Process, spent: dict[tuple[int, float], float]) -> int:
    """Update the processor time of a command's processes, and return their memory in bytes."""
    held = 0
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.Error:  # it has just ended
        return 0
    for each in family:
        try:
            times = each.cpu_times()
            spent[each.pid, each.create_time()] = times.user + times.system
            held += each.memory_full_info().pss
        except psutil.Error:
            continue
    return held


def draw(rows: Sequence[dict[str, float]], title: str, file: Path) -> None:
    """Plot processor time and peak memory over the size of the input."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    sizes = [row["gigabytes"] for row in rows]
    for axes, values, label in zip(
        figure.subplots(1, 2),
        ([row["processor_seconds"] for row in rows], [row["peak_bytes"] / 2**20 for row in rows]),
        ("processor time, s", "peak memory of all processes, MiB"),
        strict=True,
    ):
        axes.plot(sizes, values, "o-")
        axes.set(xlabel="NDJSON, GB", ylabel=label, xlim=(0, None), ylim=(0, 1.15 * max(values)))
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    sys.exit(guarded(main))
