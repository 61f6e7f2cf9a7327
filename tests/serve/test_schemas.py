"""Bodies: what they come to, and which are refused with a sentence."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import httpx
import openai
import pytest

from dialogpt import DialogueError, GenerationConfig
from dialogpt.serve.middleware import MAX_BODY_BYTES
from dialogpt.serve.schemas import ChatRequest, CompletionRequest, Limits, plan_of
from tests.helpers import WAIT_SECONDS
from tests.serve.helpers import HELLO, Served, serve


def test_the_servers_own_shortest_reply_yields_to_a_request() -> None:
    limits = Limits(GenerationConfig(min_new_tokens=10, max_new_tokens=20), 128, 64, 30, 256)
    asked = [{"max_tokens": 5}, {"max_tokens": 15}, {"max_tokens": 5, "min_new_tokens": 2}]
    found = [plan_of(CompletionRequest(**body), limits, 0).config for body in asked]
    assert [(config.min_new_tokens, config.max_new_tokens) for config in found] == [(5, 5), (10, 15), (2, 5)]


def test_what_is_always_so() -> None:
    """The most tokens that are granted, the end of a turn, and that an empty stop string ends nothing."""
    limits = Limits(GenerationConfig(), 128, 64, 30, 256)
    config = plan_of(CompletionRequest(max_tokens=500, eos_token_id=[5], stop=["", "a"]), limits, 0).config
    assert config.max_new_tokens == 64
    assert set(config.end_ids) == {0, 5}
    assert config.stop_strings == ("a",)


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({}, 400, "messages: Field required"),
        ({"messages": []}, 400, "at least 1 item"),
        ({"messages": HELLO, "model": "gpt-9"}, 404, "there is no model 'gpt-9' here; there is 'tiny'"),
        ({"messages": HELLO, "temperature": 3}, 400, "less than or equal to 2"),
        ({"messages": HELLO, "n": 100}, 400, "less than or equal to 16"),
        ({"messages": HELLO, "num_candidates": 4}, 400, "num_candidates goes with rerank"),
        ({"messages": HELLO, "top_k": "many"}, 400, "top_k must be a non-negative integer, got 'many'"),
        ({"messages": HELLO, "presence_penalty": 3}, 400, "presence_penalty must be a number from -2 to 2, got 3.0"),
        ({"messages": HELLO, "logit_bias": {"x": 1}}, 400, "logit_bias names the token 'x'"),
        (
            {"messages": HELLO, "logit_bias": {"99999": 1}},
            400,
            "logit_bias must be below 8,192, the vocabulary, got 99999",
        ),
        ({"messages": [{"role": "system", "content": "Be kind."}]}, 400, "all messages are system messages"),
        ({"messages": HELLO, "tools": [{"type": "function"}]}, 400, "tools is not implemented; omit it"),
        ({"messages": HELLO, "response_format": {"type": "json_object"}}, 400, "response_format is not implemented"),
        ({"messages": HELLO, "functions": [{}]}, 400, "functions is not implemented"),
        ({"messages": HELLO, "modalities": ["audio"]}, 400, "modalities is not implemented"),
        ({"prompt": "a", "best_of": 4}, 400, "best_of is not implemented"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, 400, "text"),
        ({"messages": HELLO, "suppress_tokens": list(range(8192))}, 400, "longer than 1,000 entries"),
        ({"messages": HELLO, "bad_words": ["word"] * 2000}, 400, "bad_words is longer than 1,000 entries or 4,000"),
        ({"messages": HELLO, "bad_words": json.loads("[" * 600 + "]" * 600)}, 400, "more than 4 deep"),
        ({"messages": HELLO, "stop_strings": ["a"]}, 400, "the setting for stop strings is stop here"),
        (
            {"messages": HELLO, "max_tokens": 3, "min_new_tokens": 5},
            400,
            "min_new_tokens must be at most max_tokens, 3, got 5",
        ),
        (
            {"messages": [{"role": "user", "content": [{}] * 200}]},
            400,
            "content: expected text, or a list of parts",
        ),
        ({"messages": HELLO, "num_beams": 17}, 400, "num_beams is 17; at most 16 are allowed here"),
        ({"messages": HELLO, "num_beams": 2, "logprobs": True}, 400, "omit logprobs: beams"),
        ({"messages": HELLO, "rerank": True}, 400, "no reranker is loaded; start the server with --rerank"),
        ({"messages": HELLO, "rerank": "mmi"}, 400, "rerank: Input should be a valid boolean"),
        ({"prompt": ["a"] * 33}, 400, "prompt: expected a text, the ids of one, or a list of up to 32 of either"),
        ({"prompt": "a", "suffix": "b"}, 400, "suffix is not implemented; omit it"),
        ({"messages": HELLO, "temperature": 3}, 400, "less than or equal to 2; found 3"),
        ({"messages": HELLO, "temperature": "hot"}, 400, "unable to parse string as a number; found 'hot'"),
        ({"messages": HELLO, "stop": list("abcde")}, 400, "stop: expected a text, or a list of at most 4"),
        (
            {"messages": HELLO, "min_new_tokens": 100},
            400,
            "min_new_tokens is 100; this server generates at most 64 tokens",
        ),
        ({"messages": HELLO, "n": 3, "num_beams": 2}, 400, "n must be at most num_beams, 2, got 3"),
        ({"prompt": [[""]] * 60_000}, 400, "prompt: expected a text, the ids of one, or a list of up to 32 of either"),
        ({"prompt": ["x"] * 60_000}, 400, "prompt: expected a text, the ids of one, or a list of up to 32 of either"),
        (
            {"prompt": [7] * 600},
            400,
            "the model's context length is 512 tokens; the prompt has 600, and 64 are reserved",
        ),
        ({"prompt": [-1]}, 400, "ids outside the vocabulary"),
        ({"messages": HELLO, "stop": "a" * 5000}, 400, "stop has more than 4,000 characters"),
    ],
)
def test_what_cannot_be_answered_is_a_sentence(served: Served, body: Any, status: int, sentence: str) -> None:
    for stream in (False, True):
        answer = served.post({**body, "stream": stream}, f"/v1/{'' if 'prompt' in body else 'chat/'}completions")
        assert answer.status_code == status, answer.text
        assert len(answer.content) < 2500
        error = answer.json()["error"]
        assert sentence in error["message"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"


def test_bodies_that_are_none(served: Served) -> None:
    def post(content: bytes) -> httpx.Response:
        headers = {"content-type": "application/json"}
        return httpx.post(f"{served.url}/v1/chat/completions", content=content, headers=headers, timeout=WAIT_SECONDS)

    good = json.dumps({"messages": HELLO, "max_tokens": 2}).encode()
    assert post(good).status_code == 200
    # A page elsewhere may send a body without a type, and is not asked whether it may.
    untyped = httpx.post(f"{served.url}/v1/chat/completions", content=good)
    assert (untyped.status_code, "send application/json" in untyped.text) == (400, True)
    for broken, sentence in ((b"{", "no JSON ("), (b"\xff", "cannot be read as JSON"), (b"[]", "found a list of 0")):
        assert sentence in post(broken).json()["error"]["message"]
    for content, status in ((b"{", 400), (b"\xff\xfe", 400), (b" " * (MAX_BODY_BYTES + 1), 413)):
        answer = post(content)
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["message"]
    said = b'"messages": [{"role": "user", "content": "%s"}]'
    for content in (
        b"{" + said % b"\\ud800" + b"}",
        b'{"temperature": 1e400, ' + said % b"Hi" + b"}",
        b'{"temperature": NaN, ' + said % b"Hi" + b"}",
        b'{"seed": ' + b"9" * 5000 + b", " + said % b"Hi" + b"}",
        b'{"messages": ' + b"[" * 100_000,
        b'"messages"',
    ):
        answer = post(content)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error"), content[:80]
    for seed in (-1, 1 << 70):
        assert served.post({"messages": HELLO, "seed": seed, "max_tokens": 2}).status_code == 200
    assert served.post({"messages": [{"role": "user", "content": "\0"}], "max_tokens": 2}).status_code == 200
    pieces = (b" " * 65536 for _ in range(17))  # without a length
    answer = httpx.post(f"{served.url}/v1/chat/completions", content=pieces)
    assert answer.status_code == 413
    assert httpx.get(f"{served.url}/nowhere").json()["error"]["message"] == "GET /nowhere: Not Found"
    answer = httpx.get(f"{served.url}/v1/chat/completions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    for path in ("/", "/health"):
        assert httpx.head(served.url + path).status_code == httpx.get(served.url + path).status_code == 200
    assert httpx.get(f"{served.url}/docs").status_code == 404  # FastAPI's own loads scripts from elsewhere


def test_a_long_conversation_is_answered(served: Served) -> None:
    """Clients send all of it: 331 messages of 100 characters, and 501 of any length, were refused for ever."""
    for messages in (
        [{"role": ("user", "assistant")[k % 2], "content": "word " * 20} for k in range(331)],
        [{"role": "user", "content": "a"}] * 2001,
        [{"role": "user", "content": "word " * 30_000}],
    ):
        answer = served.post({"messages": messages, "max_tokens": 2})
        assert answer.status_code == 200, answer.text
        usage = answer.json()["usage"]
        assert usage["turns_left_out"] + usage["tokens_cut"] > 0
        assert usage["prompt_tokens"] <= 510


def test_what_cannot_fit_has_openais_code(served: Served) -> None:
    """Clients look for it, and shorten the prompt."""
    with pytest.raises(openai.BadRequestError, match="context length is 512 tokens") as refused:
        served.client.completions.create(model="tiny", prompt="word " * 2000)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")


def test_fields_without_effect_are_told_or_refused(served: Served) -> None:
    """A misspelt field was ignored in silence, and so was a limit beyond the server's."""
    body = {"messages": [{"role": "system", "content": "Be kind."}, *HELLO], "max_tokens": 5000, "temprature": 0}
    for stream in (False, True):
        warning = served.post({**body, "stream": stream}).headers["x-dialogpt-warning"]
        assert "'temprature' is unknown; is 'temperature' meant?" in warning
        assert "max_tokens 5000 was reduced to 64" in warning
        assert "1 system messages were dropped" in warning
    harmless = {
        "messages": HELLO,
        "user": "me",
        "metadata": {},
        "tools": [],
        "response_format": {"type": "text"},
        "n": 1,
    }
    assert "x-dialogpt-warning" not in served.post({**harmless, "best_of": 1, "max_tokens": 3}).headers
    odd = served.post({"messages": HELLO, "x\r\nSet-Cookie: é": 1, "max_tokens": 3})
    assert (odd.status_code, "set-cookie" in odd.headers) == (200, False)
    with serve(served.engine, strict=True) as strict:
        refused = strict.post(body)
        assert (refused.status_code, "this server is strict: 'temprature' is unknown" in refused.text) == (400, True)
        assert strict.post(harmless).status_code == 200


def test_a_system_message_is_no_turn_unless_asked(served: Served) -> None:
    """As a turn, the bot repeated it."""
    system = [
        {"role": "system", "content": "You are a kind old sailor."},
        {"role": "developer", "content": "Be brief."},
    ]
    plain = {"messages": HELLO, "temperature": 0}
    without = served.post(plain).json()
    assert served.post({**plain, "messages": [*system, *HELLO]}).json()["usage"] == without["usage"]
    with serve(served.engine, keep_system=True) as other:
        usage = other.post({**plain, "messages": [*system, *HELLO]}).json()["usage"]
        assert usage["prompt_tokens"] > without["usage"]["prompt_tokens"]


@pytest.mark.parametrize("name", ["forced_bos_token_id", "forced_eos_token_id"])
def test_a_client_cannot_force_what_the_operator_bans(name: str) -> None:
    """A forced token comes after bad words, as in transformers, and so got round the operator's."""
    request = ChatRequest(messages=HELLO, **{name: 7})  # type: ignore[arg-type]
    banning = GenerationConfig.chat().merged({"bad_words_ids": [[7]]})
    for settings, refused in ((GenerationConfig.chat(), False), (banning, True)):
        limits = Limits(settings, 512, new_tokens=64, seconds=60, history_tokens=256)
        with pytest.raises(DialogueError, match="may force what this server bans") if refused else nullcontext():
            plan_of(request, limits, 8191)
