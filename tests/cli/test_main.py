"""The command line as a user meets it: pipes, exit statuses, one sentence for each mistake, and Ctrl-C."""

from __future__ import annotations

import codecs
import errno
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dialogpt.cli import main as cli
from dialogpt.cli import options
from dialogpt.cli.commands.chat import answer_lines
from dialogpt.cli.output import print_reply
from dialogpt.cli.printable import one_line
from dialogpt.weights import DTYPES, open_checkpoint
from dialogpt.weights.formats import PRECISIONS
from tests.helpers import ROOT, WAIT_SECONDS, await_torch, environment, needs_posix, needs_proc


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run a command in this process; gives its status, stdout and stderr."""

    def call(*arguments: object, stdin: bytes = b"") -> SimpleNamespace:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return SimpleNamespace(status=status, out=out, err=err)

    return call


def process(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    """Run a command in a process of its own, from another folder."""
    command = [sys.executable, "-m", "dialogpt", *map(str, arguments)]
    defaults = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment(PYTHONUNBUFFERED="1"), **{**defaults, **options})


# ---- pipes ----


def test_a_pipe_gets_one_line_for_each_line(run: Any, published: Path) -> None:
    said = b"Hello\n\n   \n/help\r\nlast line without an end"
    result = run("chat", "--model", published, "--seed", 1, stdin=said)
    lines = result.out.split("\n")
    assert result.status == 0
    assert len(lines) == 6
    assert lines[1:3] == ["", ""]
    assert all(lines[place] for place in (0, 3, 4))
    assert lines[-1] == ""
    assert result.err == ""


def test_the_same_seed_says_the_same(run: Any, published: Path) -> None:
    outputs = [run("chat", "--model", published, "--seed", 7, stdin=b"Hi\nHi\n").out for _ in range(2)]
    assert outputs[0] == outputs[1]
    assert outputs[0] != run("chat", "--model", published, "--seed", 8, stdin=b"Hi\nHi\n").out


def test_a_newline_inside_a_reply_becomes_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    chat: Any = SimpleNamespace(reply=lambda text: "one\ntwo\r\nthree\u2028four\x0bfive")
    monkeypatch.setattr("builtins.print", lambda line, flush: written.append(line))
    answer_lines(chat, io.BytesIO(b"Hi\n"), print_reply)
    assert written == ["one two three four five"]


def test_input_that_is_not_utf8_is_a_sentence_after_the_lines_before_it(run: Any, published: Path) -> None:
    result = run("chat", "--model", published, stdin=b"Hello\nfa\xe7ade\nmore\n")
    assert result.status == 1
    assert result.out.count("\n") == 1
    assert result.err == (
        "dialogpt: error: line 2 of the input is not UTF-8 (byte 0xe7 at place 3); convert it to UTF-8 first\n"
    )


def test_a_byte_order_mark_is_no_text(run: Any, published: Path) -> None:
    """PowerShell begins what it pipes with it, and the first turn was another one for it."""
    said = b"Hi\nHi\n"
    flags = ("chat", "--model", published, "--greedy")
    assert run(*flags, stdin=codecs.BOM_UTF8 + said).out == run(*flags, stdin=said).out
    dialogue = json.dumps({"turns": ["Hi"]}).encode()
    flags = ("reply", "--model", published, "--greedy", "--json")
    assert run(*flags, stdin=codecs.BOM_UTF8 + dialogue).out == run(*flags, stdin=dialogue).out != ""


@pytest.mark.parametrize(("again", "status"), [(errno.EINVAL, 141), (None, 1)])
def test_a_closed_pipe_is_einval_on_windows(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], again: int | None, status: int
) -> None:
    """It is a closed pipe where standard output says so again; any other EINVAL is an error."""

    def failing() -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    class Pipe(io.StringIO):
        def flush(self) -> None:
            if again is not None:
                raise OSError(again, "Invalid argument")

    monkeypatch.setattr(sys, "stdout", Pipe())
    monkeypatch.setattr(cli, "_abandon_stdout", lambda: None)
    assert cli.guarded(failing) == status
    assert capfd.readouterr().err == ("" if status == 141 else "dialogpt: error: input or output: Invalid argument\n")


# ---- reply ----


def test_reply_answers_a_dialogue(run: Any, published: Path) -> None:
    result = run("reply", "--model", published, "--seed", 1, "Hi", "Hello", "How are you?")
    assert result.status == 0
    assert result.out.count("\n") == 1


def test_reply_speaks_json(run: Any, published: Path) -> None:
    said = json.dumps({"turns": ["Hi", "Hello", "naïve 🤖?"]}).encode()
    result = run("reply", "--model", published, "--seed", 1, "--json", "--num-replies", 3, stdin=said)
    replies = json.loads(result.out)["replies"]
    assert len(replies) == 3
    assert all(set(reply) == {"text", "ids", "finish_reason", "score"} for reply in replies)
    same = run("reply", "--model", published, "--seed", 1, "--num-replies", 3, "Hi", "Hello", "naïve 🤖?")
    assert same.out.split("\n")[:3] == [one_line(reply["text"]) for reply in replies]


def test_temperature_0_is_greedy(run: Any, published: Path) -> None:
    greedy = run("reply", "--model", published, "--greedy", "Hi").out
    assert run("reply", "--model", published, "--temperature", "0", "Hi").out == greedy
    assert run("reply", "--model", published, "--greedy", "--repetition-penalty", "5", "Hi").out != greedy


@pytest.mark.parametrize("stdin", [b"", b"{", b"[]", b'{"turns": []}', b'{"turns": [1]}', b"\xff", b"[" * 99999])
def test_json_that_is_no_dialogue_is_a_sentence(run: Any, published: Path, stdin: bytes) -> None:
    result = run("reply", "--model", published, "--json", stdin=stdin)
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("dialogpt: error: standard input ")
    assert 'expected {"turns": [' in result.err


# ---- convert and info ----


def test_convert_there_and_back(run: Any, published: Path, tmp_path: Path) -> None:
    result = run("convert", published, tmp_path / "ours", "--dtype", "bfloat16")
    assert result.status == 0
    assert "bfloat16" in result.out
    assert open_checkpoint(tmp_path / "ours").ours
    assert run("convert", "--to", "hf", tmp_path / "ours", tmp_path / "back").status == 0
    assert not open_checkpoint(tmp_path / "back").ours


def test_the_script_does_the_same(published: Path, tmp_path: Path) -> None:
    from scripts import convert_weights

    assert convert_weights.main([str(published), str(tmp_path / "ours")]) == 0
    assert open_checkpoint(tmp_path / "ours").ours


def test_info_says_what_a_checkpoint_is(run: Any, published: Path, tmp_path: Path) -> None:
    run("convert", published, tmp_path / "ours")
    for source in (published, tmp_path / "ours"):
        result = run("info", source)
        assert result.status == 0
        for part in ("2 layers, 24 wide, 3 heads, 128 positions", "557 tokens", open_checkpoint(source).sha256()):
            assert part in result.out


# ---- mistakes ----


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["chat", "--top-k", "many"],
        ["chat", "--top-p", "1.5"],
        ["chat", "--max-new-tokens", "0"],
        ["chat", "--min-new-tokens", "99"],
        ["chat", "--dtype", "int3"],
        ["chat", "--threads", "0"],
        ["chat", "--nothing"],
        ["convert", "a", "b", "c"],
        ["chat", "--threads", "99999999999999"],
        ["chat", "--seed", "9" * 5000],
        ["chat", "--greedy", "--do-sample"],
        ["chat", "--temperature", "0", "--do-sample"],
        ["chat", "--seed", "-1"],
        ["chat", "--history-tokens", "x"],
        ["reply"],
        ["reply", "--num-replies", "0", "Hi"],
        ["reply", "--num-replies", "2", "--greedy", "Hi"],
        ["convert", "somewhere"],
        ["convert", "a", "b", "--to", "hf", "--dtype", "float16"],
    ],
    ids=lambda arguments: " ".join(arguments)[:40],
)
def test_wrong_usage_is_2(run: Any, arguments: Sequence[str]) -> None:
    result = run(*arguments)
    assert (result.status, result.out) == (2, "")
    assert f"usage: dialogpt {' '.join(arguments[:1]) if len(arguments) > 1 else ''}".strip() in result.err
    assert "error: " in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["chat", "--model", "gone"], "there is no folder or file 'gone'"),
        (["reply", "--model", "microsoft/DialoGPT-small", "Hi"], "hub"),
        (["info", "gone"], "there is no folder or file"),
        (["info", "{published}/config.json"], "is no checkpoint's weights; pass the folder"),
        (["info", "two\nlines\x1b[2J"], "'two\\nlines"),
        (["info", ""], "the name of the checkpoint is empty"),
        (["reply", "--model", "{published}", "--device", "meta", "Hi"], "device 'meta' cannot be used here"),
        (["convert", "gone", "there"], "there is no folder or file"),
        (["reply", "--model", "{published}", "--max-new-tokens", "128", "Hi"], "room for a prompt"),
        (["reply", "--model", "{published}", "--device", "gpu", "Hi"], "device 'gpu' cannot be used here"),
        (["reply", "--model", "{published}", "\udcff"], "half a surrogate pair"),
        (["convert", "{published}", "{published}"], "exists already"),
    ],
)
def test_a_failure_is_1_and_one_sentence(run: Any, published: Path, arguments: list[str], sentence: str) -> None:
    result = run(*(argument.format(published=published) for argument in arguments))
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("dialogpt: error: ")
    assert sentence in result.err
    assert result.err.count("\n") == 1


def test_dtypes_are_those_of_weights() -> None:
    assert (tuple(DTYPES), PRECISIONS) == (options.DTYPES, options.PRECISIONS)


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_imports_no_torch(flag: str) -> None:
    program = (
        f"import sys; from dialogpt.cli.main import main; status = main([{flag!r}]); "
        "sys.exit(99 if 'torch' in sys.modules or 'numpy' in sys.modules else status)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True)
    assert done.returncode == 0
    assert done.stdout


# ---- in processes of their own ----


def test_a_closed_pipe_ends_quietly(published: Path) -> None:
    chat = process("chat", "--model", published)
    assert chat.stdin
    assert chat.stdout
    chat.stdout.close()
    _, err = chat.communicate(b"Hi\n" * 50, timeout=WAIT_SECONDS)
    assert (chat.returncode, err) == (141, b"")


@needs_proc
def test_a_full_disk_is_a_sentence(published: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        chat = process("chat", "--model", published, stdout=full)
        _, err = chat.communicate(b"Hi\n", timeout=WAIT_SECONDS)
    assert chat.returncode == 1
    assert err == b"dialogpt: error: input or output: No space left on device\n"


@needs_posix
def test_a_closed_standard_input_is_a_sentence(published: Path) -> None:
    command = f"{sys.executable} -m dialogpt chat --model {published} <&-"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True)
    assert done.returncode == 1
    assert done.stderr == b"dialogpt: error: standard input is closed; there is nothing to read\n"


@needs_posix
@pytest.mark.parametrize("command", ["chat", "reply Hi", "reply --json", "info", "--help"])
def test_a_closed_standard_output_ends_quietly(published: Path, command: str) -> None:
    model = "" if command == "--help" else published if command == "info" else f"--model {published}"
    done = subprocess.run(
        f"{sys.executable} -m dialogpt {command} {model} >&-", shell=True, cwd=ROOT, capture_output=True
    )
    assert (done.returncode, done.stderr) == (141, b"")


@needs_posix
def test_an_error_never_goes_to_standard_output(published: Path) -> None:
    for command in ("info gone", "chat --nothing"):
        done = subprocess.run(f"{sys.executable} -m dialogpt {command} 2>&-", shell=True, cwd=ROOT, capture_output=True)
        assert done.returncode in (1, 2)
        assert done.stdout == b""


PRESSED_WHILE_IMPORTING = """
import importlib.abc, os, signal, sys

class Presser(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("dialogpt.errors", "dialogpt.cli.commands"):
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Presser())
from dialogpt.__main__ import console
console()
"""


@needs_posix
def test_ctrl_c_while_the_command_line_is_imported_is_silent() -> None:
    """It was a traceback for the first tenths of a second."""
    done = subprocess.run([sys.executable, "-c", PRESSED_WHILE_IMPORTING], capture_output=True, env=environment())
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@needs_proc
def test_two_signals_at_once_are_one_interruption(published: Path) -> None:
    """`timeout` sends a signal to the child and to its group; the second came while the first was being handled."""
    chat = process("chat", "--model", published)
    await_torch(chat)
    chat.send_signal(signal.SIGINT)
    chat.send_signal(signal.SIGINT)
    assert chat.communicate(timeout=WAIT_SECONDS) == (b"", b"")
    assert chat.returncode == 130


@needs_proc
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3, 0.6, 1.0, 1.6])
def test_ctrl_c_at_any_moment_leaves_with_130_and_no_noise(published: Path, delay: float) -> None:
    """From the import of torch to the wait for a line: no traceback, whatever is going on.

    The delay counts from the moment at which torch's library is mapped, which is inside `main`; what goes on then
    depends on the machine's speed, and what must come of it does not.
    """
    chat = process("chat", "--model", published)
    await_torch(chat)
    time.sleep(delay)
    chat.send_signal(signal.SIGINT)
    out, err = chat.communicate(timeout=WAIT_SECONDS)
    assert (chat.returncode, out, err) == (130, b"", b"")


@needs_posix
def test_ctrl_c_during_a_conversion_leaves_nothing(published: Path, tmp_path: Path) -> None:
    destination = tmp_path / "there" / "ours"
    converting = process("convert", published, destination)
    while converting.poll() is None and not list(tmp_path.glob("there/.ours.partial-*")):
        time.sleep(0.001)
    converting.send_signal(signal.SIGINT)
    _, err = converting.communicate(timeout=WAIT_SECONDS)
    assert b"Traceback" not in err
    left = [path.name for path in tmp_path.glob("there/*")] + [path.name for path in tmp_path.glob("there/.*")]
    if converting.returncode == 130:
        assert left == []
    else:  # it was done before the signal came
        assert (converting.returncode, left) == (0, ["ours"])
        assert open_checkpoint(destination).ours


def test_a_model_is_named_without_a_flag(run: Any, published: Path) -> None:
    flagged = run("chat", "--model", published, "--seed", 1, stdin=b"Hello\n")
    assert run("chat", published, "--seed", 1, stdin=b"Hello\n") == flagged
    for arguments, sentence in (
        (("chat", "tiny", "--model", published), "name different models"),
        (("chat", "--continue"), "in a pipe"),
    ):
        result = run(*arguments)
        assert result.status == 2
        assert sentence in result.err
    assert run("info") == run("info", "tiny")
