"""Chosen tokens against `model.generate` of transformers: greedy and sampled with a seed, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel

from dialogpt import Chat, GenerationConfig, Tokenizer, generate, generate_batch
from dialogpt.generation_config import NEUTRAL
from dialogpt.logits.processors import Seen
from dialogpt.model import GPT2
from dialogpt.sampler import next_token_scores
from dialogpt.weights import load
from tests.helpers import pair, seeded

SETTINGS: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 1},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7, "no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 3, "min_new_tokens": 8},
    {"do_sample": True},
    {"do_sample": True, "temperature": 0.5, "top_k": 0},
    {"do_sample": True, "temperature": 1.7, "top_k": 5},
    {"do_sample": True, "top_k": 1000, "top_p": 0.8},
    {"do_sample": True, "top_k": 0, "top_p": 0.0},
    {"do_sample": True, "top_k": 1, "temperature": 3.0},
    {"do_sample": True, "top_p": 0.95, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "min_new_tokens": 5},
]


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT2, Any]:
    """A network whose end token comes often enough to end replies."""
    return pair(tmp_path_factory.mktemp("pair"), vocab_size=31, n_positions=64)


def their_tokens(theirs: Any, prompt: list[int], settings: dict[str, Any], seed: int) -> list[list[int]]:
    """Transformers' tokens, without the end token.

    The mask is passed: with a pad token that is not the end token transformers infers one, and hides from the model
    every token of the prompt that happens to be the pad token (id 0 is "!").
    """
    end = theirs.config.eos_token_id
    ids = torch.tensor([prompt])
    torch.manual_seed(seed)
    arguments = {"max_new_tokens": 20, **settings}
    output = theirs.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=end, **arguments)
    replies = [row[len(prompt) :].tolist() for row in output]
    return [reply[: reply.index(end)] if end in reply else reply for reply in replies]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_row_says_the_same_tokens(networks: tuple[GPT2, Any], settings: dict[str, Any], seed: int) -> None:
    ours, theirs = networks
    prompt = torch.randint(0, 31, (3 + 5 * seed,), generator=seeded(seed)).tolist()
    mine = [step.id for step in generate(ours, prompt, GenerationConfig(**settings), generator=seeded(seed))]
    assert [mine] == their_tokens(theirs, prompt, settings, seed)


@pytest.mark.parametrize("seed", range(6))
def test_several_replies_draw_from_one_matrix(networks: tuple[GPT2, Any], seed: int) -> None:
    """Transformers samples once per step for all replies, finished ones too; so must we, or the third differs."""
    ours, theirs = networks
    settings = {"do_sample": True, "top_k": 10, "num_return_sequences": 4}
    prompt = torch.randint(0, 31, (6,), generator=seeded(seed)).tolist()
    replies = generate_batch(ours, [prompt], GenerationConfig(**settings), generator=seeded(seed))[0]
    assert [reply.ids for reply in replies] == their_tokens(theirs, prompt, settings, seed)
    assert len({len(reply.ids) for reply in replies}) > 1  # rows that end at different steps are what is tested


# ---- trained weights ----


def dialogues(tokenizer: Tokenizer, number: int, length: int) -> list[list[list[int]]]:
    """Dialogues of `length` turns as ids, put together from a fixed list of things that people say."""
    said = [
        "Hi! How are you?", "I'm fine, thanks. And you?", "What did you do today?", "Nothing much, just working.",
        "Do you like music?", "Yes! Mostly jazz.", "me too :)", "Where are you from?", "I live near the sea.",
        "That sounds great!!!", "Do you have any pets?", "Two cats and a dog.", "haha nice", "What's for dinner?",
        "Pizza, of course.", "Tell me a joke", "Why did the chicken cross the road?", "I don't know, why?", "🙂",
    ]  # fmt: skip
    order = torch.randint(0, len(said), (number, length), generator=seeded()).tolist()
    return [[tokenizer.encode(said[place]) for place in row] for row in order]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_dialogues_on_trained_weights_say_the_same_tokens(trained: Path, dtype: str) -> None:
    """10 dialogues of 6 turns: both reply to each turn, given the concatenated history; greedy and sampled by turns."""
    theirs = GPT2LMHeadModel.from_pretrained(trained, dtype=getattr(torch, dtype)).eval()
    ours, tokenizer = load(trained, dtype=dtype), Tokenizer.load(trained)
    greedy = {"max_new_tokens": 20}
    sampled = {"max_new_tokens": 20, "do_sample": True, "temperature": 0.9, "top_k": 40, "top_p": 0.95}
    compared = 0
    for number, dialogue in enumerate(dialogues(tokenizer, 10, 6)):
        history: list[int] = []
        for place, turn in enumerate(dialogue):
            history += [*turn, tokenizer.eos_id]
            chosen = sampled if (number + place) % 2 else greedy
            seed = 100 * number + place
            config = GenerationConfig(**chosen)
            mine = [step.id for step in generate(ours, history, config, generator=seeded(seed))]
            assert [mine] == their_tokens(theirs, history, chosen, seed), (number, place, chosen)
            compared += len(mine)
    assert compared > 500


def test_a_chat_on_trained_weights_says_the_same_as_transformers(trained: Path) -> None:
    """Six turns with its own replies in the history, cached across turns; transformers recomputes each prompt."""
    theirs = GPT2LMHeadModel.from_pretrained(trained, dtype=torch.float64).eval()
    config = GenerationConfig(max_new_tokens=30, min_new_tokens=1)
    chat = Chat.load(trained, dtype="float64", generation=config, history_tokens=480)
    history: list[int] = []
    for text in ("Hi there!", "What are you doing?", "Do you like cats?", "Why?", "I see. And dogs?", "Bye!"):
        history += [*chat.tokenizer.encode(text), chat.tokenizer.eos_id]
        reply = chat.reply(text)
        (expected,) = their_tokens(theirs, history, {"max_new_tokens": 30, "min_new_tokens": 1}, 0)
        assert reply == chat.tokenizer.decode(expected)
        history += [*expected, chat.tokenizer.eos_id]


def test_neutral_settings_change_nothing() -> None:
    logits = torch.randn(2, 50, generator=seeded())
    assert torch.equal(
        next_token_scores(logits, GenerationConfig(do_sample=True, **NEUTRAL), [Seen([1], 1), Seen([2], 1)]), logits
    )
