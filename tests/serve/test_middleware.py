"""Who is let in: keys, names of the server, other origins."""

from __future__ import annotations

import httpx

from tests.serve.helpers import HELLO, Served, serve


def test_a_key_is_asked_for(slow: Served) -> None:
    for key in ("Bearer wrong", "Bearer sécret", "secret", "Basic secret", "Bearer", ""):
        answer = slow.post({"messages": HELLO}, headers={"Authorization": key.encode()})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
    for key in ("Bearer secret", "bearer secret"):
        answer = slow.post({"messages": HELLO, "max_tokens": 1}, headers={"Authorization": key})
        assert answer.status_code == 200
    assert httpx.get(f"{slow.url}/health").status_code == 200


def test_a_server_for_one_machine_is_called_by_its_names(served: Served) -> None:
    """A page elsewhere can let its own name lead to 127.0.0.1."""
    named = {"localhost:80": 200, "LOCALHOST": 200, "[::1]:8000": 200, "127.0.0.1": 200}
    foreign = {"evil.example": 403, "127.0.0.1.evil.example": 403, "127.0.0.1@evil.example": 403, "[::1": 403, "": 403}
    with serve(served.engine, hosts=("127.0.0.1", "localhost", "::1")) as strict:
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
