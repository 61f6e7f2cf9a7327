"""Failures in the server: which request fails, and what the client, the log and the metrics report."""

from __future__ import annotations

import httpx
import pytest

from tests.helpers import WAIT_SECONDS
from tests.serve.helpers import HELLO, Served, serve


def test_a_fault_of_the_server_is_no_fault_of_the_request(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(served.engine.model, "hidden", lambda *_: (_ for _ in ()).throw(RuntimeError("no memory")))
    for stream in (False, True):
        answer = served.post({"messages": HELLO, "stream": stream})
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        assert "no memory" not in answer.text
    assert "no memory" in caplog.text


def test_a_fault_that_nobody_foresaw_is_counted_and_told(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With what a page elsewhere needs to read it, and without what would make a client ask again."""
    monkeypatch.setattr("dialogpt.serve.pending.plan_of", lambda *_: 1 // 0)
    with serve(served.engine, origins=["https://a.example"]) as other:
        answer = other.post({"messages": HELLO}, headers={"Origin": "https://a.example"})
        assert (answer.status_code, answer.headers["x-should-retry"]) == (500, "false")
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert answer.json()["error"]["message"] == "the server failed (ZeroDivisionError); its log says more"
        assert 'dialogpt_requests_total{status="500"} 1.0' in httpx.get(f"{other.url}/metrics").text
    assert "division" in caplog.text


def test_a_fault_in_the_middle_of_a_stream_ends_it(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The stream has no end marker, so that no client takes it for complete; the slot is freed, the cause logged."""
    counts = httpx.get(f"{served.url}/metrics").text  # no second answer is begun after the first
    failures = [line for line in counts.splitlines() if line.startswith('dialogpt_requests_total{status="500"}')]
    monkeypatch.setattr("dialogpt.serve.responses.ResponseFormat.chunks", lambda *_: 1 // 0)
    body = {"messages": HELLO, "min_new_tokens": 50, "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body, timeout=WAIT_SECONDS) as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            answer.read()
    assert "ZeroDivisionError" in caplog.text
    counts = httpx.get(f"{served.url}/metrics").text
    assert [
        line for line in counts.splitlines() if line.startswith('dialogpt_requests_total{status="500"}')
    ] == failures
    assert served.post({"messages": HELLO, "max_tokens": 1, "stream": False}).status_code == 200
    assert served.engine.running == 0


def test_a_damaged_network_is_no_fault_of_the_request(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = served.engine.model.logits
    monkeypatch.setattr(served.engine.model, "logits", lambda *arguments: honest(*arguments) * float("nan"))
    for stream in (False, True):
        answer = served.post({"messages": HELLO, "stream": stream})
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        assert "the weights are damaged" in answer.text
