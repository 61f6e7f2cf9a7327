"""Stalled connections: unfinished headers, and responses that are not read."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

import pytest

from dialogpt.serve import pending, protocol
from tests.helpers import WAIT_SECONDS
from tests.serve.helpers import Served, serve


def connected(served: Served) -> socket.socket:
    port = int(served.url.rsplit(":", 1)[1])
    connection = socket.create_connection(("127.0.0.1", port))
    connection.settimeout(WAIT_SECONDS)
    return connection


@pytest.mark.parametrize("sent", [b"", b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"])
def test_headers_that_never_end_close_the_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """They were kept for ever: 80 of them under 64 descriptors shut everybody out."""
    monkeypatch.setattr(protocol, "HEADER_TIMEOUT_SECONDS", 0.2)
    with connected(served) as connection:
        connection.sendall(sent)
        answer = connection.recv(1000)
        assert answer.startswith(b"HTTP/1.1 408") if sent else answer == b""
        assert (b"onnection: close" in answer) == bool(sent)
        while answer:
            answer = connection.recv(1000)  # and it is closed


def test_a_second_request_has_its_time_too(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_TIMEOUT_SECONDS", 0.3)
    whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connected(served) as connection:
        for _ in range(2):
            connection.sendall(whole)
            answer = b""
            while not answer.endswith(b"}"):
                answer += connection.recv(4000)
            assert answer.startswith(b"HTTP/1.1 200")
        connection.sendall(whole[:-2])
        answer = b""
        while part := connection.recv(4000):
            answer += part
        assert answer.startswith(b"HTTP/1.1 408")


def test_a_body_that_never_comes_closes_the_connection(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dialogpt.serve.middleware.BODY_TIMEOUT_SECONDS", 0.2)
    with connected(served) as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
        connection.sendall(head)
        answer = connection.recv(4000)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"onnection: close" in answer
        while answer:
            answer = connection.recv(4000)


@pytest.mark.parametrize("ended_by", ["queue", "timeout"])
def test_a_stream_that_nobody_reads_ends(served: Served, monkeypatch: pytest.MonkeyPatch, ended_by: str) -> None:
    """Its events stayed queued, 73 MB a connection, and the time limit did not end it."""
    monkeypatch.setattr(pending, "MAX_UNREAD_EVENTS", 32 if ended_by == "queue" else 1 << 30)
    monkeypatch.setattr(protocol, "WRITE_TIMEOUT_SECONDS", WAIT_SECONDS if ended_by == "queue" else 0.3)
    content = (
        b'{"messages": [{"role": "user", "content": "Hi!"}], "stream": true, "n": 16, "min_new_tokens": 60, '
        b'"max_tokens": 60, "logprobs": true, "top_logprobs": 20}'
    )
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with serve(served.engine) as own, socket.socket() as connection:
        own.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # connections inherit it
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(WAIT_SECONDS)
        connection.connect(own.listener.getsockname())
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(content) + content)
        received = connection.recv(100)
        deadline = time.monotonic() + WAIT_SECONDS
        while own.engine.running and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)
        with suppress(ConnectionError, TimeoutError):  # it is reset, or kept alive after its end
            connection.settimeout(3)
            while chunk := connection.recv(1 << 20):
                received += chunk
    assert (pending.TOO_SLOW.encode() in received) == (ended_by == "queue")
    assert (b"[DONE]" in received) == (ended_by == "queue")
