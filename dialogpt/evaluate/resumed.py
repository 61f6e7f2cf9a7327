"""Work on many dialogues, group by group, whose results are kept line by line, so that an interrupted run resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from dialogpt.decoding.stop import Stop, Stopped
from dialogpt.errors import DialogueError
from dialogpt.files.disk import lock_output, reason_of

Item = TypeVar("Item")
Line = dict[str, Any]
OnProgress = Callable[[int, int], None]  # is told how many items are done, and of how many


def resumed(
    items: Sequence[Item],
    compute: Callable[[int, Sequence[Item]], list[Line]],
    *,
    group_size: int,
    path: Path | None = None,
    settings: Line | None = None,
    stop: Stop | None = None,
    on_progress: OnProgress | None = None,
) -> list[Line]:
    """Compute a line for each item, and skip what a file holds already.

    Args:
        items: what is worked on.
        compute: gets the index of a group's first item and the group, and returns a line for each.
        group_size: how many items are computed together.
        path: the file, written after each group; its first line holds the settings. None keeps nothing.
        settings: what the lines depend on.
        stop: asked before each group; true ends the work.
        on_progress: called at the start and after each group.

    Raises:
        Stopped: `stop` returned true; what was computed is in the file.
        DialogueError: the file was computed with other settings, is being written by another run, or cannot be written.
    """
    with ExitStack() as files:
        lines: list[Line] = []
        file: IO[bytes] | None = None
        if path is not None:
            file = files.enter_context(_opened(path, files))
            wanted = json.loads(json.dumps(settings or {}))  # as it is read back: tuples are lists
            lines = _kept(file, path, wanted)[: len(items)]
        if on_progress is not None:
            on_progress(len(lines), len(items))
        while len(lines) < len(items):
            if stop is not None and stop():
                raise Stopped
            first = len(lines)
            found = compute(first, items[first : first + group_size])
            lines += found
            if file is not None:
                _append(file, found)
            if on_progress is not None:
                on_progress(len(lines), len(items))
    return lines


def _opened(path: Path, files: ExitStack) -> IO[bytes]:
    """Open the file for this run alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.callback(lock_output(path))
        return path.open("r+b" if path.exists() else "w+b")
    except BlockingIOError as error:
        raise DialogueError(str(error)) from None
    except OSError as error:
        raise DialogueError(f"{path} cannot be written: {reason_of(error)}") from None


def _kept(file: IO[bytes], path: Path, settings: Line) -> list[Line]:
    """The whole lines of a file, at whose end it is left; a last one that a kill left unfinished is cut off."""
    lines: list[Line] = []
    end = 0
    for raw in file:
        content = None
        with suppress(ValueError, RecursionError):
            content = json.loads(raw)
        if not raw.endswith(b"\n"):
            break
        if not isinstance(content, dict):
            raise DialogueError(f"{path} holds something else than an evaluation; name another folder with --out")
        if not lines and content != settings:
            raise DialogueError(
                f"{path} was computed from other dialogues or with other settings; name another folder with --out, or "
                f"remove it"
            )
        lines.append(content)
        end += len(raw)
    file.seek(end)
    file.truncate()
    if not lines:
        _append(file, [settings])
    return lines[1:]


def _append(file: IO[bytes], lines: Sequence[Line]) -> None:
    for line in lines:
        file.write(json.dumps(line, ensure_ascii=False).encode(errors="replace") + b"\n")
    file.flush()
    os.fsync(file.fileno())
