"""The server as programs meet it: OpenAI's own client, unmodified, and the wire beneath it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from dialogpt import Chat, GenerationConfig, Tokenizer
from dialogpt.cli.commands import serve as command
from dialogpt.cli.main import main
from dialogpt.errors import DialogueError
from dialogpt.ranking.rerankers import MMI, Reranker
from dialogpt.serve.app import create_app
from dialogpt.serve.engine import Engine, Token
from dialogpt.serve.middleware import MOST_BYTES
from dialogpt.serve.responses import Completion, ShownText
from dialogpt.serve.schemas import CompletionRequest, Limits, plan_of
from dialogpt.weights import load, open_checkpoint
from tests.helpers import WAIT_SECONDS, await_torch, needs_posix, needs_proc, started

HELLO: Any = [{"role": "user", "content": "Hi! How are you?"}]


@dataclass
class Served:
    """A server in this process."""

    engine: Engine
    url: str

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="anything", max_retries=0, timeout=WAIT_SECONDS)

    def post(self, body: Any, path: str = "/v1/chat/completions", **settings: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=WAIT_SECONDS, **settings)


@contextmanager
def serve(engine: Engine, reranker: Reranker | None = None, **settings: Any) -> Iterator[Served]:
    own = open_checkpoint("tiny").chat  # as `dialogpt serve` takes them
    limits = Limits(GenerationConfig.chat(own), engine.model.config.n_positions, 64, 30, 256, reranker)
    app = create_app(engine, "tiny", limits, **settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Served(engine, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
    finally:
        server.should_exit = server.force_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    engine = Engine(load("tiny", dtype="float64"), Tokenizer.load("tiny"))
    with serve(engine) as served:
        yield served
    engine.close(0)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server whose every step takes a while, for one reply at a time."""
    network = load("tiny", dtype="float64")
    honest = network.hidden
    monkeypatch.setattr(network, "hidden", lambda *arguments: (time.sleep(0.05), honest(*arguments))[1])
    engine = Engine(network, Tokenizer.load("tiny"), most_rows=1, most_waiting=1)
    with serve(engine, api_key="secret") as served:
        yield served
    engine.close(0)


def test_a_chat_is_that_of_the_terminal(served: Served) -> None:
    """With equal seeds; the settings are those of `dialogpt chat`."""
    answer = served.client.chat.completions.create(model="tiny", messages=HELLO, seed=7)
    chat = Chat.load("tiny", dtype="float64", seed=7)
    assert answer.choices[0].message.content == chat.reply("Hi! How are you?")
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(chat.tokenizer.encode("Hi! How are you?")) + 1
    assert answer.object == "chat.completion"


def test_a_dialogue_has_no_roles(served: Served) -> None:
    turns = ["Be kind.", "Hi!", "Hello.", "What is your name?"]
    roles = ["system", "user", "assistant", "user"]
    messages: Any = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]
    answer = served.client.chat.completions.create(model="tiny", messages=messages, temperature=0)
    tokenizer = Tokenizer.load("tiny")
    ids = [token for turn in turns for token in (*tokenizer.encode(turn), tokenizer.eos_id)]
    plain = served.client.completions.create(model="tiny", prompt=ids, temperature=0)
    assert plain.choices[0].text == answer.choices[0].message.content != ""
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]}]
    again = served.client.chat.completions.create(model="tiny", messages=parts + messages[1:], temperature=0)
    assert again.choices[0].message.content == answer.choices[0].message.content


def test_a_stream_says_the_same(served: Served) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "seed": 7, "n": 2, "temperature": 1.5}
    whole = served.client.chat.completions.create(**asked)
    stream = served.client.chat.completions.create(**asked, stream=True)
    texts, reasons = {0: "", 1: ""}, {}
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert texts[0] != texts[1]


def test_the_wire_of_a_stream(served: Served) -> None:
    body = {"messages": HELLO, "seed": 7, "stream": True, "stream_options": {"include_usage": True}, "model": ""}
    answer = served.post(body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    *said, end, usage = chunks
    assert all(chunk["usage"] is None for chunk in (*said, end))
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in said)
    assert (end["choices"][0]["delta"], end["choices"][0]["finish_reason"]) == ({}, "stop")
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == len(said) - 1
    plain = served.post({**body, "stream_options": None}).text.split("\n\n")
    assert len(plain) == len(events) + 1
    assert not any('"usage"' in event for event in plain)


def test_what_finds_no_room_is_told(served: Served) -> None:
    """As a chat in the terminal tells it; the rule is that of `History`."""
    long = [{"role": "user", "content": "a b " * 2000}]
    usage = served.post({"messages": HELLO * 200, "max_tokens": 2}).json()["usage"]
    assert usage["turns_left_out"] > 100
    assert usage["tokens_cut"] == 0
    few = served.post({"messages": HELLO * 200, "max_tokens": 2, "history_tokens": 20}).json()["usage"]
    assert few["prompt_tokens"] <= 20 < usage["prompt_tokens"]
    usage = served.post({"messages": long, "max_tokens": 2}).json()["usage"]
    assert usage["prompt_tokens"] == 510
    assert usage["tokens_cut"] > 0
    assert usage["turns_left_out"] == 0


def test_texts_that_end_a_reply_are_not_shown(served: Served) -> None:
    whole = served.client.chat.completions.create(model="tiny", messages=HELLO, temperature=0).choices[0]
    assert whole.message.content is not None
    stop = whole.message.content[5:9]
    for stream in (False, True):
        answer = served.client.chat.completions.create(
            model="tiny", messages=HELLO, temperature=0, stop=[stop, "never"], stream=stream
        )
        if stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
        else:
            assert answer.choices[0].finish_reason == "stop"
            text = answer.choices[0].message.content
        assert text == whole.message.content[: whole.message.content.index(stop)]


def test_what_may_begin_a_stop_is_held_back() -> None:
    tokenizer = Tokenizer.load("tiny")
    shown = ShownText(tokenizer, ["stop", "stab"])
    said = [[shown.feed(token) for token in tokenizer.encode(text)] for text in ("a st", "ock st", "ab here")]
    assert ["".join(texts) for texts in said] == ["a ", "stock ", ""]
    assert shown.finish() == ""
    both = ShownText(tokenizer, ["e", "th"])  # in one token; the first place counts
    assert both.feed(tokenizer.encode(" the")[0]) == " "
    open_end = ShownText(tokenizer, ["stop"])
    assert "".join(open_end.feed(token) for token in tokenizer.encode("a sto")) == "a "
    assert open_end.finish() == "sto"


def test_settings_arrive(served: Served) -> None:
    def say(**settings: Any) -> Any:
        return served.client.chat.completions.create(model="tiny", messages=HELLO, **settings).choices[0]

    greedy = say(temperature=0).message.content
    assert say(temperature=0, seed=3).message.content == greedy
    twice = served.client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, n=2)
    assert [choice.message.content for choice in twice.choices] == [greedy, greedy]
    assert say(extra_body={"top_k": 1}, seed=3).message.content == greedy
    assert say(seed=1).message.content == say(seed=1).message.content
    assert say(max_tokens=2).finish_reason == say(max_completion_tokens=2).finish_reason == "length"
    ends: tuple[Any, Any] = ("", [8191])  # an empty text goes on from the end of a turn
    texts = [served.client.completions.create(model="tiny", prompt=end, temperature=0).choices[0].text for end in ends]
    assert texts[0] == texts[1] != ""
    first = Tokenizer.load("tiny").encode(greedy)[0]
    assert not say(temperature=0, logit_bias={str(first): -100}).message.content.startswith(greedy[:2])
    biased = say(temperature=0, logit_bias={str(first): 100}, max_tokens=3).message.content
    assert biased == Tokenizer.load("tiny").decode([first] * 3)
    beams = say(extra_body={"num_beams": 4}, temperature=0)
    assert beams.finish_reason in ("stop", "length")
    body = {"messages": HELLO, "num_beams": 4, "n": 2, "temperature": 0}
    texts = {choice["message"]["content"] for choice in served.post(body).json()["choices"]}
    assert beams.message.content in texts
    assert len(texts) == 2
    assert say(extra_body={"no_such_setting": 1, "tools": []}, temperature=0).message.content == greedy


def test_the_best_of_several_candidates(served: Served) -> None:
    """Those that `dialogpt reply --rerank` says; a network is a poor judge of its own replies, but it is one."""
    judge = MMI.load("tiny", served.engine.tokenizer)
    chat = Chat.load("tiny", dtype="float64", seed=7)
    chat.reranker, chat.num_candidates = judge, 5
    best = [chat.tokenizer.decode(reply.ids) for reply in chat.candidates(["Hi! How are you?"], 2)]
    body = {"messages": HELLO, "seed": 7, "n": 2, "rerank": True, "num_candidates": 5}
    with serve(served.engine, judge) as judging:
        answer = judging.post(body).json()
        assert [choice["message"]["content"] for choice in answer["choices"]] == best
        for refused, sentence in (
            ({**body, "temperature": 0}, "must be 1 without do_sample"),
            ({**body, "logprobs": True}, "leave logprobs out"),
            ({**body, "num_beams": 2}, "rerank judges 5 candidates, and num_beams makes 2"),
        ):
            answer = judging.post(refused)
            assert (answer.status_code, sentence in answer.text) == (400, True)
        answer = judging.post({"prompt": "Hi", "rerank": True}, "/v1/completions")
        assert (answer.status_code, "a text without turns" in answer.text) == (400, True)


def test_replies_of_nothing_are_drawn_again_and_come_last(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the turn is about as likely as all else together; what a chat does with equal seeds is judge."""
    often = {"logit_bias": {"8191": 13}, "min_new_tokens": 0}
    own = open_checkpoint("tiny").chat
    settings = replace(GenerationConfig.chat(own), min_new_tokens=None, sequence_bias=[[[8191], 13.0]])
    ids = [*served.engine.tokenizer.encode("Hi! How are you?"), 8191]
    once = []
    for seed in range(10):
        answer = served.post({"messages": HELLO, "seed": seed, **often}).json()["choices"][0]["message"]["content"]
        assert answer == Chat.load("tiny", dtype="float64", seed=seed, generation=settings).reply("Hi! How are you?")
        plain = served.post({"prompt": ids, "seed": seed, **often}, "/v1/completions").json()  # which is drawn once
        once.append(plain["choices"][0]["text"] != "")
    assert set(once) == {True, False}

    class Silence:
        """Would have a reply of nothing."""

        def scores(self, _: Any, replies: Any, __: Any = None) -> list[float]:
            assert any(map(len, replies))
            assert not all(map(len, replies))
            return [-float(len(reply)) for reply in replies]

    monkeypatch.setattr("dialogpt.replies.MAX_ATTEMPTS", 1)  # so that some candidates stay blank
    with serve(served.engine, Silence()) as judging:
        answer = judging.post({"messages": HELLO, "seed": 0, "rerank": True, "num_candidates": 12, **often}).json()
    assert answer["choices"][0]["message"]["content"].strip()


def test_probabilities(served: Served) -> None:
    answer = served.client.chat.completions.create(
        model="tiny", messages=HELLO, seed=7, logprobs=True, top_logprobs=3
    ).choices[0]
    assert answer.logprobs is not None
    assert answer.logprobs.content is not None
    assert "".join(token.token for token in answer.logprobs.content) == answer.message.content
    for token in answer.logprobs.content:
        best = [other.logprob for other in token.top_logprobs]
        assert best == sorted(best, reverse=True)
        assert best[0] >= token.logprob
        assert bytes(token.bytes or []).decode() == token.token
    text = served.client.completions.create(model="tiny", prompt="I am", seed=7, logprobs=2, max_tokens=5).choices[0]
    assert text.logprobs is not None
    assert "".join(text.logprobs.tokens or []) == text.text
    assert text.logprobs.text_offset is not None
    assert text.logprobs.text_offset[:2] == [0, len((text.logprobs.tokens or [""])[0])]
    alone = served.client.completions.create(model="tiny", prompt="I am", seed=7, logprobs=0, max_tokens=2).choices[0]
    assert alone.logprobs is not None
    pairs = zip(alone.logprobs.tokens or [], alone.logprobs.token_logprobs or [], strict=True)
    assert alone.logprobs.top_logprobs == [{token: value} for token, value in pairs]  # what was said is always there


def test_offsets_are_those_of_the_text_where_tokens_hold_half_characters() -> None:
    """Each byte of an emoji is a token here."""
    tokenizer = Tokenizer.load("tiny")
    form, shown = Completion(tokenizer, "tiny"), ShownText(tokenizer, ())
    ids = tokenizer.encode("😀!😀")
    chunks = [form.chunks(0, shown.feed(n), Token(0, n, -1.0, ((n, -1.0), (ids[0], -2.0))))[0] for n in ids]
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["text"] for choice in choices] == ["", "", "", "😀", "!", "", "", "", "😀"]
    told = [choice["logprobs"] for choice in choices]
    assert [one["text_offset"] for one in told] == [[0], [0], [0], [0], [1], [2], [2], [2], [2]]
    assert told[0]["tokens"] + told[4]["tokens"] == ["bytes:\\xf0", "!"]
    assert told[1]["top_logprobs"] == [{"bytes:\\x9f": -1.0, "bytes:\\xf0": -2.0}]


def test_models_and_health(served: Served) -> None:
    assert [model.id for model in served.client.models.list()] == ["tiny"]
    assert served.client.models.retrieve("tiny").owned_by == "dialogpt"
    with pytest.raises(openai.NotFoundError):
        served.client.models.retrieve("other")
    assert httpx.get(f"{served.url}/health").json()["status"] == "ok"
    metrics = httpx.get(f"{served.url}/metrics").text
    assert 'dialogpt_requests_total{status="200"}' in metrics
    assert "dialogpt_replies_running 0.0" in metrics


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
        ({"messages": HELLO, "presence_penalty": 1}, 400, "presence_penalty is 1.0, which is not implemented"),
        ({"messages": HELLO, "logit_bias": {"x": 1}}, 400, "logit_bias names the token 'x'"),
        ({"messages": HELLO, "logit_bias": {"99999": 1}}, 400, "names the token 99999, and the vocabulary has 8,192"),
        ({"messages": [{"role": "user", "content": "a" * 9000}]}, 400, "a text has 9,000 characters; at most 8,000"),
        ({"messages": [{"role": "user", "content": "a" * 7000}] * 5}, 400, "35,000 characters together; 32,000 are"),
        ({"messages": HELLO * 501}, 400, "at most 500 items"),
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
        ({"messages": HELLO, "num_beams": 17}, 400, "num_beams is 17; at most 16 are searched here"),
        ({"messages": HELLO, "num_beams": 2, "logprobs": True}, 400, "leave logprobs out: beams"),
        ({"messages": HELLO, "rerank": True}, 400, "nothing judges replies here; start the server with --rerank"),
        ({"messages": HELLO, "rerank": "mmi"}, 400, "rerank: Input should be a valid boolean"),
        ({"prompt": ["a"] * 33}, 400, "prompt: expected a text, the ids of one, or a list of up to 32 of either"),
        ({"prompt": "a", "suffix": "b"}, 400, "suffix is not implemented; leave it out"),
        ({"messages": HELLO, "temperature": 3}, 400, "less than or equal to 2; found 3"),
        ({"messages": HELLO, "temperature": "hot"}, 400, "unable to parse string as a number; found 'hot'"),
        ({"messages": HELLO, "stop": list("abcde")}, 400, "stop: expected a text, or a list of at most 4"),
        ({"messages": HELLO, "min_new_tokens": 100}, 400, "min_new_tokens is 100; this server says at most 64 tokens"),
        ({"messages": HELLO, "n": 3, "num_beams": 2}, 400, "n must be at most num_beams, 2, got 3"),
        ({"prompt": [[""]] * 60_000}, 400, "prompt: expected a text, the ids of one, or a list of up to 32 of either"),
        ({"prompt": ["x"] * 60_000}, 400, "prompt: expected a text, the ids of one, or a list of up to 32 of either"),
        ({"prompt": [7] * 600}, 400, "a prompt of 600 tokens and 64 new ones do not fit the network's 512 positions"),
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


def test_openais_client_knows_the_errors(slow: Served) -> None:
    """By their types, with the sentence; a time limit of its own ends a request here too."""
    client = slow.client.with_options(api_key="secret")
    with pytest.raises(openai.AuthenticationError, match="the API key is missing or wrong"):
        slow.client.chat.completions.create(model="tiny", messages=HELLO)
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4' here") as missing:
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="temperature: Input should be less than or equal to 2"):
        client.chat.completions.create(model="tiny", messages=HELLO, temperature=3)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).chat.completions.create(
            model="tiny", messages=HELLO, extra_body={"min_new_tokens": 60}
        )
    said = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=2)  # the one place is free again
    assert said.choices[0].message.content


def test_bodies_that_are_none(served: Served) -> None:
    def post(content: bytes) -> httpx.Response:
        headers = {"content-type": "application/json"}
        return httpx.post(f"{served.url}/v1/chat/completions", content=content, headers=headers, timeout=WAIT_SECONDS)

    good = json.dumps({"messages": HELLO, "max_tokens": 2}).encode()
    assert post(good).status_code == 200
    # A page elsewhere may send a body without a type, and is not asked whether it may.
    untyped = httpx.post(f"{served.url}/v1/chat/completions", content=good)
    assert (untyped.status_code, "say Content-Type: application/json" in untyped.text) == (400, True)
    for broken, sentence in ((b"{", "no JSON ("), (b"\xff", "cannot be read as JSON"), (b"[]", "found a list of 0")):
        assert sentence in post(broken).json()["error"]["message"]
    for content, status in ((b"{", 400), (b"\xff\xfe", 400), (b" " * (MOST_BYTES + 1), 413)):
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


def test_a_key_is_asked_for(slow: Served) -> None:
    for key in ("Bearer wrong", "Bearer sécret", "secret", "Basic secret", "Bearer", ""):
        answer = slow.post({"messages": HELLO}, headers={"Authorization": key.encode()})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
    for key in ("Bearer secret", "bearer secret"):
        answer = slow.post({"messages": HELLO, "max_tokens": 1}, headers={"Authorization": key})
        assert answer.status_code == 200
    assert httpx.get(f"{slow.url}/health").status_code == 200


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
    monkeypatch.setattr("dialogpt.serve.app.plan_of", lambda *_: 1 // 0)
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
    """Without an end, so that no client takes what came for the whole; the place is free, the log says why."""
    counts = httpx.get(f"{served.url}/metrics").text  # no second answer is begun after the first
    failures = [line for line in counts.splitlines() if line.startswith('dialogpt_requests_total{status="500"}')]
    monkeypatch.setattr("dialogpt.serve.responses.Form.chunks", lambda *_: 1 // 0)
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


def test_a_damaged_network_is_no_fault_of_the_request(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = served.engine.model.logits
    monkeypatch.setattr(served.engine.model, "logits", lambda *arguments: honest(*arguments) * float("nan"))
    for stream in (False, True):
        answer = served.post({"messages": HELLO, "stream": stream})
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        assert "its weights are damaged" in answer.text


def test_a_server_for_one_machine_is_called_by_its_names(served: Served) -> None:
    """A page elsewhere can let its own name lead to 127.0.0.1."""
    named = {"localhost:80": 200, "LOCALHOST": 200, "[::1]:8000": 200, "127.0.0.1": 200}
    foreign = {"evil.example": 403, "127.0.0.1.evil.example": 403, "127.0.0.1@evil.example": 403, "[::1": 403, "": 403}
    with serve(served.engine, hosts=("127.0.0.1", "localhost", "::1")) as strict:
        for host, status in (named | foreign).items():
            assert httpx.get(f"{strict.url}/v1/models", headers={"Host": host}).status_code == status, host


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


def test_pages_of_other_origins_are_let_in_only_if_asked(served: Served) -> None:
    for origins, allowed in (([], None), (["https://a.example"], "https://a.example")):
        with serve(served.engine, origins=origins) as other:
            answer = httpx.options(
                f"{other.url}/v1/chat/completions",
                headers={"Origin": "https://a.example", "Access-Control-Request-Method": "POST"},
            )
            assert answer.headers.get("access-control-allow-origin") == allowed


@needs_posix
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_lets_streams_end_as_they_should(tmp_path: Path, number: signal.Signals, status: int) -> None:
    program = [sys.executable, "-m", "dialogpt", "serve", "--port", "0", "--grace", "1", "--threads", "1"]
    with started(program, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("dialogpt: tiny answers at http://127.0.0.1:"), line
        url = line.split()[4].removesuffix("/")
        body = {"messages": HELLO, "min_new_tokens": 256, "max_tokens": 256, "n": 16, "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=WAIT_SECONDS) as answer:
            lines = answer.iter_lines()
            next(lines)
            os.kill(process.pid, number)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert 16 < len(rest) < 16 * 200  # all replies were cut
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert process.wait(timeout=WAIT_SECONDS) == status
        noted = process.stderr.read()
        assert noted == "" if number == signal.SIGTERM else "finishing 16 replies, within 1 seconds;" in noted


@needs_posix
def test_a_log_that_nobody_reads_any_more_cuts_no_stream() -> None:
    """As with `2>&1 | tee log`, where Ctrl-C ends tee first."""
    program = [sys.executable, "-m", "dialogpt", "serve", "--port", "0", "--grace", "1", "--threads", "1"]
    with started(program, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        url = process.stderr.readline().split()[4].removesuffix("/")
        process.stderr.close()
        body = {"messages": HELLO, "min_new_tokens": 256, "max_tokens": 256, "n": 16, "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=WAIT_SECONDS) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert process.wait(timeout=WAIT_SECONDS) == 130


def test_short_answers_wait_for_nobody() -> None:
    """Each took 44 ms: its head was sent, and its body only after the client's acknowledgement (Nagle's algorithm)."""
    with (
        command._listener("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@needs_posix
def test_a_second_ctrl_c_ends_at_once_and_a_body_that_never_comes_is_not_waited_for() -> None:
    program = [sys.executable, "-m", "dialogpt", "serve", "--port", "0", "--grace", "60", "--threads", "1"]
    with started(program, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        port = int(process.stderr.readline().split("127.0.0.1:")[1].split("/")[0])
        with socket.create_connection(("127.0.0.1", port)) as half:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
            half.sendall(head)
            half.settimeout(20)
            assert half.recv(1000).startswith(b"HTTP/1.1 408")
        body = {"messages": HELLO, "min_new_tokens": 256, "max_tokens": 256, "n": 16, "stream": True}
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=WAIT_SECONDS) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            assert "Ctrl-C again ends at once" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            with pytest.raises(httpx.HTTPError):
                deque(lines, maxlen=0)
        assert process.wait(timeout=WAIT_SECONDS) == 130
        assert process.stderr.read() == ""


def test_a_port_that_is_taken_is_said_in_the_system_s_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows' numbers of socket errors are not strerror's: it said "Unknown error"."""
    words = "Only one usage of each socket address is normally permitted"
    error = OSError(10048, f"{words} (while attempting to bind on address ('127.0.0.1', 8000))")
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(DialogueError, match=r"\([A-Z][a-z ]+\); choose another --port"),
    ):
        command._listener("127.0.0.1", taken.getsockname()[1])
    monkeypatch.setattr(socket, "create_server", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(DialogueError, match=rf"127.0.0.1 port 8000 cannot be listened on \({words}\); choose"):
        command._listener("127.0.0.1", 8000)


@needs_proc
def test_sigterm_while_it_loads_ends_it_quietly() -> None:
    """As soon as it listens, which comes before all else; what a process manager may do at any time."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = [sys.executable, "-m", "dialogpt", "serve", "--port", str(port), "--threads", "1"]
    with started(program, stderr=subprocess.PIPE) as process:
        await_torch(process)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=WAIT_SECONDS) == (None, "")
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("flags", "status", "sentence"),
    [
        (["--rerank", "mmi"], 2, "--rerank mmi needs --reverse-model"),
        (["--port", "99999"], 2, "expected a whole number from 0 to 65535"),
        (["--num-beams", "3", "--greedy"], 2, "--num-beams is for requests to ask"),
        (["--api-key", ""], 2, "the API key is empty"),
        (["--host", "a..b"], 1, "--host 'a..b' is no name of this machine"),
        (["--host", "256.1.1.1"], 1, "--host '256.1.1.1' is no name of this machine"),
        (["--host", "192.0.2.1"], 1, "192.0.2.1 port 8000 cannot be listened on"),
        (["--cors", "example.org"], 2, "'example.org' is no origin; expected https://host"),
        (["--cors", "http://example.org/"], 2, "is no origin"),
        (["--cors", "https://me@A.example"], 2, "is no origin"),
        (["--port", "0", "--max-new-tokens", "300"], 1, "at most 256 are served, half of 512 positions"),
        (["--model", "nowhere", "--port", "0"], 1, "nowhere"),
    ],
)
def test_a_server_that_cannot_begin_is_a_sentence(
    capsys: pytest.CaptureFixture[str], flags: list[str], status: int, sentence: str
) -> None:
    assert main(["serve", *flags]) == status
    assert sentence in capsys.readouterr().err
