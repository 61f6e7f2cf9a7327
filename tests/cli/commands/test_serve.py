"""`dialogpt serve` as a process: its flags, its port, and the signals that end it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path

import httpx
import pytest

from dialogpt.cli.commands import serve as command
from dialogpt.cli.main import main
from dialogpt.errors import DialogueError
from tests.helpers import WAIT_SECONDS, await_torch, needs_posix, needs_proc, started
from tests.serve.helpers import HELLO


@needs_posix
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_lets_streams_end_as_they_should(tmp_path: Path, number: signal.Signals, status: int) -> None:
    program = [sys.executable, "-m", "dialogpt", "serve", "--port", "0", "--grace", "1", "--threads", "1"]
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
    program = [sys.executable, "-m", "dialogpt", "serve", "--port", "0", "--grace", "1", "--threads", "1"]
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
        command._listener("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@needs_posix
def test_a_second_ctrl_c_ends_at_once_and_a_body_that_never_comes_is_not_waited_for() -> None:
    program = [sys.executable, "-m", "dialogpt", "serve", "--port", "0", "--grace", "60", "--threads", "1"]
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
        command._listener("127.0.0.1", taken.getsockname()[1])
    monkeypatch.setattr(socket, "create_server", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(DialogueError, match=rf"127.0.0.1 port 8000 cannot be listened on \({words}\); choose"):
        command._listener("127.0.0.1", 8000)


@needs_proc
def test_sigterm_while_it_loads_ends_it_quietly() -> None:
    """As soon as it listens, which comes before all else; what a process manager may do at any time."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = [sys.executable, "-m", "dialogpt", "serve", "--port", str(port), "--threads", "1"]
    with started(program, stderr=subprocess.PIPE) as process:
        await_torch(process)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=WAIT_SECONDS) == (None, "")
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("flags", "status", "sentence"),
    [
        (["--rerank", "mmi"], 2, "--rerank mmi needs --reverse-model"),
        (["--port", "99999"], 2, "expected a whole number from 0 to 65535"),
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
    ],
)
def test_a_server_that_cannot_begin_is_a_sentence(
    capsys: pytest.CaptureFixture[str], flags: list[str], status: int, sentence: str
) -> None:
    assert main(["serve", *flags]) == status
    assert sentence in capsys.readouterr().err
