"""Ollama's interface, as its clients use it."""

from __future__ import annotations

import json

import httpx
import ollama
import pytest

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
        (
            {"messages": HELLO, "options": {"num_predict": "x"}},
            "/api/chat",
            400,
            "num_predict: Input should be a valid",
        ),
        ({"messages": HELLO, "options": {"top_k": "x"}}, "/api/chat", 400, "top_k must be"),
        ({"messages": HELLO, "think": True}, "/api/chat", 400, "think is not implemented"),
        ({"messages": [{**HELLO[0], "images": ["x"]}]}, "/api/chat", 400, "images are not implemented"),
        ({"messages": [{**HELLO[0], "role": "usre"}]}, "/api/chat", 400, "messages[0].role: Input should be"),
        ({"model": "llama3"}, "/api/show", 404, "there is no model 'llama3' here"),
        ({"prompt": "a", "suffix": "b"}, "/api/generate", 400, "suffix is not implemented"),
    ):
        answer = served.post(body, path)
        assert (answer.status_code, sentence in answer.json()["error"]) == (status, True), answer.text
    warned = served.post({"messages": HELLO, "option": {}, "stream": False}, "/api/chat")
    assert "is 'options' meant?" in warned.headers["x-dialogpt-warning"]


def test_ollamas_own_client(served: Served) -> None:
    """Every method that talks; the others are an error of its own with our sentence."""
    with ollama.Client(served.url) as client:
        _talk(client)


def _talk(client: ollama.Client) -> None:
    (model,), (loaded,) = client.list().models, client.ps().models
    assert (model.model, loaded.model, client.show("tiny").capabilities) == (
        "tiny:latest",
        "tiny:latest",
        ["completion"],
    )
    whole = client.chat("tiny", HELLO, options={"temperature": 0}).message.content
    parts = client.chat("tiny", HELLO, options=ollama.Options(temperature=0, num_ctx=100), stream=True)
    assert "".join(part.message.content or "" for part in parts) == whole != ""
    assert client.generate("tiny", HELLO[0]["content"], options={"temperature": 0}).response == whole
    assert client.chat("tiny").done_reason == "load"
    with pytest.raises(ollama.ResponseError, match="format is not implemented; omit it"):
        client.chat("tiny", HELLO, format="json")
    with pytest.raises(ollama.ResponseError, match="there is no model 'llama3' here; there is 'tiny'"):
        client.chat("llama3", HELLO)
    with pytest.raises(ollama.ResponseError, match="POST /api/embed: Not Found"):
        client.embed("tiny", "Hi")
