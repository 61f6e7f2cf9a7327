"""`dialogpt import` as a person uses it: what it prints, what it writes, and a sentence for every mistake."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dialogpt.cli.main import main
from dialogpt.cli.reading import KIND_NAMES
from dialogpt.data import KINDS
from tests.helpers import ROOT, WAIT_SECONDS, environment, needs_posix, started

CHAT = (
    "[20.06.21, 15:58:57] Mia: Hi Grandpa!\n[20.06.21, 16:02:31] Grandpa: In the garden.\n"
    "[20.06.21, 16:02:40] Grandpa: \u200eimage omitted\n[21.06.21, 16:02:31] Mia: alone\n"
)


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    (tmp_path / "chat.txt").write_text(CHAT, encoding="utf-8")
    return tmp_path / "chat.txt"


def test_the_names_of_kinds_are_the_formats() -> None:
    """They are written twice, as `dialogpt --help` must not import every format."""
    assert ("auto", *KINDS) == KIND_NAMES


def test_an_import_writes_data_and_problems_and_reports(
    chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "DATA.jsonl"
    assert main(["import", str(chat), "--out", str(out), "--bot", "Grandpa"]) == 0
    assert json.loads(out.read_text()) == {
        "turns": ["Hi Grandpa!", "In the garden."],
        "weights": [0.0, 1.0],
        "speakers": ["Mia", "Grandpa"],
    }
    assert (tmp_path / "DATA.problems.txt").read_text(encoding="utf-8").splitlines() == [
        f"{chat}, line 3: media",
        f"{chat}, line 4: 1 turn, at least 2 needed",
    ]
    captured = capsys.readouterr()
    assert captured.out == ""
    for part in (
        f"{chat}: whatsapp",
        "1 dialogues, 2 turns (2.0 a dialogue), 1 of them learned",
        "speakers and their turns: 'Mia' 1, 'Grandpa' 1",
        "tokens a turn: median",
        "1 times: media",
        "1 times: N turn, at least N needed",
    ):
        assert part in captured.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["DATA.jsonl", "DATA.problems.txt", "chat.txt"]


def test_check_shows_and_writes_nothing(chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(chat), "--check"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{chat}: whatsapp",
        "  line 1",
        "    weight 1: Mia: Hi Grandpa!",
        "    weight 1: Grandpa: In the garden.",
        f"  left out: {chat}, line 3: media",
        f"  left out: {chat}, line 4: 1 turn, at least 2 needed",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["chat.txt"]


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["chat.txt"], 2, "name the file to write with --out"),
        (["chat.txt", "--check", "--out", "x"], 2, "or look at the data with --check"),
        (["chat.txt", "--out", "x", "--split", "1"], 2, "--split is 1.0, expected a share from 0 below 1"),
        (["chat.txt", "--out", "x", "--gap", "soon"], 2, "'soon' is no time span"),
        (["chat.txt", "--out", "x", "--min-turns", "0"], 2, "--min-turns is 0, expected at least 1"),
        (["chat.txt", "--out", "x", "--from", "wechat"], 2, "invalid choice: 'wechat'"),
        (["gone.txt", "--out", "x"], 1, "gone.txt is not there"),
        (["chat.txt", "--out", "chat.txt"], 1, "chat.txt exists already; name another file"),
        (["chat.txt", "--out", "no/where"], 1, "no/where cannot be written: No such file or directory"),
        (["chat.txt", "--out", "x", "--bot", "Nobody"], 1, "nobody is called 'Nobody' there"),
        (
            ["chat.txt", "--out", "x", "--from", "turns"],
            1,
            "chat.txt, line 1: not valid JSON",
        ),
    ],
)
def test_mistakes_are_sentences_and_leave_nothing(
    chat: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    status: int,
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["import", *arguments]) == status
    assert sentence in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["chat.txt"]
    assert chat.read_text(encoding="utf-8") == CHAT


def test_a_column_whose_name_has_a_comma(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text('"last, first",text\nX,hi\nY,ho\n')
    arguments = ["import", str(tmp_path / "a.csv"), "--check", "--columns"]
    assert main([*arguments, '"speaker=last, first",text=text']) == 0
    assert "weight 1: Y: ho" in capsys.readouterr().out
    assert main([*arguments, "speaker,,text"]) == 2
    assert "--columns is 'speaker,,text', expected names with commas between them" in capsys.readouterr().err


@needs_posix
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "large.jsonl"
    with source.open("w") as file:
        file.writelines(f'{{"turns": ["hello {n}", "and you"]}}\n' for n in range(1_000_000))
    command = [sys.executable, "-m", "dialogpt", "import", str(source), "--out", str(tmp_path / "out.jsonl")]
    with started(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE) as process:
        end = time.monotonic() + WAIT_SECONDS
        while not any(path.stat().st_size for path in tmp_path.glob(".out.jsonl.*")):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["large.jsonl"]


@needs_posix
def test_a_full_disk_leaves_nothing_and_is_a_sentence(tmp_path: Path) -> None:
    """What was still buffered could not be written at the end either: that error hid the first, and left the files."""
    source = tmp_path / "large.jsonl"
    source.write_text('{"turns": ["hello", "and you"]}\n' * 20_000)
    script = (
        "import resource, sys\nfrom dialogpt.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "import", str(source), "--out", str(tmp_path / "out.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=WAIT_SECONDS)
    assert done.returncode == 1
    assert done.stderr == f"dialogpt: error: {tmp_path / 'out.jsonl'} cannot be written: File too large\n"
    assert [path.name for path in tmp_path.iterdir()] == ["large.jsonl"]


def piped(arguments: list[str], data: bytes, **changes: str) -> subprocess.CompletedProcess[bytes]:
    """A run of `dialogpt import` with something on its standard input."""
    command = [sys.executable, "-m", "dialogpt", "import", *arguments]
    return subprocess.run(
        command, input=data, capture_output=True, cwd=ROOT, env=environment(**changes), timeout=WAIT_SECONDS
    )


def test_standard_input_is_a_source(chat: Path, tmp_path: Path) -> None:
    """A chat is read twice, for its dates, which a pipe cannot be; a byte-order mark comes with what Windows pipes."""
    out, copies = tmp_path / "DATA.jsonl", tmp_path / "copies"
    copies.mkdir()
    done = piped(["-", "--out", str(out), "--bot", "Grandpa"], b"\xef\xbb\xbf" + CHAT.encode(), TMPDIR=str(copies))
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["turns"] == ["Hi Grandpa!", "In the garden."]
    assert (tmp_path / "DATA.problems.txt").read_text(encoding="utf-8").splitlines() == [
        "standard input, line 3: media",
        "standard input, line 4: 1 turn, at least 2 needed",
    ]
    assert b"standard input: whatsapp" in done.stderr
    assert not [*copies.iterdir()]


@needs_posix
def test_check_reads_no_more_of_a_pipe_than_it_shows() -> None:
    """A source that never ends is looked at, too."""
    endless = 'import itertools\nfor _ in itertools.count(): print(\'{"turns": ["hi", "hello"]}\')'
    command = [sys.executable, "-m", "dialogpt", "import", "-", "--check"]
    with started([sys.executable, "-c", endless], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as source:
        done = subprocess.run(
            command, stdin=source.stdout, capture_output=True, cwd=ROOT, env=environment(), timeout=WAIT_SECONDS
        )
    assert done.returncode == 0
    assert done.stdout.count(b"weight 1: hello") == 3


@needs_posix
def test_ctrl_c_and_a_full_disk_leave_no_copy_of_standard_input(tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    command = [sys.executable, "-m", "dialogpt", "import", "-", "--out", str(tmp_path / "DATA.jsonl")]
    with started(
        command, cwd=ROOT, env=environment(TMPDIR=str(copies)), stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        end = time.monotonic() + WAIT_SECONDS
        while not any(copies.glob("*/*")):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_SECONDS) == 130
    script = (
        "import resource, sys\nfrom dialogpt.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "sys.exit(main(['import', '-', '--check']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=b"hello\n" * 200_000, capture_output=True,
        env=environment(TMPDIR=str(copies)), timeout=WAIT_SECONDS,
    )  # fmt: skip
    assert done.returncode == 1
    assert b"set TMPDIR to a folder with more room" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["copies"]
    assert not [*copies.iterdir()]


def test_standard_input_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "-", "-", "--check"]) == 2
    assert "- is standard input, which can be read once" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["train", "-", "--out", "RUN"], ["evaluate", "-"]])
def test_other_commands_say_who_reads_standard_input(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """They said "- is not there"."""
    assert main(arguments) == 1
    assert "`dialogpt import - --out FILE` makes a file of it" in capsys.readouterr().err


def test_looking_and_failing_need_no_torch(chat: Path, tmp_path: Path) -> None:
    """A second and a half of torch came before the first line was read, and before every mistake was told."""
    for arguments in (["--check"], ["--out", str(tmp_path / "x.jsonl"), "--bot", "Nobody"]):
        script = (
            "import sys\nfrom dialogpt.cli.main import main\n"
            "main(sys.argv[1:])\nprint('torch' in sys.modules, file=sys.stderr)"
        )
        command = [sys.executable, "-c", script, "import", str(chat), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=WAIT_SECONDS)
        assert done.stderr.splitlines()[-1] == "False", done.stderr
