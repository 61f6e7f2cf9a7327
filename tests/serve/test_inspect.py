"""Looking inside a reply over HTTP: the same as `dialogpt explain`."""

from __future__ import annotations

import httpx
import pytest

from dialogpt import Chat
from dialogpt.inspect import explain
from tests.helpers import WAIT_SECONDS
from tests.serve.helpers import HELLO, Served, serve

DIALOGUE = [*HELLO, {"role": "assistant", "content": "I'm fine."}]


def test_it_is_what_explain_says(served: Served) -> None:
    answer = served.post({"messages": DIALOGUE, "temperature": 0.7}, "/inspect")
    assert answer.status_code == 200, answer.text
    chat = Chat.load("tiny", dtype="float64")
    expected = explain(chat, [HELLO[0]["content"]], "I'm fine.")
    found = answer.json()
    assert found["reply"]["log_probability"] == pytest.approx(expected["reply"]["log_probability"], abs=1e-9)
    assert [token["text"] for token in found["tokens"]] == [token["text"] for token in expected["tokens"]]
    assert found["settings"]["temperature"] == 0.7


def test_a_browser_gets_a_page(served: Served) -> None:
    evil = [*HELLO, {"role": "assistant", "content": "<script>alert(1)</script>"}]
    headers = {"Accept": "text/html"}
    answer = httpx.post(f"{served.url}/inspect", json={"messages": evil}, headers=headers, timeout=WAIT_SECONDS)
    assert answer.headers["content-type"].startswith("text/html")
    assert "alert(1)</script>" not in answer.text


def test_what_cannot_be_looked_into_is_a_sentence(served: Served) -> None:
    for body, sentence in (
        ({"messages": HELLO}, "the last message's role is 'user'; expected the reply"),
        ({"messages": DIALOGUE[1:]}, "turn"),
        ({"messages": []}, "at least 1 item"),
        ({"messages": DIALOGUE, "top_k": "x"}, "top_k must be"),
    ):
        answer = served.post(body, "/inspect")
        assert (answer.status_code, sentence in answer.json()["error"]["message"]) == (400, True), answer.text
    with serve(served.engine, inspects=False) as closed:
        assert closed.post({"messages": DIALOGUE}, "/inspect").status_code == 404
        assert httpx.get(f"{closed.url}/v1/models").json()["data"][0]["inspect"] is False
