"""Chat completions: OpenAI's own client, unmodified, and the wire beneath it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest

from dialogpt import Chat, GenerationConfig, Tokenizer
from dialogpt.candidates import candidates
from dialogpt.ranking.mmi import MMI
from dialogpt.weights import open_checkpoint
from tests.serve.helpers import HELLO, Served, serve


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
    with serve(served.engine, keep_system=True) as other:
        answer = other.client.chat.completions.create(model="tiny", messages=messages, temperature=0)
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
    """Those of `dialogpt reply --rerank`; a network is a poor scorer of its own replies, but suffices here."""
    judge = MMI(served.engine.model, served.engine.tokenizer.eos_id)
    chat = Chat.load("tiny", dtype="float64", seed=7)
    chat.reranker, chat.num_candidates = judge, 5
    best = [chat.tokenizer.decode(reply.ids) for reply in candidates(chat, ["Hi! How are you?"], 2)]
    body = {"messages": HELLO, "seed": 7, "n": 2, "rerank": True, "num_candidates": 5}
    with serve(served.engine, judge) as judging:
        answer = judging.post(body).json()
        assert [choice["message"]["content"] for choice in answer["choices"]] == best
        for refused, sentence in (
            ({**body, "temperature": 0}, "must be 1 without do_sample"),
            ({**body, "logprobs": True}, "omit logprobs"),
            ({**body, "num_beams": 2}, "rerank scores 5 candidates, and num_beams makes 2"),
        ):
            answer = judging.post(refused)
            assert (answer.status_code, sentence in answer.text) == (400, True)
        answer = judging.post({"prompt": "Hi", "rerank": True}, "/v1/completions")
        assert (answer.status_code, "a text without turns" in answer.text) == (400, True)


def test_replies_of_nothing_are_drawn_again_and_come_last(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end token has a probability near one half; the reference is a chat with equal seeds."""
    often = {"logit_bias": {"8191": 13}, "min_new_tokens": 0, "temperature": 1}
    own = open_checkpoint("tiny").chat
    settings = replace(GenerationConfig.chat(own), min_new_tokens=None, temperature=1.0, sequence_bias=[[[8191], 13.0]])
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
    stream = served.client.chat.completions.create(
        model="tiny", messages=HELLO, seed=7, logprobs=True, top_logprobs=3, stream=True
    )
    streamed = [choice.logprobs.content for chunk in stream for choice in chunk.choices if choice.logprobs]
    assert [token for content in streamed for token in content or []] == answer.logprobs.content
    text = served.client.completions.create(model="tiny", prompt="I am", seed=7, logprobs=2, max_tokens=5).choices[0]
    assert text.logprobs is not None
    assert "".join(text.logprobs.tokens or []) == text.text
    assert text.logprobs.text_offset is not None
    assert text.logprobs.text_offset[:2] == [0, len((text.logprobs.tokens or [""])[0])]
    alone = served.client.completions.create(model="tiny", prompt="I am", seed=7, logprobs=0, max_tokens=2).choices[0]
    assert alone.logprobs is not None
    pairs = zip(alone.logprobs.tokens or [], alone.logprobs.token_logprobs or [], strict=True)
    assert alone.logprobs.top_logprobs == [{token: value} for token, value in pairs]  # what was said is always there


def test_models_and_health(served: Served) -> None:
    assert [model.id for model in served.client.models.list()] == ["tiny"]
    assert served.client.models.retrieve("tiny").owned_by == "dialogpt"
    with pytest.raises(openai.NotFoundError):
        served.client.models.retrieve("other")
    assert httpx.get(f"{served.url}/health").json()["status"] == "ok"
    metrics = httpx.get(f"{served.url}/metrics").text
    assert 'dialogpt_requests_total{status="200"}' in metrics
    assert "dialogpt_replies_running 0.0" in metrics


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
