"""From logits to the probabilities of the next token, exactly as transformers computes them.

The order of processors and warpers is transformers' (`_get_logits_processor` in generation/utils.py). Processors are in
`dialogpt.logits.processors`, rarely used ones in `rare_processors` and `rare_warpers` beside it; the common warpers,
which shape the distribution that is sampled from, are below. Choosing a token is left to `dialogpt.decoding.sampling`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dialogpt.generation_config import OFF, GenerationConfig
from dialogpt.logits.processors import Seen, minimum_length, no_repeat_ngram, no_repeat_reply, repetition_penalty
from dialogpt.logits.rare_processors import (
    bad_words,
    exponential_decay,
    forced_tokens,
    presence_and_frequency,
    remove_invalid_values,
    sequence_bias,
    suppressed_tokens,
)
from dialogpt.logits.rare_warpers import epsilon_cutoff, eta_cutoff, min_p, top_h, typical_p
from dialogpt.logits.sorting import nth_largest, removed_by_short_sort

__all__ = ["active_processors", "next_token_probabilities", "next_token_scores"]
Processor = Callable[[Tensor, GenerationConfig, Sequence[Seen]], Tensor]
Warper = Callable[[Tensor, GenerationConfig], Tensor]

# Each with the settings that turn it on.
PROCESSORS: tuple[tuple[Processor, tuple[str, ...]], ...] = (
    (sequence_bias, ("sequence_bias",)),
    (repetition_penalty, ("repetition_penalty",)),
    (presence_and_frequency, ("presence_penalty", "frequency_penalty")),
    (no_repeat_ngram, ("no_repeat_ngram_size",)),
    (bad_words, ("bad_words_ids",)),
    (minimum_length, ("min_length", "min_new_tokens")),
    (no_repeat_reply, ("no_repeat_reply",)),
    (forced_tokens, ("forced_bos_token_id", "forced_eos_token_id")),
    (remove_invalid_values, ("remove_invalid_values",)),
    (exponential_decay, ("exponential_decay_length_penalty",)),
    (suppressed_tokens, ("suppress_tokens", "begin_suppress_tokens")),
)


def next_token_probabilities(logits: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Return the distribution that the next token is sampled from: (B, V) -> (B, V), in float32; for readers and tests.

    `dialogpt.decoding.sampling` calls `next_token_scores`, as greedy decoding needs no softmax.

    Args:
        logits: the network's output at the last position of each sequence.
        config: with end tokens filled in and bad words as ids, as `SequenceFactory` does; else both have no effect.
        seen: the tokens of each sequence.
    """
    return torch.softmax(next_token_scores(logits, config, seen), dim=-1)  # (B, V)


def next_token_scores(logits: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Return the processed logits, whose largest is the greedy choice: (B, V) -> (B, V), in float32.

    They are `logits` itself where nothing is on and those are in float32, and else a copy. Arguments are those of
    `next_token_probabilities`; beam search passes log-probabilities as logits.
    """
    active = active_processors(config, seen)
    scores = logits.to(torch.float32, copy=bool(active))  # processors work in place
    for processor in active:
        scores = processor.apply(scores)
    return scores.log_softmax(dim=-1) if config.renormalize_logits else scores


class ActiveProcessor(NamedTuple):
    """A processor or warper that is on: its name and settings, for people, and a function of the scores, (B, V)."""

    name: str
    settings: tuple[str, ...]
    apply: Callable[[Tensor], Tensor]


def active_processors(config: GenerationConfig, seen: Sequence[Seen]) -> list[ActiveProcessor]:
    """Return what changes the scores with these settings, in order; arguments as for `next_token_scores`."""

    def processor(process: Processor) -> Callable[[Tensor], Tensor]:
        return lambda scores: process(scores, config, seen)

    def warper(warp: Warper) -> Callable[[Tensor], Tensor]:
        return lambda scores: warp(scores, config)

    def is_on(*names: str) -> bool:
        return any(getattr(config, name) != OFF[name] for name in names)

    warpers = WARPERS if config.do_sample else ()
    return [
        *(ActiveProcessor(p.__name__, names, processor(p)) for p, names in PROCESSORS if is_on(*names)),
        *(ActiveProcessor(w.__name__, (name,), warper(w)) for w, name in warpers if is_on(name)),
    ]


def temperature(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Divide by the temperature: below 1 sharpens the distribution, above 1 flattens it."""
    return scores.div_(config.temperature)


def top_k(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Keep the k highest scores, and all that tie with the lowest of them, as transformers does."""
    return scores.masked_fill_(scores < nth_largest(scores, max(config.top_k, config.tokens_to_keep)), -torch.inf)


def top_p(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Keep the most probable tokens that together hold probability p (Holtzman et al., 2020).

    Example: p = 0.7 and 0.5, 0.3, 0.2. The cumulative sums from the smallest are 0.2, 0.5, 1.0; tokens whose sum is at
    most 1 - p = 0.3 are removed, so 0.5 and 0.3 are kept: the token that crosses p is kept.
    """
    removed = removed_by_short_sort(scores, config)
    if removed is not None:
        return scores.masked_fill_(removed, -torch.inf)
    ascending, order = scores.sort(dim=-1)  # (B, V)
    cut = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - config.top_p  # (B, V)
    cut[:, -config.tokens_to_keep :] = False
    return scores.masked_fill_(cut.scatter(1, order, cut), -torch.inf)  # back in the vocabulary's order


WARPERS: tuple[tuple[Warper, str], ...] = (
    (temperature, "temperature"),
    (top_h, "top_h"),
    (top_k, "top_k"),
    (top_p, "top_p"),
    (min_p, "min_p"),
    (typical_p, "typical_p"),
    (epsilon_cutoff, "epsilon_cutoff"),
    (eta_cutoff, "eta_cutoff"),
)
