"""An inspection as data: probabilities, processors, ablation, and what was considered."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from dialogpt.candidates import candidates_for_all
from dialogpt.chat import Chat
from dialogpt.errors import DialogueError
from dialogpt.generation_config import GenerationConfig
from dialogpt.inspect import Inspection
from dialogpt.inspect.data import token_text
from dialogpt.inspect.distributions import stages
from dialogpt.inspect.explain import explain, explain_last
from dialogpt.logits.processors import Seen
from dialogpt.ranking.scoring import score_turns
from dialogpt.sampler import next_token_probabilities
from dialogpt.tokenizer import Tokenizer
from tests.helpers import FavoursLong, needs_int8

DIALOGUE = [
    "Hi! My name is Anna.",
    "Hello Anna! What's new?",
    "I have a dog.",
    "A dog! What's its name?",
    "What is my name?",
]


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load("tiny", seed=1)


@pytest.fixture(scope="module")
def found(chat: Chat) -> Inspection:
    return explain(chat, DIALOGUE, "Your name is Anna.", name="tiny")


def test_it_is_json(found: Inspection) -> None:
    assert json.loads(json.dumps(found, allow_nan=False)) == json.loads(json.dumps(found))


def test_tokens_spell_the_dialogue_turn_by_turn(found: Inspection) -> None:
    for index, turn in enumerate(found["turns"]):
        mine = [token for token in found["tokens"] if token["turn"] == index]
        assert "".join(token["text"] for token in mine[:-1]) == turn["text"]
        assert mine[-1]["end"]
        assert not any(token["end"] for token in mine[:-1])
        assert found["tokens"][turn["start"] or 0] is mine[0]
    assert [turn["role"] for turn in found["turns"]] == ["user", "assistant"] * 3


def test_probabilities_are_those_of_the_chat_s_score(chat: Chat, found: Inspection) -> None:
    """`Chat.score` reads the same dialogue by another way."""
    scores = score_turns(chat.model, chat.turns_from([*DIALOGUE, "Your name is Anna."]), chat.tokenizer.eos_id)
    expected = [value for score in scores for value in score.log_probabilities]
    bits = [token["bits"] for token in found["tokens"]]
    assert bits[0] is None
    assert bits[1:] == pytest.approx([-value / math.log(2) for value in expected], abs=1e-4)
    assert found["reply"]["log_probability"] == pytest.approx(scores[-1].total, abs=1e-4)


def test_the_reply_shows_that_it_uses_the_history(found: Inspection) -> None:
    """The main use: without the turns that mention the name, the name is far less likely."""
    name = next(k for k, token in enumerate(found["tokens"]) if k >= found["reply"]["first"] and token["text"] == " An")
    without_all = next(entry for entry in found["ablation"] if len(entry["removed"]) > 1)
    place = name - found["reply"]["first"]
    change = without_all["log_probabilities"][place] - found["reply"]["log_probabilities"][place]
    assert change < -3
    assert [entry["removed"] for entry in found["ablation"]] == [[0], [1], [2], [3], [4], [0, 1, 2, 3]]


def test_ablation_is_the_reply_after_the_shorter_dialogue(chat: Chat, found: Inspection) -> None:
    (expected,) = score_turns(
        chat.model, chat.turns_from([*DIALOGUE[:2], *DIALOGUE[3:], "Your name is Anna."]), chat.tokenizer.eos_id
    )[-1:]
    assert found["ablation"][2]["log_probability"] == pytest.approx(expected.total, abs=1e-4)


def test_attention_and_contributions_add_up(found: Inspection) -> None:
    for position, token in enumerate(found["tokens"][1:], 1):
        attention, split = token["attention"], token["contributions"]
        assert attention is not None
        assert split is not None
        assert [sum(layer) for layer in attention["turns"]] == pytest.approx([1.0] * 6, abs=1e-5)
        assert sum(split["parts"]) == pytest.approx(split["logit"], abs=1e-4)
        assert sum(split["rival_parts"]) == pytest.approx(split["rival_logit"], abs=1e-4)
        assert split["rival"]["id"] != token["id"]
        if attention["heads"] is not None:
            assert all(len(head) == position for layer in attention["heads"] for head in layer)
            mean = [sum(head[0] for head in layer) / 4 for layer in attention["heads"]]
            assert mean == pytest.approx(attention["first"], abs=1e-6)


def test_settles_is_the_layer_from_which_the_first_choice_stays(found: Inspection) -> None:
    for token in found["tokens"][1:]:
        first_choices = [layer["top"][0]["id"] for layer in token["lens"]]
        settles = token["settles"]
        assert settles is not None
        assert set(first_choices[settles:]) == {first_choices[-1]}
        assert settles == 0 or first_choices[settles - 1] != first_choices[-1]


def test_what_a_processor_removed_was_possible_before_it(found: Inspection) -> None:
    for token in found["tokens"][found["reply"]["first"] :]:
        choice = token["choice"]
        assert choice is not None
        assert choice["stages"][0]["name"] == "network"
        kept = [stage["kept"] for stage in choice["stages"]]
        assert kept == sorted(kept, reverse=True)
        for stage in choice["stages"]:
            assert len(stage["probabilities"]) == len(choice["candidates"])
            assert all(0 < candidate["probability"] <= 1 for candidate in stage["removed_tokens"])
            assert len(stage["removed_tokens"]) == min(6, stage["removed"])


@pytest.mark.parametrize("seed", range(5))
def test_the_last_stage_is_what_the_sampler_draws_from(seed: int) -> None:
    logits = torch.randn(97, generator=torch.Generator().manual_seed(seed)) * 3
    before = logits.clone()
    config = GenerationConfig.chat().with_end_token(96)
    seen = Seen([3, 4, 5, 96, 3, 4, 5], 4, [[3, 4, 5, 9]])
    found = stages(logits, config, seen)
    torch.testing.assert_close(found[-1].probabilities, next_token_probabilities(logits[None], config, [seen])[0])
    assert torch.equal(logits, before)
    assert [stage.name for stage in found][-3:] == ["temperature", "top_k", "top_p"]
    assert bool(next(stage for stage in found if stage.name == "no_repeat_ngram").removed[9])
    top_k = found[-2]
    assert int((top_k.probabilities > 0).sum()) == 50
    assert int(top_k.removed.sum()) == len(logits) - 50 - int(sum(stage.removed.sum() for stage in found[:-2]))


def test_a_token_that_the_settings_forbid_is_called_impossible(chat: Chat) -> None:
    found = explain(chat, ["Hi!"], "Zebra quux")
    choices = [token["choice"] for token in found["tokens"][found["reply"]["first"] :]]
    assert any(choice is not None and not choice["possible"] for choice in choices)


def test_the_reply_is_the_one_that_the_seed_gives(chat: Chat) -> None:
    (expected,) = candidates_for_all(chat, [["Hi!"]], 1, [7])[0]
    found = explain(chat, ["Hi!"], seed=7)
    first = found["reply"]["first"]
    assert [token["id"] for token in found["tokens"][first:]][: len(expected.ids)] == expected.ids
    assert found["reply"]["ended"] == (expected.finish_reason == "stop")
    assert found["considered"] is None
    assert all(token["choice"] is None or token["choice"]["possible"] for token in found["tokens"][first:])


def test_a_reply_that_was_cut_by_its_length_has_no_end_token(chat: Chat) -> None:
    short = Chat(chat.model, chat.tokenizer, replace(chat.generation, max_new_tokens=2))
    found = explain(short, ["Tell me a story."], seed=1)
    assert not found["reply"]["ended"]
    assert len(found["tokens"]) == found["reply"]["first"] + 2


def test_turns_that_the_model_is_not_shown_are_there_without_tokens(chat: Chat) -> None:
    short = Chat(chat.model, chat.tokenizer, chat.generation, history_tokens=20)
    found = explain(short, DIALOGUE, "Anna.")
    starts = [turn["start"] for turn in found["turns"]]
    assert starts[:3] == [None, None, None]
    assert starts[-2] is not None
    assert found["tokens"][0]["turn"] == starts.count(None)
    assert found["ablation"][0]["removed"] == [starts.count(None)]


def test_one_turn_alone_is_ablated_to_nothing(chat: Chat) -> None:
    found = explain(chat, ["Hi!"], "Hello.")
    (entry,) = found["ablation"]
    assert entry["removed"] == [0]
    assert entry["log_probability"] < found["reply"]["log_probability"]


def test_the_last_reply_of_a_conversation(chat: Chat) -> None:
    with pytest.raises(DialogueError, match="there is no exchange yet"):
        explain_last(Chat(chat.model, chat.tokenizer))
    talk = Chat(chat.model, chat.tokenizer, chat.generation, seed=3)
    reply = talk.reply("Hi! How are you?")
    turns = [list(turn) for turn in talk.history.turns]
    found = explain_last(talk, name="tiny")
    assert found["reply"]["text"] == reply
    assert [list(turn) for turn in talk.history.turns] == turns
    assert found["tokens"][-1]["end"]


@pytest.mark.parametrize(
    ("turns", "reply", "problem"),
    [
        ([], "Hi.", "a prompt needs a turn"),
        (["Hi!"], "long " * 600, "positions; shorten the reply"),
        (["\ud800"], "Hi.", "surrogate"),
    ],
)
def test_what_cannot_be_inspected_is_a_sentence(chat: Chat, turns: list[str], reply: str, problem: str) -> None:
    with pytest.raises(DialogueError, match=problem):
        explain(chat, turns, reply)


def test_an_empty_reply_is_its_end_token(chat: Chat) -> None:
    found = explain(chat, ["Hi!"], "")
    assert [token["end"] for token in found["tokens"][found["reply"]["first"] :]] == [True]


@pytest.mark.parametrize("limit", [8, 64])
def test_beams_are_recorded_as_a_tree_that_leads_to_every_reply(chat: Chat, limit: int) -> None:
    """The last token of each reply was missing, as a search keeps no beam for it."""
    settings = replace(chat.generation, num_beams=3, do_sample=False, max_new_tokens=limit)
    found = explain(Chat(chat.model, chat.tokenizer, settings), ["Hi! How are you?"])
    considered: Any = found["considered"]
    assert considered["beams"][0]["text"] == found["reply"]["text"]
    assert 1 <= len(considered["beams"]) <= 3
    branches = considered["branches"]
    places = {(branch["parent"], branch["token"]): place for place, branch in enumerate(branches)}
    assert len(places) == len(branches)
    reply = [token["id"] for token in found["tokens"][found["reply"]["first"] :]]
    assert (reply[-1] == chat.tokenizer.eos_id) == (limit == 64)
    total, parent = 0.0, None
    for step, (token, log_probability) in enumerate(zip(reply, found["reply"]["log_probabilities"], strict=True)):
        parent = places[parent, token]
        total += log_probability
        assert branches[parent]["step"] == step
        assert branches[parent]["log_probability"] == pytest.approx(total, abs=1e-3)
    for beam in considered["beams"][1:]:
        parent = None
        for token in beam["ids"]:
            parent = places[parent, token]


@needs_int8
def test_draft_tokens_are_recorded(chat: Chat) -> None:
    from dialogpt.decoding.speculative import Draft

    drafted = Chat(chat.model, chat.tokenizer, chat.generation, draft=Draft(chat.model))
    found = explain(drafted, ["Hi! How are you?"], seed=1)
    considered: Any = found["considered"]
    reply = [token["id"] for token in found["tokens"][found["reply"]["first"] :]]
    assert considered["rounds"]
    for part in considered["rounds"]:
        suggested = [token["id"] for token in part["tokens"]]
        assert reply[part["start"] : part["start"] + part["accepted"]] == suggested[: part["accepted"]]
    assert isinstance(drafted.draft, Draft)


def test_candidates_come_with_their_ranks(chat: Chat) -> None:
    ranked = Chat(chat.model, chat.tokenizer, chat.generation, reranker=FavoursLong(), num_candidates=4)
    found = explain(ranked, ["Tell me about your day."], seed=2)
    considered: Any = found["considered"]
    ranks = [candidate["rank"] for candidate in considered["candidates"]]
    assert len(ranks) == 4
    assert ranks == sorted(ranks, reverse=True)
    assert considered["candidates"][0]["text"] == found["reply"]["text"]


@needs_int8
def test_int8_is_inspected_as_well() -> None:
    found = explain(Chat.load("tiny", dtype="int8", seed=1), ["Hi!"], "Hello.")
    assert found["ablation"][0]["log_probability"] < found["reply"]["log_probability"] < 0


def test_damaged_weights_are_a_sentence(chat: Chat) -> None:
    from tests.helpers import random_model

    model = random_model(vocab_size=8192, eos_token_id=8191)
    with torch.no_grad():
        model.final_norm.weight.fill_(math.nan)
    with pytest.raises(DialogueError, match="NaN or infinity"):
        explain(Chat(model, chat.tokenizer), ["Hi!"], "Hello.")


def test_a_token_that_is_half_a_character_is_spelled_in_bytes() -> None:
    tokenizer = Tokenizer.load("tiny")
    ids = tokenizer.encode("🙂")
    assert len(ids) > 1
    assert token_text(tokenizer, ids[-1]).startswith("\\x")
    assert token_text(tokenizer, tokenizer.encode(" name")[0]) == " name"
