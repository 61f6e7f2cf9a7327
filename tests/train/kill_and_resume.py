"""Train in child processes that are killed at random moments; see `test_run.py`.

Children are forked after everything was imported, so that a kill can come after milliseconds. The last line printed
is JSON: how many were killed, and the step of the last checkpoint after each.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.train.runs import a_long_request, train
from weights import load, open_checkpoint


def child(folder: Path) -> None:
    """Begin the run, or go on with it."""
    out = folder / "killed"
    train(out, None if (out / "run.json").exists() else a_long_request(folder))


def await_a_moment(out: Path, saved: int, draw: random.Random) -> None:
    """Wait into the child's start, or until it is some steps further, however slow the machine is."""
    if draw.random() < 0.3:
        time.sleep(draw.uniform(0.005, 0.1))
        return
    goal, latest = saved + draw.randint(1, 10), time.monotonic() + 60
    while time.monotonic() < latest and logged(out) < goal:
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.02))  # into a step, or into saving


def logged(out: Path) -> int:
    """The last step in a run's metrics."""
    path = out / "metrics.jsonl"
    numbers = re.findall(rb'"step": (\d+)', path.read_bytes()) if path.exists() else []
    return int(numbers[-1]) if numbers else 0


def main(folder: Path, kills: int) -> None:
    draw = random.Random(0)
    steps: list[int] = []
    while len(steps) < kills:
        process = os.fork()
        if process == 0:
            child(folder)
            os._exit(0)
        await_a_moment(folder / "killed", max([0, *steps]), draw)
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        assert os.WIFSIGNALED(status), "the run ended before it could be killed; make it longer"
        last = folder / "killed" / "last"
        steps.append(int(last.resolve().name.removeprefix("step-")) if last.exists() else -1)
        if last.exists():
            load(open_checkpoint(last))
    child(folder)
    print(json.dumps({"kills": len(steps), "steps": steps}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
