"""Train in child processes that are killed at random moments; see `test_run.py`.

Children are forked after everything was imported, so that a kill can come after milliseconds. The last line printed
is JSON: how many were killed, and the step of the newest checkpoint before and after each.
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

from dialogpt.weights import load, open_checkpoint
from tests.train.runs import a_long_request, train


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


def newest(out: Path) -> int:
    """The step of the newest checkpoint that training can go on from; -1 where there is none."""
    return max([-1, *(int(path.parent.name.removeprefix("step-")) for path in out.glob("step-*/training.json"))])


def main(folder: Path, kills: int) -> None:
    draw = random.Random(0)
    out = folder / "killed"
    steps: list[tuple[int, int]] = []
    while len(steps) < kills:
        process = os.fork()
        if process == 0:
            child(folder)
            os._exit(0)
        await_a_moment(out, newest(out), draw)
        before = max([newest(out), *(after for _, after in steps)])  # a look may fall between a new one and the old
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        assert os.WIFSIGNALED(status), "the run ended before it could be killed; make it longer"
        steps.append((before, newest(out)))
        if (out / "last").exists():
            load(open_checkpoint(out / "last"), trainable=True)  # packing would start threads, which no child has
    child(folder)
    print(json.dumps({"kills": len(steps), "steps": steps}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
