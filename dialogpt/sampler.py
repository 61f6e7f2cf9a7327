"""From logits to the probabilities of the next token, exactly as transformers computes them.

The order of processors and warpers is transformers' (`_get_logits_processor` in generation/utils.py). Processors are in
`dialogpt.processors`; the warpers, which shape the distribution that is sampled from, are below. Choosing a token is
left to `dialogpt.decoding.loop`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dialogpt.generation_config import NEUTRAL, GenerationConfig
from dialogpt.processors import (
    Seen,
    bad_words,
    check_tokens,
    exponential_decay,
    forced_tokens,
    minimum_length,
    no_repeat_ngram,
    no_repeat_reply,
    presence_and_frequency,
    remove_invalid_values,
    repetition_penalty,
    sequence_bias,
    suppressed_tokens,
)

__all__ = ["Seen", "active_processors", "check_tokens", "next_token_probabilities", "next_token_scores"]
MAX_SHORT_SORT = 1024  # tokens that top_p sorts alone, without the removed ones
TOP_H_TOKENS = 100  # transformers considers no more tokens for top_h
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
    """Return the distribution that the next token is sampled from: (B, V) -> (B, V), in float32.

    Args:
        logits: the network's output at the last position of each sequence.
        config: with end tokens filled in, as `Decoder` does; without any, nothing is done to end tokens.
        seen: the tokens of each sequence.
    """
    return torch.softmax(next_token_scores(logits, config, seen), dim=-1)  # (B, V)


def next_token_scores(logits: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Return the processed logits, whose largest is the greedy choice: (B, V) -> (B, V), in float32.

    Arguments are those of `next_token_probabilities`; beam search passes log-probabilities as logits.
    """
    active = active_processors(config, seen)
    scores = logits.to(torch.float32, copy=bool(active))
    for processor in active:
        scores = processor.apply(scores)
    return scores.log_softmax(dim=-1) if config.renormalize_logits else scores


class ActiveProcessor(NamedTuple):
    """A processor or warper that the settings turn on: its name, its settings, and a function of the scores (B, V)."""

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
        return any(getattr(config, name) != _OFF[name] for name in names)

    warpers = WARPERS if config.do_sample else ()
    return [
        *(ActiveProcessor(p.__name__, names, processor(p)) for p, names in PROCESSORS if is_on(*names)),
        *(ActiveProcessor(w.__name__, (name,), warper(w)) for w, name in warpers if is_on(name)),
    ]


def temperature(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Divide by the temperature: below 1 sharpens the distribution, above 1 flattens it."""
    return scores.div_(config.temperature)


def top_h(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Keep the top tokens whose summed surprise is within a share of the entropy (Potraghloo et al., 2025)."""
    top, index = scores.topk(min(TOP_H_TOKENS, scores.size(1)))  # (B, 100)
    distribution = torch.distributions.Categorical(logits=top, validate_args=False)
    surprise = -distribution.probs * distribution.probs.log()  # (B, 100)
    kept = surprise.cumsum(dim=-1) <= distribution.entropy()[:, None] * config.top_h  # type: ignore[no-untyped-call]
    kept[:, 0] = True
    return scores.masked_fill_(~torch.zeros_like(scores, dtype=torch.bool).scatter(1, index, kept), -torch.inf)


def top_k(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Keep the k highest scores, and all that tie with the lowest of them, as transformers does."""
    return scores.masked_fill_(scores < _nth_largest(scores, max(config.top_k, config.tokens_to_keep)), -torch.inf)


def top_p(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Keep the most probable tokens that together hold probability p (Holtzman et al., 2020).

    Example: p = 0.7 and 0.5, 0.3, 0.2. The cumulative sums from the smallest are 0.2, 0.5, 1.0; tokens whose sum is at
    most 1 - p = 0.3 are removed, so 0.5 and 0.3 are kept: the token that crosses p is kept.
    """
    removed = _removed_by_short_sort(scores, config)
    if removed is not None:
        return scores.masked_fill_(removed, -torch.inf)
    ascending, order = scores.sort(dim=-1)  # (B, V)
    cut = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - config.top_p  # (B, V)
    cut[:, -config.tokens_to_keep :] = False
    return scores.masked_fill_(cut.scatter(1, order, cut), -torch.inf)


def _removed_by_short_sort(scores: Tensor, config: GenerationConfig) -> Tensor | None:
    """Return what top_p removes by sorting only the tokens that are left, as after top_k: (B, V).

    Sorting all 50,257 scores takes 4 ms. None where only that can tell: too many tokens are left, a cumulative sum
    equals 1 - p up to rounding, or a removed score equals a kept one.
    """
    left = int((scores > -torch.inf).sum(dim=-1).max())
    if not config.tokens_to_keep < left <= MAX_SHORT_SORT:
        return None
    ascending = scores.topk(left).values.flip(-1)  # (B, left)
    total = ascending.softmax(dim=-1).cumsum(dim=-1)
    cut = total <= 1 - config.top_p
    cut[:, -config.tokens_to_keep :] = False
    kept = ascending.masked_fill(cut, torch.inf).amin(dim=-1, keepdim=True)  # (B, 1), the smallest kept score
    removed = ascending.masked_fill(~cut, -torch.inf).amax(dim=-1, keepdim=True)  # (B, 1), the largest removed one
    doubtful = ((total - (1 - config.top_p)).abs() < 1e-5).any() or ((removed == kept) & (kept > -torch.inf)).any()
    return None if doubtful else scores < kept


def min_p(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Keep tokens at least so many times as probable as the most probable one (Nguyen et al., 2024)."""
    assert config.min_p is not None
    probabilities = scores.softmax(dim=-1)  # (B, V)
    cut = probabilities < config.min_p * probabilities.amax(dim=-1, keepdim=True)
    most_probable = probabilities.topk(min(config.tokens_to_keep, scores.size(1))).indices
    return scores.masked_fill_(cut.scatter(1, most_probable, False), -torch.inf)


def typical_p(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Keep the tokens whose surprise is nearest to the entropy and that together hold p (Meister et al., 2022)."""
    log_probabilities = scores.log_softmax(dim=-1)  # (B, V)
    entropy = -(log_probabilities * log_probabilities.exp()).nansum(dim=-1, keepdim=True)  # (B, 1)
    distance, order = (-log_probabilities - entropy).abs().sort(dim=-1)  # (B, V)
    total = scores.gather(1, order).softmax(dim=-1).cumsum(dim=-1)
    last = (total < config.typical_p).sum(dim=1, keepdim=True).clamp(max=scores.size(1) - 1)  # (B, 1)
    cut = distance > distance.gather(1, last)
    cut[:, : config.tokens_to_keep] = False
    return scores.masked_fill_(cut.scatter(1, order, cut), -torch.inf)


def epsilon_cutoff(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Keep tokens of at least this probability (Hewitt et al., 2022, epsilon sampling)."""
    return _cut_below(scores, scores.softmax(dim=-1), torch.tensor(config.epsilon_cutoff), config)


def eta_cutoff(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Keep tokens of at least a probability that falls with the entropy (Hewitt et al., 2022, eta sampling)."""
    epsilon = torch.tensor(config.eta_cutoff, device=scores.device)
    entropy = torch.distributions.Categorical(logits=scores, validate_args=False).entropy()  # type: ignore[no-untyped-call]  # (B,)
    eta = torch.minimum(epsilon, epsilon.sqrt() * torch.exp(-entropy))[:, None]  # (B, 1)
    return _cut_below(scores, scores.softmax(dim=-1), eta, config)


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
_OFF = NEUTRAL | {"min_new_tokens": GenerationConfig().min_new_tokens}


def _nth_largest(scores: Tensor, n: int) -> Tensor:
    return scores.topk(min(n, scores.size(1))).values[:, -1:]  # (B, 1)


def _cut_below(scores: Tensor, probabilities: Tensor, minimum: Tensor, config: GenerationConfig) -> Tensor:
    """Remove tokens below a probability, except the most probable ones."""
    cut = (probabilities < minimum.to(scores.device)) & (scores < _nth_largest(scores, config.tokens_to_keep))
    return scores.masked_fill_(cut, -torch.inf)
