"""How many processor threads a command decodes with.

Between two products the threads of torch spin in a loop before they sleep. On a quiet machine that is fastest; where
another program keeps a core busy, each waits for a thread that does not run, and a reply takes five to ten times as
long. So a command uses one thread for a small network, and no more than are free. How threads wait is left to torch, as
sleeping sooner costs a quiet machine 5 to 16 % (docs/benchmarks.md). Training, and programs that import the package,
keep torch's own choice of threads.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

SMALL_NETWORK = 30_000_000  # parameters; below, a second thread gains 1.4 x where nothing else runs, and loses else
MIN_SECONDS = 0.05  # a shorter look at what else runs says nothing


def use(
    given: int | None,
    parameters: int,
    neighbours: Neighbours | None = None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Set torch's threads: as many as were asked for, by a flag or OMP_NUM_THREADS, else as many as are fastest.

    Args:
        given: what --threads says.
        parameters: of the network that will be decoded with.
        neighbours: what else runs; None leaves that out, for a server, which outlives what runs at its start.
        environment: where OMP_NUM_THREADS is looked for.
    """
    import torch

    if given is not None:
        torch.set_num_threads(given)
    elif "OMP_NUM_THREADS" not in environment:
        busy = neighbours.busy_cores() if neighbours else 0.0
        torch.set_num_threads(chosen(parameters, min(torch.get_num_threads(), granted_cores()), busy))


def chosen(parameters: int, available: int, busy_cores: float) -> int:
    """How many threads decode a network fastest.

    Args:
        parameters: of the network.
        available: cores that this process may use.
        busy_cores: how many of them other programs keep busy, see `Neighbours`.
    """
    return 1 if parameters < SMALL_NETWORK else max(1, available - round(busy_cores))


def granted_cores(root: Path = Path("/sys/fs/cgroup")) -> int:
    """How many cores' worth of time a container grants, rounded up; more than any machine has where it says nothing."""
    for name in ("cpu.max", "cpu/cpu.cfs_quota_us"):  # cgroup v2 has both numbers in one file
        try:
            quota, *period = (root / name).read_text().split()
            period = period or (root / "cpu/cpu.cfs_period_us").read_text().split()
            if int(quota) > 0:
                return max(1, math.ceil(int(quota) / int(period[0])))
        except (OSError, ValueError):  # no container, or "max"
            continue
    return 1 << 20


class Neighbours:
    """How many of this process's cores other programs keep busy, from the moment at which this is made."""

    def __init__(self, statistics: Path = Path("/proc/stat")) -> None:
        self._statistics = statistics
        self._start = self._now()

    def busy_cores(self) -> float:
        """Cores' worth of work that others have done since; 0 where this system does not say."""
        start, end = self._start, self._now()
        if start is None or end is None or end[0] - start[0] < MIN_SECONDS:
            return 0.0
        seconds, everybody, own = (after - before for before, after in zip(start, end, strict=True))
        return max(0.0, (everybody - own) / seconds)

    def _now(self) -> tuple[float, float, float] | None:
        """The time, and the seconds of processor that all programs and this one have used on its cores.

        What runs with low priority (nice) is left out, as it gives way.
        """
        try:
            cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
            ticks = 0
            for line in self._statistics.read_text().splitlines():
                core, *counts = line.split()[:9]
                if core in cores:
                    user, _nice, system, _idle, _waiting, *others = map(int, counts)
                    ticks += user + system + sum(others)
            return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()
        except (AttributeError, OSError, ValueError):  # AttributeError: only Linux has sched_getaffinity
            return None
