"""Settings and processors on their own; equality with transformers is tested in parity/."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dialogpt import DialogueError, GenerationConfig
from dialogpt.cli.options import parse_setting
from dialogpt.logits.processors import Seen
from dialogpt.sampler import next_token_probabilities, next_token_scores


def probabilities(logits: list[float], **values: Any) -> list[float]:
    config = GenerationConfig(**{"do_sample": True, "top_k": 0, **values})
    row: list[float] = next_token_probabilities(torch.tensor([logits]).log(), config, [Seen([], 0)])[0].tolist()
    return [round(value, 4) for value in row]


def test_top_p_keeps_the_token_that_crosses_p() -> None:
    """P = 0.7 of 0.5, 0.3, 0.2 keeps two; openai/gpt-2's own sample.py keeps one."""
    assert probabilities([0.2, 0.5, 0.3], top_p=0.7) == [0.0, 0.625, 0.375]
    assert probabilities([0.2, 0.5, 0.3], top_p=0.0) == [0.0, 1.0, 0.0]
    assert probabilities([0.2, 0.5, 0.3], top_p=1.0) == [0.2, 0.5, 0.3]


def test_top_k_keeps_ties() -> None:
    assert probabilities([0.4, 0.2, 0.2, 0.2], top_k=2) == [0.4, 0.2, 0.2, 0.2]
    assert probabilities([0.5, 0.3, 0.2], top_k=2) == [0.625, 0.375, 0.0]
    assert probabilities([0.5, 0.3, 0.2], top_k=9) == [0.5, 0.3, 0.2]


def test_temperature_sharpens() -> None:
    assert probabilities([0.8, 0.2], temperature=0.5) == [0.9412, 0.0588]


def test_the_logits_are_not_changed() -> None:
    logits = torch.randn(2, 20)
    before = logits.clone()
    config = GenerationConfig(
        do_sample=True, repetition_penalty=2.0, no_repeat_ngram_size=1, min_new_tokens=3, top_p=0.5, eos_token_id=4
    )
    next_token_scores(logits, config, [Seen([1, 2], 2), Seen([3, 4, 5], 1)])
    assert torch.equal(logits, before)


def test_min_new_tokens_bans_every_end_token_in_short_rows_only() -> None:
    config = GenerationConfig(min_new_tokens=2, eos_token_id=(1, 3, 99))
    scores = next_token_scores(torch.zeros(2, 5), config, [Seen([0, 0], 1), Seen([0, 0, 0], 1)])
    assert scores.isinf().tolist() == [[False, True, False, True, False], [False] * 5]


@pytest.mark.parametrize(
    ("least", "banned"), [({}, True), ({"min_new_tokens": None}, True), ({"min_new_tokens": 0}, False)]
)
def test_min_new_tokens_of_zero_takes_precedence_over_min_length(least: dict[str, Any], banned: bool) -> None:
    config = GenerationConfig(min_length=9, eos_token_id=1, **least)
    assert bool(next_token_scores(torch.zeros(1, 5), config, [Seen([0, 0], 1)])[0, 1].isinf()) == banned
    assert config.fitted(16).min_new_tokens == least.get("min_new_tokens")


def test_warpers_do_not_act_without_sampling() -> None:
    logits = torch.randn(1, 20)
    assert torch.equal(
        next_token_scores(logits, GenerationConfig(temperature=0.1, top_k=1, top_p=0.1), [Seen([], 0)]), logits
    )


def test_defaults_are_those_of_transformers() -> None:
    config = GenerationConfig()
    assert (config.do_sample, config.max_new_tokens, config.top_k, config.temperature) == (False, 20, 50, 1.0)
    assert GenerationConfig(top_k=None, temperature=None) == config  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("min_new_tokens", -1),
        ("do_sample", 1),
        ("temperature", 0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 1.5),
        ("repetition_penalty", 0),
        ("repetition_penalty", "1"),
        ("no_repeat_ngram_size", -2),
        ("num_return_sequences", 0),
        ("eos_token_id", -1),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(DialogueError, match=f"{name} must be .*got"):
        GenerationConfig(**{name: value})


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(DialogueError, match="min_new_tokens must be at most max_new_tokens, 20, got 30"):
        GenerationConfig(min_new_tokens=30)
    with pytest.raises(DialogueError, match="must be 1 without do_sample"):
        GenerationConfig(num_return_sequences=2)


def test_settings_are_changed_as_a_person_types_them() -> None:
    chat = GenerationConfig.chat()
    assert parse_setting(chat, "top-k", "7").top_k == 7
    assert parse_setting(chat, "do_sample", "off").do_sample is False
    assert parse_setting(chat, "temperature", "0") == chat.greedy()
    assert parse_setting(chat, "eos-token-id", "3,4").eos_token_id == (3, 4)
    with pytest.raises(DialogueError, match="there is no setting 'topk'"):
        parse_setting(chat, "topk", "7")
    with pytest.raises(DialogueError, match="top_p must be a number from 0 to 1, got 'x'"):
        parse_setting(chat, "top-p", "x")


def test_the_chat_preset_fits_a_small_network() -> None:
    assert GenerationConfig.chat().fitted(16).max_new_tokens == 8
    assert GenerationConfig(max_new_tokens=20, min_new_tokens=20).fitted(16).min_new_tokens == 8
    assert GenerationConfig.chat().fitted(1024) == GenerationConfig.chat()


def test_presence_and_frequency_penalties_count_generated_tokens() -> None:
    """VLLM's formula: presence once and frequency per occurrence, of the reply and not of the prompt."""
    seen = [Seen([1, 1, 4, 2, 2, 3], 3), Seen([1, 1, 4], 3)]
    logits = torch.arange(12.0).reshape(2, 6)
    config = GenerationConfig(presence_penalty=0.5, frequency_penalty=-1.5, eos_token_id=5)
    expected = logits.clone()
    expected[0, 2] -= 0.5 - 2 * 1.5
    expected[0, 3] -= 0.5 - 1.5
    assert torch.equal(next_token_scores(logits, config, seen), expected)
    with pytest.raises(DialogueError, match="presence_penalty must be a number from -2 to 2, got 2.5"):
        GenerationConfig(presence_penalty=2.5)
