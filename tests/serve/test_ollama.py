"""Ollama's interface, as its clients use it."""

from __future__ import annotations

import json

import httpx

from tests.serve.helpers import HELLO, Served


def test_a_client_finds_the_model(served: Served) -> None:
    (model,) = httpx.get(f"{served.url}/api/tags").json()["models"]
    assert model["name"] == model["model"] == "tiny:latest"
    assert model["size"] > 1_000_000
    assert httpx.get(f"{served.url}/api/version").json()["version"]


def test_a_chat_is_streamed_line_by_line(served: Served) -> None:
    """Streaming is its default; the reply is that of OpenAI's interface."""
    options = {"temperature": 0, "num_predict": 20, "num_ctx": 4096}
    body = {"model": "tiny:latest", "messages": HELLO, "options": options}
    answer = served.post(body, "/api/chat")
    assert answer.headers["content-type"] == "application/x-ndjson"
    *parts, last = map(json.loads, answer.text.splitlines())
    assert all(part["done"] is False and part["message"]["role"] == "assistant" for part in parts)
    text = "".join(part["message"]["content"] for part in parts)
    expected = served.post({"messages": HELLO, "temperature": 0, "max_tokens": 20}).json()
    assert text == expected["choices"][0]["message"]["content"]
    assert (last["done"], last["done_reason"]) == (True, "stop")
    assert last["eval_count"] == expected["usage"]["completion_tokens"]
    whole = served.post({**body, "stream": False}, "/api/chat").json()
    assert (whole["message"]["content"], whole["done"]) == (text, True)


def test_generate_takes_a_prompt(served: Served) -> None:
    body = {"model": "tiny", "prompt": HELLO[0]["content"], "options": {"temperature": 0}, "stream": False}
    chat = served.post({"messages": HELLO, "temperature": 0}).json()["choices"][0]["message"]["content"]
    assert served.post(body, "/api/generate").json()["response"] == chat
    assert served.post({**body, "system": "Be kind."}, "/api/generate").json()["response"] == chat
    raw = served.post({"prompt": "I am", "temperature": 0}, "/v1/completions").json()["choices"][0]["text"]
    assert served.post({**body, "prompt": "I am", "raw": True}, "/api/generate").json()["response"] == raw


def test_errors_are_sentences(served: Served) -> None:
    for body, path, status, sentence in (
        ({"model": "llama3", "messages": HELLO}, "/api/chat", 404, "there is no model 'llama3' here"),
        ({"messages": HELLO, "tools": [{"type": "function"}]}, "/api/chat", 400, "tools is not implemented"),
        ({"messages": HELLO, "format": "json"}, "/api/chat", 400, "format is not implemented"),
        ({"messages": HELLO, "options": {"temperature": 9}}, "/api/chat", 400, "temperature: Input should be less"),
        ({"messages": HELLO, "options": {"top_k": "x"}}, "/api/chat", 400, "top_k must be"),
        ({"messages": []}, "/api/chat", 400, "at least 1 item"),
        ({"prompt": "a", "suffix": "b"}, "/api/generate", 400, "suffix is not implemented"),
    ):
        answer = served.post(body, path)
        assert (answer.status_code, sentence in answer.json()["error"]) == (status, True), answer.text
    warned = served.post({"messages": HELLO, "option": {}, "stream": False}, "/api/chat")
    assert "is 'options' meant?" in warned.headers["x-dialogpt-warning"]
