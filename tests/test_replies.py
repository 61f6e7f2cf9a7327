"""One rule each for settings, speakers and replies, whichever front end asks: `Chat`, the commands, or the server."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from dialogpt import Chat, Decoder, DialogueError, GenerationConfig, History, Tokenizer
from dialogpt.candidates import candidates
from dialogpt.cli.batch import SEED_STRIDE
from dialogpt.cli.commands import serve as command
from dialogpt.cli.main import build_parser, main
from dialogpt.cli.opening import open_chat
from dialogpt.cli.options import generation_from, parse_setting
from dialogpt.history import BOT, USER, Prompt, Turn, alternating
from dialogpt.model import KVCache
from dialogpt.ranking.mmi import MMI
from dialogpt.replies import Dialogue, Plan, Seeds, stream_reply
from dialogpt.serve.app import create_app
from dialogpt.serve.engine import Engine
from dialogpt.serve.schemas import ChatRequest, Limits, plan_of
from dialogpt.weights import load, open_checkpoint
from tests.helpers import counted_reads

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
    return plan_of(request, Limits(settings, 128, 64, 30, 256), 0).config


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


def test_greedy_decoding_keeps_the_minimum_length() -> None:
    """It kept `min_new_tokens` and reset `min_length`."""
    sampled = GenerationConfig(do_sample=True, min_length=30)
    assert parse_setting(sampled, "temperature", "0").min_length == 30
    assert generation_from(flags("--min-length", "30", "--temperature", "0")).min_length == 30
    assert body_settings(sampled, temperature=0).min_length == 30


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


def served_by(*arguments: str) -> Any:
    """The engine and the application that `dialogpt serve` makes of flags."""
    options = flags(*arguments, command="serve")
    return command._prepared(options, command.open_model(options), command.access_from(options))()


@pytest.mark.parametrize(
    "given", [[], ["--max-new-tokens", "5"], ["--max-length", "900"], ["--greedy"], ["--history-tokens", "40"]]
)
def test_chat_and_serve_load_by_the_same_rule(
    published: Path, monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    served: list[Limits] = []
    monkeypatch.setattr("dialogpt.serve.app.create_app", lambda _engine, _name, limits, **_: served.append(limits))
    options = ["--model", str(published), "--threads", "1", *given]
    engine, _ = served_by(*options)
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
    engine, _ = served_by()
    engine.close(0)
    assert caplog.text.count("is a DialogRPT: it scores replies, and was not trained to generate them") == 2


# ---- who spoke ----

SPOKEN = [("system", "Be kind."), ("user", "Hi!"), ("assistant", "Hello."), ("user", "And now?")]


def test_a_system_message_and_the_users_turns_are_not_the_bots_own() -> None:
    """Told by parity, the system message was a turn of the bot's, whose n-grams the preset bans."""
    tokenizer = Tokenizer.load("tiny")
    decoder = Decoder(load("tiny"), tokenizer)
    limits = Limits(GenerationConfig.chat(), 512, new_tokens=64, seconds=60, history_tokens=256, keep_system=True)
    for messages in (SPOKEN, SPOKEN[1:], [*SPOKEN[:1] * 2, *SPOKEN[1:]], [*SPOKEN, ("user", "Well?")]):
        request = ChatRequest(messages=[{"role": role, "content": text} for role, text in messages])  # type: ignore[list-item]
        prompt = request.prompt(tokenizer, limits, 400)
        row = decoder.add(prompt, GenerationConfig.chat())
        assert row.own_turns == [tokenizer.encode("Hello.")]


def test_the_history_carries_who_spoke() -> None:
    history = History(99, [[1, 2], [3], [4]])
    assert [turn.role for turn in history.turns] == [USER, BOT, USER]
    assert history.prompt(100, 100).own_turns == [[3]]
    assert history.prompt(2, 100).own_turns == []  # only what is shown
    assert alternating(4) == [BOT, USER, BOT, USER]
    two = History(99, [Turn([1], USER), Turn([2], BOT), Turn([3, 4, 5], BOT)])
    assert two.prompt(100, 100).own_turns == [[2], [3, 4, 5]]
    assert two.prompt(100, 3).own_turns == [[4, 5]]  # cut at its front, as it is shown
    chat = Chat(load("tiny"), Tokenizer.load("tiny"), GenerationConfig(max_new_tokens=4), seed=0)
    for text in ("Hi!", "And now?"):
        chat.reply(text)
    assert [turn.role for turn in chat.history.turns] == [USER, BOT, USER, BOT]
    shown = chat.last_prompt
    assert shown is not None
    assert shown.own_turns == [chat.history.turns[1]]


# ---- replies ----

SEED, LINES = 5, 6
TALK = [("user", "Hi!"), ("assistant", "Hello."), ("user", "And now?")]
SAMPLED = ["--dtype", "float64", "--max-new-tokens", "8", "--top-k", "0", "--top-p", "1", "--temperature", "1"]
OFTEN_BLANK = ["--min-new-tokens", "0", "--sequence-bias", "[[[556], 7.5]]"]  # every second sample or so ends at once


@dataclass(frozen=True)
class Case:
    """One way to ask for replies: as flags of a command, and as a request's body."""

    given: list[str]
    num_replies: int = 1
    ranked: bool = False
    body: dict[str, Any] = field(default_factory=dict)


CASES = {
    "one": Case([]),
    "several": Case([], num_replies=3),
    "a blank first sample": Case(OFTEN_BLANK),
    "several, with blanks": Case(OFTEN_BLANK, num_replies=3),
    "ranked": Case([], num_replies=2, ranked=True),
    "ranked, with blanks": Case(OFTEN_BLANK, ranked=True),
    "beams": Case(["--no-do-sample", "--num-beams", "3"], 2, body={"num_beams": 3, "do_sample": False}),
}


def of_batch(capsys: pytest.CaptureFixture[str], path: Path, given: list[str], num_replies: int) -> list[list[str]]:
    """The replies of `reply --batch` to the same dialogue on each line; each line has a seed of its own."""
    path.write_text((json.dumps({"turns": [text for _, text in TALK]}) + "\n") * LINES)
    capsys.readouterr()
    batch = ["reply", "--batch", str(path), "--seed", str(SEED), "--num-replies", str(num_replies), *given]
    assert main(batch) == 0
    lines = capsys.readouterr().out.splitlines()
    return [[reply["text"] for reply in json.loads(line)["replies"]] for line in lines]


def of_chat(chat: Chat, seed: int, num_replies: int) -> list[str]:
    """The replies of a fresh conversation with these settings."""
    fresh = Chat(
        chat.model,
        chat.tokenizer,
        chat.generation,
        seed=seed,
        reranker=chat.reranker,
        num_candidates=chat.num_candidates,
    )
    if num_replies > 1:
        return [
            chat.tokenizer.decode(reply.ids) for reply in candidates(fresh, [text for _, text in TALK], num_replies)
        ]
    fresh.restore([chat.tokenizer.encode(text) for _, text in TALK[:-1]])
    return ["".join(fresh.stream(TALK[-1][1]))]


def of_server(client: TestClient, seed: int, case: Case, stream: bool) -> list[str]:
    """The replies of a server."""
    messages = [{"role": role, "content": text} for role, text in TALK]
    body = {"messages": messages, "seed": seed, "n": case.num_replies, "stream": stream, **case.body}
    answer = client.post("/v1/chat/completions", json=body | ({"rerank": True} if case.ranked else {}))
    assert answer.status_code == 200, answer.text
    if not stream:
        return [choice["message"]["content"] for choice in answer.json()["choices"]]
    texts = [""] * case.num_replies
    for event in answer.text.split("\n\n"):
        if event.startswith("data: {"):
            for choice in json.loads(event.removeprefix("data: "))["choices"]:
                texts[choice["index"]] += choice["delta"].get("content") or ""
    return texts


@contextmanager
def server(chat: Chat) -> Iterator[TestClient]:
    """A server with the network, settings and reranker of a conversation; beams are for requests to ask."""
    settings = replace(chat.generation, num_beams=1)
    limits = Limits(settings, 128, 64, 60, chat.history_tokens, chat.reranker, chat.num_candidates)
    engine = Engine(chat.model, chat.tokenizer)
    try:
        yield TestClient(create_app(engine, "m", limits))
    finally:
        engine.close(0)


@pytest.mark.parametrize("name", CASES)
def test_every_front_end_gives_the_same_replies(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Streamed and whole, in batches and alone; exact in float64."""
    case = CASES[name]
    given = ["--model", str(published), "--threads", "1", *SAMPLED, *case.given]
    if case.ranked:
        given += ["--rerank", "mmi", "--reverse-model", str(published), "--num-candidates", "5"]
    found = of_batch(capsys, tmp_path / "in.jsonl", given, case.num_replies)
    chat = open_chat(flags(*given))
    with server(chat) as client:
        for number, texts in enumerate(found, 1):
            seed = SEED + SEED_STRIDE * number
            assert of_chat(chat, seed, case.num_replies) == texts
            assert of_server(client, seed, case, stream=False) == texts
            assert of_server(client, seed, case, stream=True) == texts
    assert (len({tuple(texts) for texts in found}) > 1) == (name != "beams")


def test_a_blank_sample_is_generated_again_and_a_blank_candidate_wins_nowhere(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server did not sample blank candidates again, and a chat's reranker could choose one."""
    chat = open_chat(flags("--model", str(published), *SAMPLED, *OFTEN_BLANK, "--max-new-tokens", "3"))
    tokenizer, asked = chat.tokenizer, list[int]()

    class LikesBlanks:
        def scores(self, _: Any, replies: Any, __: Any = None) -> list[float]:
            asked.append(sum(not tokenizer.decode(ids).strip() for ids in replies))
            return [-float(len(ids)) for ids in replies]

    chat.reranker, chat.num_candidates = LikesBlanks(), 8
    case = Case([], ranked=True)
    blanks: dict[int, list[int]] = {}
    for attempts in (1, 5):
        monkeypatch.setattr("dialogpt.replies.MAX_ATTEMPTS", attempts)
        with server(chat) as client:
            for seed in range(4):
                (text,) = of_chat(chat, seed, 1)
                assert text.strip()
                assert of_server(client, seed, case, stream=False) == [text]
        blanks[attempts], asked[:] = list(asked), []
    assert sum(blanks[5]) < sum(blanks[1]) // 2
    assert blanks[1][::2] == blanks[1][1::2]  # of the chat, and of the server


def test_beams_and_candidates_of_a_server_reuse_cached_prefixes(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each recomputed its whole prompt, and cached nothing for the next turn."""
    chat = open_chat(flags("--model", str(published), *SAMPLED, "--max-new-tokens", "2"))
    chat.reranker, chat.num_candidates = MMI.load(published, chat.tokenizer), 3
    long = [{"role": "user", "content": "a b c d e f g h i j k l m n o p q r s t u v w x y z"}]
    longer = [*long, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "no"}]
    with server(chat) as client:
        for body in ({"num_beams": 2, "do_sample": False}, {"rerank": True}, {}):
            alone = [client.post("/v1/chat/completions", json={"messages": longer, "seed": 1, **body}).json()]
            reads = counted_reads(chat.model, monkeypatch)
            again = client.post("/v1/chat/completions", json={"messages": longer, "seed": 1, **body}).json()
            assert reads[0] <= 3  # of more than 50; at least the last token is computed once more, by each sequence
            assert again["choices"] == alone[0]["choices"]
            monkeypatch.undo()


def test_a_sample_that_is_generated_again_computes_one_token_of_its_prompt(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = open_chat(flags("--model", str(published), *SAMPLED, *OFTEN_BLANK))
    prompt = Prompt([*range(40), chat.tokenizer.eos_id], 0, 0, [])
    plan = Plan.of(chat.generation, chat.tokenizer.eos_id)
    reads = counted_reads(chat.model, monkeypatch)
    attempts = 0
    for seed in range(6):
        reads.clear()
        count: list[int] = []
        dialogue = Dialogue(prompt, [], Seeds("cpu", seed))
        cache = KVCache.for_model(chat.model)
        for _ in stream_reply(chat.model, chat.tokenizer, plan, dialogue, cache, on_token=partial(count.append, 1)):
            pass
        assert reads[0] == len(prompt.ids)
        assert set(reads[1:]) <= {1}
        attempts += len(reads) > len(count) + 1
    assert attempts
