"""One rule each for settings, speakers and replies, whichever front end asks: `Chat`, the commands, or the server."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dialogpt import Chat, Decoder, DialogueError, GenerationConfig, History, Tokenizer
from dialogpt.cli import build_parser
from dialogpt.flags import generation_from
from dialogpt.generation_config import parse_setting
from dialogpt.history import BOT, USER, Turn, alternating
from dialogpt.opening import open_chat
from dialogpt.serve import command
from dialogpt.serve.requests import ChatRequest, Limits, settings_of
from dialogpt.weights import load, open_checkpoint

BANS: dict[str, Any] = {
    "bad_words": ("darn",),
    "bad_words_ids": ((3, 4),),
    "suppress_tokens": (7, 8),
    "begin_suppress_tokens": (9,),
    "sequence_bias": (((5,), -100.0), ((6, 7), 2.0)),
}
BAN_FLAGS = ["--bad-words", "darn", "--bad-words-ids", "[[3, 4]]", "--suppress-tokens", "7,8"]
BAN_FLAGS += ["--begin-suppress-tokens", "9", "--sequence-bias", "[[[5], -100.0], [[6, 7], 2.0]]"]


def flags(*given: str, command: str = "chat") -> argparse.Namespace:
    return build_parser().parse_args([command, *given])


def body_settings(settings: GenerationConfig, **body: Any) -> GenerationConfig:
    """The settings that a request's body comes to on a server with these settings."""
    request = ChatRequest(messages=[{"role": "user", "content": "Hi!"}], **body)
    return settings_of(request, Limits(settings, 128, 64, 30, 256), 0)


# ---- settings ----


def test_greedy_decoding_keeps_what_is_banned() -> None:
    """`/set temperature 0` and a request's `temperature: 0` dropped it, `--temperature 0` kept it."""
    sampled = GenerationConfig(do_sample=True, top_k=7, repetition_penalty=1.5, **BANS)
    found = {
        "set": parse_setting(sampled, "temperature", "0"),
        "flag": generation_from(flags(*BAN_FLAGS, "--temperature", "0")),
        "body": body_settings(sampled, temperature=0),
        "python": sampled.merged({"temperature": 0}),
    }
    for name, config in found.items():
        assert {each: getattr(config, each) for each in BANS} == BANS, name
        assert (config.do_sample, config.repetition_penalty, config.top_k) == (False, 1.0, 0), name


def test_a_client_adds_to_what_the_operator_bans_and_removes_nothing() -> None:
    operator = GenerationConfig.chat().merged(BANS)
    asked = {"bad_words": ["heck"], "suppress_tokens": [8, 1], "bad_words_ids": [[2]], "begin_suppress_tokens": [2]}
    config = body_settings(operator, logit_bias={"5": 100, "11": 3}, **asked)
    assert config.bad_words == ("heck", "darn")
    assert set(config.suppress_tokens or ()) == {1, 7, 8}
    assert set(config.bad_words_ids or ()) == {(2,), (3, 4)}
    assert set(config.begin_suppress_tokens or ()) == {2, 9}
    assert dict(config.sequence_bias or ()) == {(5,): -100.0, (6, 7): 2.0, (11,): 3.0}


def test_a_temperature_means_the_same_wherever_it_is_given() -> None:
    greedy = GenerationConfig.chat().greedy()
    for config in (parse_setting(greedy, "temperature", "0.5"), body_settings(greedy, temperature=0.5)):
        assert (config.do_sample, config.temperature) == (True, 0.5)
    assert body_settings(greedy, temperature=0.5, do_sample=False).do_sample is False
    assert generation_from(flags("--greedy", "--temperature", "0.5")).do_sample is False
    kept = generation_from(flags("--transformers-defaults", "--temperature", "0.5"))
    assert (kept.do_sample, kept.temperature) == (False, 0.5)  # as in transformers
    contradiction = "do_sample is true, which contradicts temperature 0"
    for given in ({"temperature": 0, "do_sample": True}, {"temperature": 0.0, "do_sample": True}):
        with pytest.raises(DialogueError, match=contradiction):
            body_settings(greedy, **given)
        with pytest.raises(DialogueError, match=contradiction):
            greedy.merged(given)


def test_max_length_replaces_the_presets_max_new_tokens_wherever_it_is_given() -> None:
    assert GenerationConfig.chat().merged({"max_length": 90}).max_new_tokens is None
    assert generation_from(flags("--max-length", "90")).max_new_tokens is None
    assert GenerationConfig.chat().merged({"max_length": 90, "max_new_tokens": 5}).max_new_tokens == 5


def test_a_ban_that_is_set_while_decoding_is_greedy_outlasts_it() -> None:
    config = parse_setting(GenerationConfig.chat().greedy(), "suppress_tokens", "7")
    assert parse_setting(config, "temperature", "0.5").suppress_tokens == (7,)


@pytest.mark.parametrize(
    "given", [[], ["--max-new-tokens", "5"], ["--max-length", "900"], ["--greedy"], ["--history-tokens", "40"]]
)
def test_chat_and_serve_load_by_the_same_rule(
    published: Path, monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    served: list[Limits] = []
    monkeypatch.setattr("dialogpt.serve.api.create_app", lambda _engine, _name, limits, **_: served.append(limits))
    options = ["--model", str(published), "--threads", "1", *given]
    engine, _ = command._loaded(flags(*options, command="serve"))
    engine.close(0)
    chat = open_chat(flags(*options))
    assert served[0].settings == chat.generation
    assert served[0].history_tokens == chat.history_tokens
    assert served[0].num_candidates == chat.num_candidates


def test_serve_reports_a_network_that_only_ranks_as_chat_does(
    published: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = open_checkpoint(published)
    ranker = replace(checkpoint, ranking_head=next(iter(checkpoint.tensors.values())))
    monkeypatch.setattr("dialogpt.weights.open_checkpoint", lambda *_, **__: ranker)
    open_chat(flags())
    engine, _ = command._loaded(flags(command="serve"))
    engine.close(0)
    assert caplog.text.count("is a DialogRPT: it scores replies, and was not trained to write them") == 2


# ---- who spoke ----

SPOKEN = [("system", "Be kind."), ("user", "Hi!"), ("assistant", "Hello."), ("user", "And now?")]


def test_a_system_message_and_the_users_turns_are_not_the_bots_own() -> None:
    """Told by parity, the system message was a turn of the bot's, whose n-grams the preset bans."""
    tokenizer = Tokenizer.load("tiny")
    decoder = Decoder(load("tiny"), tokenizer)
    for messages in (SPOKEN, SPOKEN[1:], [*SPOKEN[:1] * 2, *SPOKEN[1:]], [*SPOKEN, ("user", "Well?")]):
        request = ChatRequest(messages=[{"role": role, "content": text} for role, text in messages])  # type: ignore[list-item]
        prompt = request.prompt(tokenizer, 256, 400)
        row = decoder.add(prompt, GenerationConfig.chat())
        assert row.own_turns == [tokenizer.encode("Hello.")]


def test_the_history_carries_who_spoke() -> None:
    history = History(99, [[1, 2], [3], [4]])
    assert [turn.role for turn in history.turns] == [USER, BOT, USER]
    assert history.prompt(100, 100).own_turns == [[3]]
    assert history.prompt(2, 100).own_turns == []  # only what is shown
    assert [turn.role for turn in alternating([[1], [2], [3], [4]])] == [BOT, USER, BOT, USER]
    two = History(99, [Turn([1], USER), Turn([2], BOT), Turn([3, 4, 5], BOT)])
    assert two.prompt(100, 100).own_turns == [[2], [3, 4, 5]]
    assert two.prompt(100, 3).own_turns == [[4, 5]]  # cut at its front, as it is shown
    chat = Chat(load("tiny"), Tokenizer.load("tiny"), GenerationConfig(max_new_tokens=4), seed=0)
    for text in ("Hi!", "And now?"):
        chat.reply(text)
    assert [turn.role for turn in chat.history.turns] == [USER, BOT, USER, BOT]
    shown = chat.shown()
    assert shown is not None
    assert shown.own_turns == [chat.history.turns[1]]
