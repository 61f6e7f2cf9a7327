"""`dialogpt serve` as a process: its flags, its port, and the signals that end it."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path

import httpx
import pytest
import torch

from dialogpt import GenerationConfig, generate
from dialogpt.cli import logs, server_process
from dialogpt.cli.main import main
from dialogpt.errors import DialogueError
from dialogpt.model.precision.kernels import Float32
from dialogpt.serve.memory import copy_weights
from dialogpt.weights import convert, load, open_checkpoint
from tests.helpers import WAIT_SECONDS, await_torch, needs_fork, needs_posix, needs_proc, started
from tests.serve.helpers import HELLO

SERVE = [sys.executable, "-m", "dialogpt", "serve"]


@needs_posix
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_lets_streams_end_as_they_should(tmp_path: Path, number: signal.Signals, status: int) -> None:
    program = [*SERVE, "--port", "0", "--log-level", "warning", "--grace", "1", "--threads", "1"]
    with started(program, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("dialogpt: tiny answers at http://127.0.0.1:"), line
        url = line.split()[4].removesuffix("/")
        body = {"messages": HELLO, "min_new_tokens": 256, "max_tokens": 256, "n": 16, "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=WAIT_SECONDS) as answer:
            lines = answer.iter_lines()
            next(lines)
            os.kill(process.pid, number)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert 16 < len(rest) < 16 * 200  # all replies were cut
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert process.wait(timeout=WAIT_SECONDS) == status
        noted = process.stderr.read()
        assert noted == "" if number == signal.SIGTERM else "finishing 16 replies, within 1 seconds;" in noted


@needs_posix
def test_a_log_that_nobody_reads_any_more_cuts_no_stream() -> None:
    """As with `2>&1 | tee log`, where Ctrl-C ends tee first."""
    program = [*SERVE, "--port", "0", "--log-level", "warning", "--grace", "1", "--threads", "1"]
    with started(program, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        url = process.stderr.readline().split()[4].removesuffix("/")
        process.stderr.close()
        body = {"messages": HELLO, "min_new_tokens": 256, "max_tokens": 256, "n": 16, "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=WAIT_SECONDS) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert process.wait(timeout=WAIT_SECONDS) == 130


def test_short_answers_wait_for_nobody() -> None:
    """Each took 44 ms: its head was sent, and its body only after the client's acknowledgement (Nagle's algorithm)."""
    with (
        server_process.listen("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@needs_posix
def test_a_second_ctrl_c_ends_at_once_and_a_body_that_never_comes_is_not_waited_for() -> None:
    program = [*SERVE, "--port", "0", "--log-level", "warning", "--grace", "60", "--threads", "1"]
    with started(program, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        port = int(process.stderr.readline().split("127.0.0.1:")[1].split("/")[0])
        with socket.create_connection(("127.0.0.1", port)) as half:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
            half.sendall(head)
            half.settimeout(20)
            assert half.recv(1000).startswith(b"HTTP/1.1 408")
        body = {"messages": HELLO, "min_new_tokens": 256, "max_tokens": 256, "n": 16, "stream": True}
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=WAIT_SECONDS) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            assert "Ctrl-C again ends at once" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            with pytest.raises(httpx.HTTPError):
                deque(lines, maxlen=0)
        assert process.wait(timeout=WAIT_SECONDS) == 130
        assert process.stderr.read() == ""


def test_a_port_that_is_taken_is_said_in_the_system_s_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows' numbers of socket errors are not strerror's: it said "Unknown error"."""
    words = "Only one usage of each socket address is normally permitted"
    error = OSError(10048, f"{words} (while attempting to bind on address ('127.0.0.1', 8000))")
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(DialogueError, match=r"\([A-Z][a-z ]+\); choose another --port"),
    ):
        server_process.listen("127.0.0.1", taken.getsockname()[1])
    monkeypatch.setattr(socket, "create_server", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(DialogueError, match=rf"127.0.0.1 port 8000 cannot be listened on \({words}\); choose"):
        server_process.listen("127.0.0.1", 8000)


@needs_proc
def test_sigterm_while_it_loads_ends_it_quietly() -> None:
    """As soon as it listens, which comes before all else; what a process manager may do at any time."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = [*SERVE, "--port", str(port), "--log-level", "warning", "--threads", "1"]
    with started(program, stderr=subprocess.PIPE) as process:
        await_torch(process)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=WAIT_SECONDS) == (None, "")
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("flags", "status", "sentence"),
    [
        (["--rerank", "mmi"], 2, "--rerank mmi needs --reverse-model"),
        (["--port", "99999"], 2, "expected an integer from 0 to 65535"),
        (["--num-beams", "3", "--greedy"], 2, "--num-beams is for requests to ask"),
        (["--api-key", ""], 2, "the API key is empty"),
        (["--host", "a..b"], 1, "--host 'a..b' is no name of this machine"),
        (["--host", "256.1.1.1"], 1, "--host '256.1.1.1' is no name of this machine"),
        (["--host", "192.0.2.1"], 1, "192.0.2.1 port 8000 cannot be listened on"),
        (["--cors", "example.org"], 2, "'example.org' is no origin; expected https://host"),
        (["--cors", "http://example.org/"], 2, "is no origin"),
        (["--cors", "https://me@A.example"], 2, "is no origin"),
        (["--port", "0", "--max-new-tokens", "300"], 1, "at most 256 are served, half of 512 positions"),
        (["--model", "nowhere", "--port", "0"], 1, "nowhere"),
        (["--api-keys", "nowhere", "--port", "0"], 1, "nowhere is not a file"),
        (["--api-keys", "keys", "--api-key", "a"], 2, "--api-keys names all keys"),
        (["--system", "turn"], 2, "invalid choice: 'turn'"),
    ],
)
def test_a_server_that_cannot_begin_is_a_sentence(
    capsys: pytest.CaptureFixture[str], flags: list[str], status: int, sentence: str
) -> None:
    assert main(["serve", *flags]) == status
    assert sentence in capsys.readouterr().err


def test_a_server_for_all_tells_how_others_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --host 0.0.0.0 it named 127.0.0.1 alone."""
    monkeypatch.setattr(server_process, "own_addresses", lambda: ["192.0.2.7"])
    assert server_process.urls("0.0.0.0", 80) == ["http://127.0.0.1:80/", "http://192.0.2.7:80/"]
    assert server_process.urls("::1", 80) == ["http://[::1]:80/"]
    assert server_process.urls("127.0.0.1", 80) == ["http://127.0.0.1:80/"]


def test_addresses_of_this_machine_are_no_loopback() -> None:
    assert not any(address.startswith("127.") for address in server_process.own_addresses())


def test_a_step_of_a_run_is_called_as_the_run(tmp_path: Path) -> None:
    """It was called step-00000050."""
    step = tmp_path / "pirates" / "step-00000050"
    convert("tiny", step)
    (tmp_path / "pirates" / "run.json").write_text("{}")
    assert open_checkpoint(step).shown_name == "pirates"


@needs_posix
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_checkpoint_that_is_overwritten_ends_no_server(tmp_path: Path, dtype: str) -> None:
    """`cp NEW OLD` in place truncates the mapped file: SIGBUS ended the process."""
    convert("tiny", tmp_path / "bot", dtype=dtype)
    program = [*SERVE, "--model", str(tmp_path / "bot"), "--port", "0"]
    with started([*program, "--threads", "1", "--name", "bot"], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert "loading" in process.stderr.readline()
        url = process.stderr.readline().split(" answers at ")[1].split()[0]
        with (tmp_path / "bot" / "model.safetensors").open("r+b") as file:
            file.truncate(1000)
        answer = httpx.post(f"{url}v1/chat/completions", json={"messages": HELLO}, timeout=WAIT_SECONDS)
        assert (answer.status_code, answer.json()["model"]) == (200, "bot")
        assert answer.json()["choices"][0]["message"]["content"].strip()


@needs_posix
@pytest.mark.parametrize("stored", ["float16", "float32"])
@pytest.mark.parametrize(
    ("dtype", "kernels"),
    [("float32", ""), ("float32", "float32=onednn"), ("float32", "float32=plain"), ("float16", ""), ("int8", "")],
)
def test_copied_weights_do_not_depend_on_their_file(
    tmp_path: Path, stored: str, dtype: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Biases, and norms that a block had looked up, were those of the file: overwriting it changed the replies.

    fbgemm keeps a bias where nothing reaches it afterwards, so that it has to be copied before.
    """
    if not Float32.runs_here():
        pytest.skip("oneDNN does not run here")
    monkeypatch.setenv("DIALOGPT_KERNELS", kernels)
    convert("tiny", tmp_path / "bot", dtype=stored)
    network = load(tmp_path / "bot", dtype=dtype)
    settings = GenerationConfig(max_new_tokens=8)

    def logits() -> torch.Tensor:
        return torch.stack([step.logits for step in generate(network, [5, 6], settings)])

    before = logits()
    copy_weights(network)
    with (tmp_path / "bot" / "model.safetensors").open("r+b") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
        size = file.seek(0, os.SEEK_END)
        file.seek(header)
        file.write(bytes(size - header))
    assert torch.equal(logits(), before)


@needs_fork
def test_several_processes_answer_on_one_port(tmp_path: Path) -> None:
    """A worker that dies is replaced, and a signal to the first process ends all with their streams."""
    program = [*SERVE, "--port", "0", "--workers", "2", "--grace", "1"]
    with started(program, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.readline()
        url = process.stderr.readline().split(" answers at ")[1].split()[0]
        for _ in range(6):
            answer = httpx.post(f"{url}v1/chat/completions", json={"messages": HELLO}, timeout=WAIT_SECONDS)
            assert answer.status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=WAIT_SECONDS) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


@needs_fork
def test_workers_that_cannot_start_end_the_server() -> None:
    program = "from dialogpt.cli.server_process import run_workers as run; raise SystemExit(run(2, lambda n: 1 // n))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert done.returncode == 1
    assert "ended right after its start" in done.stderr


def test_a_log_is_lines_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("dialogpt")
    logs.configure("info", "json")
    logging.getLogger("dialogpt.serve.access").info("a %s", "line", extra={"fields": {"status": 200}})
    logs.configure("warning", "text")
    logger.info("unseen")
    logger.warning("seen")
    first, second = capsys.readouterr().err.splitlines()
    content = json.loads(first)
    assert (content["message"], content["status"], content["level"]) == ("a line", 200, "info")
    assert re.fullmatch(r"dialogpt: \d\d:\d\d:\d\d seen", second)
