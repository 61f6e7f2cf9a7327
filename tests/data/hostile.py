"""Read one hostile file in a process of its own: its processor time, memory and outcome as a line of JSON.

    python hostile.py KIND FILE

It imports no torch, as readers do not; so what is measured is theirs.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

from dialogpt.data import Reading, read
from dialogpt.errors import DialogueError


def peak() -> float:
    """The most memory that this process held, in MiB; resource's own figure is that of the process that started it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def main(kind: str, paths: list[str]) -> None:
    """Read each file, and print what became of it."""
    for path in paths:
        start, count, problems, sentence = time.process_time(), 0, 0, ""

        def note(problem: object) -> None:
            nonlocal problems
            problems += 1

        try:
            for _ in read(path, Reading(kind=kind), on_problem=note):
                count += 1
        except DialogueError as error:
            sentence = str(error)
        seconds = time.process_time() - start
        mebibytes = peak()
        print(json.dumps([path, count, problems, sentence, seconds, mebibytes]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
