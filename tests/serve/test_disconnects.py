"""Clients that go away, and servers that are full."""

from __future__ import annotations

import threading
import time

import httpx
import pytest

from tests.helpers import WAIT_SECONDS
from tests.serve.helpers import HELLO, Served


def test_who_goes_away_is_not_answered_any_more(slow: Served) -> None:
    """In the middle of a stream, and while a whole answer is made; the place is free at once."""
    headers = {"Authorization": "Bearer secret"}
    body = {"messages": HELLO, "min_new_tokens": 60, "stream": True}
    with httpx.stream(
        "POST", f"{slow.url}/v1/chat/completions", json=body, headers=headers, timeout=WAIT_SECONDS
    ) as answer:
        lines = answer.iter_lines()  # which would close the stream if nobody held it
        next(lines)
        assert slow.engine.running == 1
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{slow.url}/v1/chat/completions", json={**body, "stream": False}, headers=headers, timeout=0.5)
    deadline = time.monotonic() + WAIT_SECONDS
    while slow.engine.running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert slow.engine.running == 0


def test_who_goes_away_while_waiting_leaves_the_queue(slow: Served) -> None:
    headers = {"Authorization": "Bearer secret"}
    body = {"messages": HELLO, "min_new_tokens": 60, "stream": True}
    with httpx.stream(
        "POST", f"{slow.url}/v1/chat/completions", json=body, headers=headers, timeout=WAIT_SECONDS
    ) as answer:
        lines = answer.iter_lines()  # which would close the stream if nobody held it
        next(lines)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{slow.url}/v1/chat/completions", json=body, headers=headers, timeout=0.3)
        deadline = time.monotonic() + WAIT_SECONDS
        while slow.engine.waiting and time.monotonic() < deadline:
            time.sleep(0.05)
        assert slow.engine.waiting == 0


def test_a_full_server_says_when_to_come_back(slow: Served) -> None:
    headers = {"Authorization": "Bearer secret"}
    body = {"messages": HELLO, "min_new_tokens": 60, "stream": True}
    with httpx.stream(
        "POST", f"{slow.url}/v1/chat/completions", json=body, headers=headers, timeout=WAIT_SECONDS
    ) as answer:
        lines = answer.iter_lines()  # which would close the stream if nobody held it
        next(lines)
        waiting = threading.Thread(target=slow.post, args=(body,), kwargs={"headers": headers})
        waiting.start()
        while not slow.engine.waiting:
            time.sleep(0.01)
        refused = slow.post(body, headers=headers)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    waiting.join()
