"""How many threads a command uses: a small network one, a large one what others leave free."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dialogpt import threads

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
    alone = threads.Neighbours(Path("/nowhere"))
    threads.use(3, TINY, alone, {"OMP_NUM_THREADS": "2"})
    threads.use(None, TINY, alone, {"OMP_NUM_THREADS": "2"})
    threads.use(None, TINY, alone, {})
    threads.use(None, SMALL, alone, {})
    assert found == [3, 1, 4]  # with the variable torch has chosen already


def test_waiting_threads_sleep_unless_a_person_has_said_how_they_wait() -> None:
    for given, expected in (
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    ):
        environment = dict(given)
        threads.let_threads_sleep(environment)
        assert environment == expected


def test_the_command_says_so_before_torch_is_there() -> None:
    program = (
        "import os, sys, dialogpt.cli as cli; cli.main = lambda: int('torch' in sys.modules); "
        "os._exit = lambda status: print(os.environ['GOMP_SPINCOUNT'], status); cli.console()"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP", "GOMP"))}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "1000 0\n", done.stderr


def test_what_others_do_is_seen_and_what_this_process_does_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics, ticks = tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    clock = {"monotonic": 10.0, "process_time": 1.0}
    monkeypatch.setattr(threads.time, "monotonic", lambda: clock["monotonic"])
    monkeypatch.setattr(threads.time, "process_time", lambda: clock["process_time"])

    def write(user: float, system: float, idle: float) -> None:
        statistics.write_text(
            f"cpu  {user * ticks:.0f} 0 {system * ticks:.0f} {idle * ticks:.0f} 9 0 0 0 0 0\ncpu0 1\n"
        )

    write(user=100, system=10, idle=500)
    neighbours = threads.Neighbours(statistics)
    assert neighbours.busy_cores() == 0  # no time has passed
    clock.update(monotonic=12.0, process_time=3.0)
    write(user=104, system=11, idle=501)
    assert neighbours.busy_cores() == pytest.approx(1.5)  # five seconds in two, two of them ours
    statistics.unlink()
    assert neighbours.busy_cores() == 0
    assert threads.Neighbours(tmp_path / "nowhere").busy_cores() == 0
