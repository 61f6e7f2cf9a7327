"""`dialogpt reply --batch`: order, damaged lines, kills, and that a line does not depend on its neighbours."""

from __future__ import annotations

import argparse
import codecs
import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import IO

import pytest

from dialogpt.cli import batch
from dialogpt.cli.main import main
from dialogpt.data import Reading
from dialogpt.files.disk import lock
from tests.helpers import WAIT_SECONDS, environment, needs_links, needs_posix, started


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    dialogues = [["Hello", "Hi!", f"I am {n}."][n % 3 :] for n in range(40)]
    path.write_text("".join(json.dumps({"id": n, "turns": turns}) + "\n" for n, turns in enumerate(dialogues)))
    return path


def run(*arguments: object) -> int:
    return main(["reply", "--seed", "3", "--max-new-tokens", "8", *map(str, arguments)])


def said(data: bytes | str) -> list[tuple[object, ...]]:
    """What was answered; scores may differ in their last digits with what is computed together."""
    found = [json.loads(line) for line in data.splitlines()]
    return [(entry["id"], *(reply["text"] for reply in entry["replies"])) for entry in found]


def answers(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_is_answered_in_its_place(lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--batch", lines, "--output", tmp_path / "out.jsonl", "--batch-size", 7) == 0
    found = answers(tmp_path / "out.jsonl")
    assert [entry["id"] for entry in found] == list(range(len(found)))
    assert "0 were there already, 0 failed" in capsys.readouterr().err
    assert run("--batch", lines, "--batch-size", 1) == 0  # to standard output, each line alone
    assert said(capsys.readouterr().out) == said((tmp_path / "out.jsonl").read_bytes())


def test_a_damaged_line_is_reported_and_the_rest_goes_on(
    lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = lines.read_text().splitlines()
    content[1], content[3], content[5] = '{"turns": []}', "{", json.dumps({"turns": ["x " * 5000]})
    content[6], content[7] = json.dumps({"id": 6, "turns": ["\ud800"]}), '{"turns": ["a"], "turns": 3}'
    lines.write_text("\n".join(content) + "\n")
    assert run("--batch", lines, "--output", tmp_path / "out.jsonl", "--batch-size", 5) == 1
    err = capsys.readouterr().err
    for number in (2, 4, 7, 8):
        assert f"line {number}: " in err
    found = answers(tmp_path / "out.jsonl")
    assert len(found) == len(content)
    assert [n for n, entry in enumerate(found, 1) if "error" in entry] == [2, 4, 7, 8]
    assert found[6]["line"] == 7


@pytest.mark.parametrize("left", [b'{"id": 3, "repl', b""])
def test_a_run_goes_on_behind_the_last_whole_line(lines: Path, tmp_path: Path, left: bytes) -> None:
    out = tmp_path / "out.jsonl"
    assert run("--batch", lines, "--output", out) == 0
    whole = out.read_bytes()
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]) + left)
    assert run("--batch", lines, "--output", out, "--batch-size", 4) == 0
    assert said(out.read_bytes()) == said(whole)
    whole = out.read_bytes()
    assert run("--batch", lines, "--output", out) == 0  # nothing is left to do
    assert out.read_bytes() == whole


@needs_posix
def test_a_kill_loses_nothing_and_doubles_nothing(lines: Path, tmp_path: Path) -> None:
    flags = ["--seed", "3", "--max-new-tokens", "8", "--batch", str(lines), "--batch-size", "2", "--output"]
    assert main(["reply", *flags, str(tmp_path / "whole.jsonl")]) == 0
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "dialogpt", "reply", *flags, str(out)]
    for kind in (signal.SIGKILL, signal.SIGINT):
        before = out.stat().st_size if out.exists() else 0
        with started(command, env=environment(), stderr=subprocess.DEVNULL) as process:
            end = time.monotonic() + WAIT_SECONDS
            while not out.exists() or out.stat().st_size <= before:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.01)
            process.send_signal(kind)
            assert process.wait(WAIT_SECONDS) == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[kind]
    assert main(["reply", *flags, str(out)]) == 0
    assert said(out.read_bytes()) == said((tmp_path / "whole.jsonl").read_bytes())


def test_what_cannot_be_done_is_a_sentence(lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, status, sentence in (
        (["--batch", tmp_path / "gone"], 1, "gone cannot be read: No such file"),
        (["--batch", lines, "--output", lines], 1, "is the input too; name another --output"),
        (["--batch", lines, "--output", tmp_path / "no" / "out"], 1, "cannot be written"),
        (["--batch", lines, "Hi!"], 2, "omit TURN and --json"),
        (["--output", tmp_path / "out", "Hi!"], 2, "--output goes with --batch"),
        (["--batch", lines, "--batch-size", 0], 2, "an integer from 1"),
    ):
        assert run(*flags) == status
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["my notes\n", "my precious notes", '{"turns": ["a"]}\n{"turns": ["b"]}', "[1]\n", "{}\n"]
)
def test_what_somebody_else_wrote_is_never_cut_off(
    lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    """Notes without an end of line were taken for a line that a kill had left."""
    notes = tmp_path / "notes.txt"
    notes.write_text(content)
    assert run("--batch", lines, "--output", notes) == 1
    assert "holds something else than replies" in capsys.readouterr().err
    assert notes.read_text() == content


def test_an_output_that_is_no_plain_file_is_refused(
    lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (os.devnull, tmp_path):
        assert run("--batch", lines, "--output", path) == 1
        assert f"{path} is not a plain file; leave --output away" in capsys.readouterr().err


def test_an_output_has_one_writer_and_one_input(
    lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs into one file mixed their lines; and another input's answers counted as this one's."""
    out = tmp_path / "out.jsonl"
    release = lock(tmp_path / ".out.jsonl.lock")
    (tmp_path / "here").mkdir()
    for name in (out, tmp_path / "here" / ".." / "out.jsonl"):
        assert run("--batch", lines, "--output", name) == 1
        assert "is being written by another run" in capsys.readouterr().err
    assert not out.exists()  # a run that is refused leaves no empty file
    release()
    assert run("--batch", lines, "--output", out) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "in.jsonl", "out.jsonl"]
    lines.write_text('{"turns": ["Hi!"]}\n')
    assert run("--batch", lines, "--output", out) == 1
    assert "the output has 40 lines and the input 1; it belongs to another input" in capsys.readouterr().err


def test_an_output_is_closed_before_its_lock_is_released(
    lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[IO[bytes]] = []
    closed: list[bool] = []
    honest = batch._output

    def note(path: Path) -> IO[bytes]:
        opened.append(honest(path))
        return opened[0]

    monkeypatch.setattr(batch, "_output", note)
    monkeypatch.setattr(batch, "_held", lambda path: lambda: closed.append(opened[0].closed))
    assert run("--batch", lines, "--output", tmp_path / "out.jsonl") == 0
    assert closed == [True]


@needs_links
def test_an_output_that_cannot_be_locked_is_a_sentence(
    lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".out.jsonl.lock").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    for name, sentence in (("out.jsonl", "cannot be locked: "), ("circle", "circle cannot be written: ")):
        assert run("--batch", lines, "--output", tmp_path / name) == 1
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_byte_order_mark_is_no_text(lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Windows' tools begin files with it; one within the file is not of their making."""
    outputs = []
    content = b"".join(lines.read_bytes().splitlines(keepends=True)[:2])
    for given in (content, codecs.BOM_UTF8 + content):
        lines.write_bytes(given)
        assert run("--batch", lines) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    lines.write_bytes(content + codecs.BOM_UTF8 + content)
    assert run("--batch", lines) == 1
    assert "line 3: it is not valid JSON" in capsys.readouterr().err


def test_a_failure_stays_one_when_the_run_goes_on(
    lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines.write_text('{"id": 4, "turns": []}\n{"turns": ["Hi!"], "error": "mine"}\n' + lines.read_text())
    for _ in range(2):
        assert run("--batch", lines, "--output", tmp_path / "out.jsonl") == 1
    assert "42 were there already, 1 failed" in capsys.readouterr().err
    first, second, *_ = answers(tmp_path / "out.jsonl")
    assert (first["id"], first["line"]) == (4, 1)
    assert "error" not in second


def test_what_changed_in_the_input_is_answered_anew_and_nothing_else(
    lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was repeated after its input was edited kept the old replies, and reported success."""
    out = tmp_path / "out.jsonl"
    assert run("--batch", lines, "--output", out) == 0
    before = out.read_bytes().splitlines()
    content = [json.loads(line) for line in lines.read_text().splitlines()]
    content[3]["turns"] = ["What is your name?"]
    content[30]["turns"] = ["Good night!"]
    content.append({"id": 40, "turns": ["And you?"]})
    lines.write_text("".join(json.dumps(entry) + "\n" for entry in content))
    capsys.readouterr()
    assert run("--batch", lines, "--output", out) == 0
    error = capsys.readouterr().err
    assert "3 lines answered, 38 were there already, 0 failed" in error
    assert "2 of them had changed in the input" in error
    after = out.read_bytes().splitlines()
    assert [n for n, (old, new) in enumerate(zip(before, after, strict=False)) if old != new] == [3, 30]
    assert json.loads(after[3])["turns"] == ["What is your name?"]
    assert len(after) == 41
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_kill_while_changed_lines_are_answered_loses_no_old_reply(
    lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    assert run("--batch", lines, "--output", out) == 0
    before = out.read_bytes().splitlines()
    content = lines.read_text().splitlines()
    content[0] = json.dumps({"id": 0, "turns": ["Good morning!"]})
    lines.write_text("\n".join(content) + "\n")
    with monkeypatch.context() as patch:
        patch.setattr(batch, "_answers", lambda *_: (_ for _ in ()).throw(RuntimeError))
        with pytest.raises(RuntimeError):
            batch.answer_file(lambda: None, _options(lines, out), 1)  # type: ignore[arg-type, return-value]
    assert out.read_bytes() == b""
    assert run("--batch", lines, "--output", out) == 0
    assert out.read_bytes().splitlines()[1:] == before[1:]


def _options(source: Path, out: Path) -> argparse.Namespace:
    reading = dict.fromkeys(field.name for field in fields(Reading))
    return argparse.Namespace(**{**reading, "gap": None, "batch": source, "output": out, "batch_size": 4, "seed": 3})


def test_an_input_of_another_kind_is_answered_by_dialogues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "chat.txt").write_text(
        "[20.06.19, 15:58:57] Anna: Hi!\n[20.06.19, 15:59:57] Ben: Hello.\n[22.06.19, 15:58:57] Anna: Good night!\n"
    )
    assert run("--batch", tmp_path / "chat.txt") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["turns"] for entry in found] == [["Hi!", "Hello."], ["Good night!"]]
    assert all(entry["replies"] for entry in found)


def test_a_folder_is_answered_and_an_input_is_as_long_as_its_dialogues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of `datasets` was "a directory"; an edited table was "another input", as its lines were counted."""
    pyarrow = pytest.importorskip("pyarrow")
    saved, out = tmp_path / "saved", tmp_path / "out.jsonl"
    saved.mkdir()
    (saved / "state.json").write_text("{}")

    def write(*prompts: str) -> None:
        table = pyarrow.table({"dialog": [[prompt, "And you?"] for prompt in prompts]})
        with pyarrow.ipc.new_stream(saved / "data-00000-of-00001.arrow", table.schema) as stream:
            stream.write_table(table)

    write(*(f"Hi {n}!" for n in range(5)))
    assert run("--batch", saved, "--output", out) == 0
    assert len(out.read_text().splitlines()) == 5
    write("Good morning!", *(f"Hi {n}!" for n in range(1, 5)))
    capsys.readouterr()
    assert run("--batch", saved, "--output", out) == 0
    assert "1 of them had changed in the input" in capsys.readouterr().err
    assert json.loads(out.read_text().splitlines()[0])["turns"] == ["Good morning!", "And you?"]
    write("Good evening!")
    assert run("--batch", saved, "--output", out) == 1
    assert "the output has 5 lines and the input 1; it belongs to another input" in capsys.readouterr().err
    assert len(out.read_text().splitlines()) == 5
    assert run("--batch", tmp_path) == 1
    assert f"{tmp_path} cannot be read: Is a directory" in capsys.readouterr().err


def test_messages_that_end_with_the_user_are_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They were left out, as "every weight is 0, so nothing is learned"."""
    source = tmp_path / "messages.jsonl"
    source.write_text('{"messages": [{"role": "user", "content": "Hi!"}]}\n')
    assert main(["reply", "--batch", str(source), "--seed", "1"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["turns"] == ["Hi!"]
    assert json.loads(line)["replies"][0]["text"]


def test_standard_input_is_of_our_own_kind(capsys: pytest.CaptureFixture[str]) -> None:
    """`--from csv` was ignored with `--batch -`: each line of the table failed as JSON."""
    assert main(["reply", "--batch", "-", "--from", "csv"]) == 2
    assert "--from csv needs a file; save standard input to one" in capsys.readouterr().err


def test_a_full_disk_names_the_output(
    lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error named no file, and a second one came when the output was closed."""
    path = tmp_path / "out.jsonl"

    def refuse(_file: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dialogpt.cli.batch.os.fsync", refuse)
    assert run("--batch", lines, "--output", path) == 1
    assert f"{path} cannot be written: No space left on device; run the command again" in capsys.readouterr().err
    monkeypatch.undo()
    assert run("--batch", lines, "--output", path) == 0
    assert len(answers(path)) == 40
