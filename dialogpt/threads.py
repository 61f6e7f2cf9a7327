"""How many processor threads a command uses, and how they wait for each other.

Between two products the threads of torch spin in a loop (300,000 turns of it in libgomp) before they sleep. On a quiet
machine that is fastest; where another program keeps a core busy, each waits for a thread that does not run, and a reply
takes five to twenty times as long. So a command lets them sleep soon, uses one thread for a small network, and no more
than are free. Programs that import the package keep torch's own choice. docs/benchmarks.md has the figures.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path

SPIN_COUNT = 1000  # turns of the loop before a waiting thread sleeps: some 30 microseconds
SMALL_NETWORK = 30_000_000  # parameters; below, one thread is as fast as two, as a product takes a few microseconds
MIN_SECONDS = 0.05  # a shorter look at what else runs says nothing


def let_threads_sleep(environment: MutableMapping[str, str] = os.environ) -> None:
    """Make waiting threads sleep soon, unless the person has said how they shall wait.

    It must be called before torch is imported. Only libgomp, the library of torch on Linux, reads it.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))


class Neighbours:
    """How many cores other programs keep busy, from the moment at which this is made."""

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
        """The time, and the seconds of processor that all programs and this one have used."""
        try:
            user, nice, system, _idle, _waiting, *others = map(int, self._statistics.read_text().split()[1:9])
        except (OSError, ValueError):
            return None
        ticks = user + nice + system + sum(others)  # interrupts, and what a virtual machine's host takes away
        return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()


def chosen(parameters: int, most: int, busy_cores: float) -> int:
    """How many threads decode a network fastest.

    Args:
        parameters: of the network.
        most: torch's own choice, the cores that this process may use.
        busy_cores: what other programs keep busy, see `Neighbours`.
    """
    return 1 if parameters < SMALL_NETWORK else max(1, most - round(busy_cores))


def use(
    given: int | None, parameters: int, neighbours: Neighbours, environment: Mapping[str, str] = os.environ
) -> None:
    """Set torch's threads: as many as were asked for, by a flag or OMP_NUM_THREADS, else as many as are fastest."""
    import torch

    if given is not None:
        torch.set_num_threads(given)
    elif "OMP_NUM_THREADS" not in environment:
        torch.set_num_threads(chosen(parameters, torch.get_num_threads(), neighbours.busy_cores()))
