"""Who is let in: keys, names of the server, other origins."""

from __future__ import annotations

import gzip
import json
import time

import httpx
import pytest

from dialogpt.serve.access import Access
from dialogpt.serve.middleware import MAX_BODY_BYTES
from tests.helpers import WAIT_SECONDS
from tests.serve.helpers import HELLO, Served, serve


def test_a_key_is_asked_for(slow: Served) -> None:
    for key in ("Bearer wrong", "Bearer sécret", "secret", "Basic secret", "Bearer", ""):
        answer = slow.post({"messages": HELLO}, headers={"Authorization": key.encode()})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
    for key in ("Bearer secret", "bearer secret"):
        answer = slow.post({"messages": HELLO, "max_tokens": 1}, headers={"Authorization": key})
        assert answer.status_code == 200
    statuses = {
        "/": 200,
        "/health/live": 200,
        "/health/ready": 200,
        "/health": 401,
        "/metrics": 401,
        "/openapi.json": 401,
    }
    for path, status in (statuses | {"/api/tags": 401, "/v1/models": 401}).items():
        assert httpx.get(slow.url + path).status_code == status, path


def test_a_server_for_one_machine_is_called_by_its_names(served: Served) -> None:
    """A page elsewhere can let its own name lead to 127.0.0.1."""
    named = {"localhost:80": 200, "LOCALHOST": 200, "[::1]:8000": 200, "127.0.0.1": 200}
    foreign = {"evil.example": 403, "127.0.0.1.evil.example": 403, "127.0.0.1@evil.example": 403, "[::1": 403, "": 403}
    with serve(served.engine, access=Access(hosts=("127.0.0.1", "localhost", "::1"))) as strict:
        for host, status in (named | foreign).items():
            assert httpx.get(f"{strict.url}/v1/models", headers={"Host": host}).status_code == status, host


def test_pages_of_other_origins_are_let_in_only_if_asked(served: Served) -> None:
    for origins, allowed in (([], None), (["https://a.example"], "https://a.example")):
        with serve(served.engine, origins=origins) as other:
            answer = httpx.options(
                f"{other.url}/v1/chat/completions",
                headers={"Origin": "https://a.example", "Access-Control-Request-Method": "POST"},
            )
            assert answer.headers.get("access-control-allow-origin") == allowed


def test_head_and_doubled_slashes_are_answered(served: Served) -> None:
    """Probes ask with HEAD; a base URL that ends in a slash makes two of one."""
    for path in ("/v1/models", "/v1/models/tiny", "/health", "/metrics", "/api/tags", "/"):
        head, whole = httpx.head(served.url + path), httpx.get(served.url + path)
        assert (head.status_code, head.content) == (whole.status_code, b"") == (200, b""), path
        assert head.headers["x-content-type-options"] == "nosniff"
    assert served.post({"messages": HELLO, "max_tokens": 2}, "//v1//chat/completions").status_code == 200
    with serve(served.engine, access=Access(hosts=("127.0.0.1",))) as local:
        assert httpx.head(f"{local.url}/v1/models", headers={"Host": "evil.example"}).status_code == 403


def test_a_body_may_be_compressed(served: Served) -> None:
    plain = json.dumps({"messages": HELLO, "max_tokens": 2}).encode()

    def post(content: bytes, encoding: str) -> httpx.Response:
        headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
        return httpx.post(f"{served.url}/v1/chat/completions", content=content, headers=headers)

    assert post(gzip.compress(plain), "gzip").status_code == 200
    bomb = gzip.compress(b" " * (100 * MAX_BODY_BYTES))
    for content, encoding, status, sentence in (
        (plain, "gzip", 400, "the body is not gzip"),
        (gzip.compress(plain)[:-9], "gzip", 400, "is truncated"),
        (plain, "br", 415, "send it uncompressed, or as gzip"),
        (bomb, "gzip", 413, "larger than 1024 KB"),
    ):
        answer = post(content, encoding)
        assert (answer.status_code, sentence in answer.text) == (status, True), answer.text


def test_every_request_is_logged_on_one_line(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "dialogpt.serve.access"):
        served.post({"messages": HELLO, "max_tokens": 2})
        httpx.get(f"{served.url}/nowhere%0Aforged")
        deadline = time.monotonic() + WAIT_SECONDS
        lines: list[str] = []
        # A line is written once the answer has been sent: one of a test before this may come first.
        while not any("nowhere" in line for line in lines) and time.monotonic() < deadline:
            lines = [record.getMessage() for record in caplog.records if record.name == "dialogpt.serve.access"]
    first, second = lines[-2:]
    assert first.startswith("127.0.0.1 POST /v1/chat/completions 200 ")
    assert second.startswith("127.0.0.1 GET /nowhere\\nforged 404 ")


def test_health_tells_ready_from_alive(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that shuts down is alive, and takes nothing more."""

    def statuses() -> list[int]:
        return [httpx.get(served.url + path).status_code for path in ("/health", "/health/live", "/health/ready")]

    assert statuses() == [200, 200, 200]
    monkeypatch.setattr(served.engine, "_hard_deadline", float("inf"))
    assert statuses() == [503, 200, 503]
    assert httpx.get(f"{served.url}/health").json()["status"] == "shutting down"
