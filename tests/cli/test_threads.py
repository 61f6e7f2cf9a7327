"""How many threads a command uses: a small network one, a large one what others leave free."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dialogpt.cli import threads

TINY, SMALL = 7_000_000, 124_000_000


@pytest.mark.parametrize(
    ("parameters", "most", "busy", "expected"),
    [
        (TINY, 8, 0.0, 1),
        (SMALL, 2, 0.0, 2),
        (SMALL, 2, 0.3, 2),  # a browser in the background
        (SMALL, 2, 0.9, 1),
        (SMALL, 2, 5.0, 1),  # never none
        (SMALL, 8, 2.9, 5),
        (SMALL, 1, 0.0, 1),
    ],
)
def test_a_network_gets_the_threads_that_are_free(parameters: int, most: int, busy: float, expected: int) -> None:
    assert threads.chosen(parameters, most, busy) == expected


def test_what_a_person_says_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(threads, "granted_cores", lambda: 3)
    threads.use(5, TINY, None, {"OMP_NUM_THREADS": "2"})
    threads.use(None, TINY, None, {"OMP_NUM_THREADS": "2"})  # torch has read it
    threads.use(None, TINY, None, {})
    threads.use(None, SMALL, None, {})
    assert found == [5, 1, 3]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 1 << 20),
        ({"cpu.max": "max 100000\n"}, 1 << 20),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1 << 20),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
    ],
)
def test_a_container_grants_what_its_files_say(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert threads.granted_cores(tmp_path) == expected


def test_what_others_do_on_ones_cores_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what this process does itself, nor what runs with low priority, nor what runs on the host's other cores."""
    statistics, ticks = tmp_path / "stat", 100
    clock = {"monotonic": 10.0, "process_time": 1.0}
    monkeypatch.setattr(threads.time, "monotonic", lambda: clock["monotonic"])
    monkeypatch.setattr(threads.time, "process_time", lambda: clock["process_time"])
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0, 2}, raising=False)
    monkeypatch.setattr(threads.os, "sysconf", lambda _: ticks, raising=False)

    def write(*cores: tuple[float, float, float, float]) -> None:
        lines = [
            f"cpu{number} {' '.join(str(round(seconds * ticks)) for seconds in (*core, 0.1, 0, 0, 0, 0, 0))}\n"
            for number, core in enumerate(cores)
        ]
        statistics.write_text("cpu  1 2 3 4 5 6 7 8 9 10\n" + "".join(lines) + "intr 5\n")

    write((100, 0, 10, 500), (7, 0, 0, 0), (50, 9, 5, 500))  # user, nice, system, idle
    neighbours = threads.Neighbours(statistics)
    assert neighbours.busy_cores() == 0  # no time has passed
    clock.update(monotonic=12.0, process_time=3.0)
    write((102, 0, 11, 500), (99, 0, 0, 0), (52, 99, 5, 500))
    assert neighbours.busy_cores() == pytest.approx(1.5)  # five seconds in two, two of them ours
    statistics.unlink()
    assert neighbours.busy_cores() == 0
    assert threads.Neighbours(tmp_path / "nowhere").busy_cores() == 0
    monkeypatch.delattr(threads.os, "sched_getaffinity")
    assert threads.Neighbours().busy_cores() == 0  # macOS and Windows have none of it
