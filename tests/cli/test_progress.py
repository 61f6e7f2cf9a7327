"""The progress line: in a terminal one line with the time that is left, in a pipe nothing."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from dialogpt.cli import progress
from dialogpt.cli.main import main
from dialogpt.cli.progress import MEGABYTES, ProgressLine, clock


class Terminal(io.StringIO):
    """Standard error that claims to be a terminal, or not."""

    def __init__(self, is_terminal: bool = True) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal

    @property
    def lines(self) -> list[str]:
        """What was shown, one after the other."""
        return [part for part in re.split(r"\r|\x1b\[K|\n", self.getvalue()) if part]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    time = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=terminal))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    return terminal


def test_the_time_that_is_left_follows_from_the_speed(now: list[float], terminal: Terminal) -> None:
    line = ProgressLine()
    line.count("answering", 2, 10, "lines")
    now[0] += 3
    line.refresh()
    line.count("answering", 4, 10, "lines")  # too soon after the last one
    now[0] += 1
    line.count("answering", 4, 10, "lines")
    line.end()
    assert terminal.lines == ["answering: 2 of 10 lines, 0:03 so far", "answering: 4 of 10 lines, 0:12 left"]
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_another_piece_of_work_starts_the_clock_anew(now: list[float], terminal: Terminal) -> None:
    line = ProgressLine()
    line.count("reading", 0, 10, "lines")
    now[0] += 100
    line.count("writing", 0, 4_000_000, MEGABYTES)
    now[0] += 1
    line.count("writing", 1_000_000, 4_000_000, MEGABYTES)
    line.count("reading", 0, None, "lines")
    now[0] += 1
    line.count("reading", 5, None, "lines")
    assert terminal.lines == [
        "writing: 0 of 4 MB, 0:00 so far",
        "writing: 1 of 4 MB, 0:03 left",
        "reading: 5 lines, 0:01 so far",
    ]


def test_what_is_done_at_once_shows_nothing(now: list[float], terminal: Terminal) -> None:
    with ProgressLine() as line:
        line.count("loading", 0, 2, "tensors")
        now[0] += 0.1
        line.count("loading", 1, 2, "tensors")
    assert terminal.getvalue() == ""


def test_a_sentence_takes_the_place_of_the_line_and_stays(now: list[float], terminal: Terminal) -> None:
    line = ProgressLine()
    now[0] += 1
    line.show("one\x1b[2J")
    line.say("a\nsentence")
    assert terminal.getvalue() == "\rone\N{REPLACEMENT CHARACTER}[2J\x1b[K\r\x1b[Ka sentence\n"
    now[0] += 1
    line.show("x" * 200)
    assert len(terminal.lines[-1]) == 79  # a longer one would leave its first half behind


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_in_a_pipe_there_is_nothing(
    term: str, now: list[float], monkeypatch: pytest.MonkeyPatch, terminal: Terminal
) -> None:
    terminal.is_terminal = term == "dumb"
    monkeypatch.setenv("TERM", term)
    with ProgressLine() as line:
        for done in range(10):
            now[0] += 100
            line.count("answering", done, 10, "lines")
    assert terminal.getvalue() == ""


def test_the_log_of_a_long_run_has_a_line_now_and_then(now: list[float], terminal: Terminal) -> None:
    terminal.is_terminal = False
    line = ProgressLine(log_seconds=30)
    for done in range(4):
        now[0] += 20
        line.count("comments", done, 4, "parts")
    line.show("the end", last=True)
    assert terminal.getvalue() == "comments: 1 of 4 parts, 1:00 left\ncomments: 3 of 4 parts, 0:20 left\nthe end\n"


def test_a_counter_stops_where_it_is_asked_to(terminal: Terminal) -> None:
    with pytest.raises(KeyboardInterrupt):
        ProgressLine().counter("converting", "tensors", lambda: True)(0, 3)


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00"), (59.6, "1:00"), (725, "12:05"), (11_400, "3:10:00")])
def test_time_spans_are_for_people(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


@pytest.mark.parametrize(
    "command", ["convert", "batch", "beams", "import", "load", pytest.param("evaluate", marks=pytest.mark.integration)]
)
def test_every_long_command_has_the_line_in_a_terminal_alone(
    command: str, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: Terminal
) -> None:
    monkeypatch.setattr(progress, "IN_TERMINAL", 0.0)
    dialogues = tmp_path / "in.jsonl"
    dialogues.write_text("".join(f'{{"turns": ["Hi! {n}", "Hello."]}}\n' for n in range(6)))
    monkeypatch.chdir(published.parent)  # a short name leaves room on the line
    few = ["--max-new-tokens", "2", "--model", published.name]
    batch = ["reply", "--batch", str(dialogues), "--batch-size", "2", *few, "--output", str(tmp_path / "out")]
    arguments, expected = {
        "convert": (["convert", str(published), str(tmp_path / "new")], r"converting: \d+ of \d+ tensors, .* left"),
        "batch": (batch, "answering: 4 of 6 lines, .* left"),
        "beams": ([*batch, "--num-beams", "2"], "answering: 0 of 6 lines, .* so far"),
        "import": (["import", str(dialogues), "--out", str(tmp_path / "new")], "importing: 0 of 0 MB, .* so far"),
        "evaluate": (
            ["evaluate", str(dialogues), "--batch-size", "2", "--resamples", "0", *few],
            r"replies: \d of 6 dialogues, .* left",
        ),
        "load": (["reply", "Hi!", *few], r"loading small-bot: \d+ of \d+ tensors, .* left"),
    }[command]
    assert main(arguments) == 0
    assert any(re.search(expected, line) for line in terminal.lines), terminal.lines
    for path in (tmp_path / "new", tmp_path / "out"):
        if path.is_file():
            path.unlink()
    terminal.truncate(0)
    terminal.is_terminal = False
    again = [*arguments[:-1], str(tmp_path / "other")] if command in ("convert", "import") else arguments
    assert main(again) == 0
    assert not any(" left" in line or "so far" in line for line in terminal.lines), terminal.lines
