"""Scores of given texts: equal to a plain computation, whatever is scored together."""

from __future__ import annotations

import math

import pytest
import torch

from dialogpt import Chat, DialogueError, GenerationConfig, generate_batch
from dialogpt.model import GPT2
from dialogpt.ranking.scoring import Score, score, score_turns
from tests.helpers import random_model, seeded


@pytest.fixture(scope="module")
def network() -> GPT2:
    return random_model(vocab_size=23, eos_token_id=22, n_positions=40)


def plainly(network: GPT2, ids: list[int], begin: int) -> list[float]:
    with torch.no_grad():
        logits = network(torch.tensor([ids]))[0].float().log_softmax(dim=-1)
    return [float(logits[place - 1, ids[place]]) for place in range(begin, len(ids))]


@pytest.mark.parametrize("micro_batch", [1, 3, 100])
def test_scores_are_those_of_a_plain_computation(network: GPT2, micro_batch: int) -> None:
    sequences = [torch.randint(0, 23, (2 + 5 * n % 17,), generator=seeded(n)).tolist() for n in range(10)]
    begins = [1 + n % (len(ids) - 1) for n, ids in enumerate(sequences)]
    for ids, begin, found in zip(
        sequences, begins, score(network, sequences, begins, micro_batch=micro_batch), strict=True
    ):
        assert found.ids == ids[begin:]
        assert found.log_probabilities == pytest.approx(plainly(network, ids, begin), abs=1e-6)
        assert found.total == pytest.approx(sum(found.log_probabilities))
        assert found.perplexity == pytest.approx(math.exp(-found.total / len(found.ids)))
    assert score(network, sequences)[0].ids == sequences[0][1:]


def test_a_replys_score_is_what_generation_said(network: GPT2) -> None:
    (replies,) = generate_batch(network, [[1, 2, 3]], GenerationConfig(max_new_tokens=12))
    reply = replies[0]
    ids = [1, 2, 3, *reply.ids, *([22] if reply.finish_reason == "stop" else [])]
    assert score(network, [ids], [3])[0].total == pytest.approx(reply.score, abs=1e-5)


def test_a_dialogue_is_scored_turn_by_turn() -> None:
    chat = Chat.load("tiny", dtype="float64")
    turns = score_turns(
        chat.model, chat.turns_from(["Hi! How are you?", "I am fine.", "purple sky of of of"]), chat.tokenizer.eos_id
    )
    assert [chat.tokenizer.decode(turn.ids[:-1]) for turn in turns] == [
        "i! How are you?",
        "I am fine.",
        "purple sky of of of",
    ]
    assert turns[1].perplexity < 30 < 300 < turns[2].perplexity
    whole = [
        token
        for text in ("Hi! How are you?", "I am fine.")
        for token in (*chat.tokenizer.encode(text), chat.tokenizer.eos_id)
    ]
    assert turns[0].total + turns[1].total == pytest.approx(sum(plainly(chat.model, whole, 1)), abs=1e-4)


def test_what_cannot_be_scored_is_a_sentence(network: GPT2) -> None:
    for ids, begin, sentence in (
        ([1], 1, "a sequence of 1 tokens cannot be scored"),
        ([1, 2], 0, "cannot be scored from index 0 on"),
        ([1, 2], 4, "cannot be scored from index 4 on"),
        ([1] * 41, 1, "longer than the network's 40 positions"),
        ([1, 23], 1, "ids outside the vocabulary of 23"),
    ):
        with pytest.raises(DialogueError, match=sentence):
            score(network, [ids], [begin])
    assert math.isnan(Score([], []).perplexity)
    with pytest.raises(DialogueError, match="nothing to score"):
        score_turns(Chat.load("tiny").model, [], 8191)
