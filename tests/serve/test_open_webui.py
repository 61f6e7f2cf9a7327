"""What Open WebUI sends, replayed: by its connections to Ollama and to OpenAI, and by its tasks (titles, tags)."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import httpx

from tests.helpers import WAIT_SECONDS
from tests.serve.helpers import HELLO, Served

CHAT = "/v1/chat/completions"
HEADERS = {  # with ENABLE_FORWARD_USER_INFO_HEADERS
    "Authorization": "Bearer anything",
    "X-OpenWebUI-User-Name": "Ann%20Lee",
    "X-OpenWebUI-User-Id": "1",
    "X-OpenWebUI-User-Email": "ann@example.org",
    "X-OpenWebUI-User-Role": "admin",
    "X-OpenWebUI-Chat-Id": "7a",
}
TASK = (
    '### Task:\nGenerate a concise, 3-5 word title with an emoji.\n### Output:\nJSON format: { "title": "..." }\n'
    "### Chat History:\n<chat_history>\nUSER: Hi! How are you?\nASSISTANT: I am fine.\n</chat_history>"
)


def _get(served: Served, path: str) -> Any:
    answer = httpx.get(served.url + path, headers=HEADERS, timeout=WAIT_SECONDS)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_connection_to_ollama_is_verified_and_its_models_are_listed(served: Served) -> None:
    """It compares versions as numbers, and joins the list of models with that of loaded ones by name."""
    version = _get(served, "/api/version")["version"]
    assert all(part.isdecimal() for part in version.split("."))
    (listed,) = _get(served, "/api/tags")["models"]
    (loaded,) = _get(served, "/api/ps")["models"]
    assert listed["model"] == listed["name"] == loaded["name"] == "tiny:latest"
    assert datetime.fromisoformat(loaded["expires_at"]) > datetime.fromisoformat(listed["modified_at"])
    shown = served.post({"model": listed["model"]}, "/api/show", headers=HEADERS).json()
    assert shown["capabilities"] == ["completion"]
    assert shown["model_info"]["gpt2.context_length"] == 512


def test_a_chat_by_the_connection_to_ollama(served: Served) -> None:
    """It streams what it receives to the browser, and parses each line."""
    body = {
        "model": "tiny:latest",
        "messages": [{"role": "system", "content": "You are kind."}, *HELLO],
        "stream": True,
        "keep_alive": "5m",
        "options": {"num_ctx": 2048, "num_predict": 20, "temperature": 0.8, "top_k": 40, "min_p": 0.0, "seed": 1}
        | {"repeat_penalty": 1.1, "use_mmap": True, "num_thread": 2},
    }
    lines = []
    with httpx.stream("POST", f"{served.url}/api/chat", json=body, headers=HEADERS, timeout=WAIT_SECONDS) as answer:
        assert answer.status_code == 200
        assert "is unknown" not in answer.headers["x-dialogpt-warning"]
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert {line["model"] for line in lines} == {"tiny:latest"}
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["eval_count"] > 0


def test_a_model_is_unloaded_without_a_reply(served: Served) -> None:
    """An empty prompt loads, and with a `keep_alive` of 0 unloads; a reply to a blank turn was generated."""
    body = {"model": "tiny:latest", "keep_alive": 0, "prompt": ""}
    unloaded = served.post(body, "/api/generate", headers=HEADERS).json()
    assert (unloaded["response"], unloaded["done"], unloaded["done_reason"]) == ("", True, "unload")
    loaded = served.post({"model": "tiny", "messages": []}, "/api/chat").json()
    assert (loaded["message"]["content"], loaded["done_reason"]) == ("", "load")


def test_a_chat_by_the_connection_to_openai(served: Served) -> None:
    """Usage comes with its stream; what filters and pipelines add to a body is told and changes nothing."""
    (model,) = _get(served, "/v1/models")["data"]
    assert model["id"] == "tiny"
    body = {
        "stream": True,
        "model": "tiny",
        "messages": HELLO,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "logit_bias": {},
        "user": "1",
    }
    extra = {
        "params": {},
        "metadata": {"chat_id": "7a", "message_id": "b", "session_id": "c", "tool_ids": None, "features": {}},
        "chat_id": "7a",
        "id": "b",
        "session_id": "c",
        "features": {"image_generation": False, "code_interpreter": False, "web_search": False},
        "variables": {"{{USER_NAME}}": "Ann"},
        "model_item": {"id": "tiny", "info": {"meta": {"capabilities": {"vision": True}}}},
        "background_tasks": {"title_generation": True, "tags_generation": True},
    }
    texts = []
    for sent in (body, body | extra):
        answer = served.post(sent, CHAT, headers=HEADERS)
        assert answer.status_code == 200, answer.text
        chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["completion_tokens"] > 0
        texts.append("".join(each["choices"][0]["delta"].get("content", "") for each in chunks if each["choices"]))
    assert texts[0] == texts[1] != ""


def test_titles_and_tags_are_asked_for(served: Served) -> None:
    """Its model is not made for them, but each request is answered: by both connections' names for the limit."""
    for limit in ({"max_completion_tokens": 1000}, {"max_tokens": 1000}, {}):
        body = {"model": "tiny", "messages": [{"role": "user", "content": TASK}], "stream": False, **limit}
        answer = served.post(body, CHAT, headers=HEADERS)
        assert answer.status_code == 200, answer.text
        assert isinstance(answer.json()["choices"][0]["message"]["content"], str)
        options = {"num_predict": next(iter(limit.values()), -1)}
        ollama = {"model": "tiny:latest", "messages": body["messages"], "stream": False, "options": options}
        assert served.post(ollama, "/api/chat", headers=HEADERS).json()["message"]["content"]


def test_an_attached_image_and_a_tool_are_sentences(served: Served) -> None:
    """They are shown to the user: `error` has a `message` there, and is a text by the other connection."""
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "data:image/png;,"}}]
    refused = served.post({"model": "tiny", "messages": [{"role": "user", "content": parts}]}, CHAT)
    assert (refused.status_code, "text" in refused.json()["error"]["message"]) == (400, True)
    pictured = {"model": "tiny:latest", "messages": [HELLO[0] | {"images": ["aGk="]}]}
    refused = served.post(pictured, "/api/chat")
    assert (refused.status_code, refused.json()) == (400, {"error": "images are not implemented; omit them"})
