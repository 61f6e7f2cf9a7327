"""From the network's logits to the probabilities of the next token, exactly as transformers computes them.

Processors change scores in transformers' order (`_get_logits_processor` in generation/utils.py); each one follows its
class in generation/logits_process.py. Pure functions: drawing, and what happens then, is left to `dialogpt.decoder`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dialogpt.generation_config import GenerationConfig

Ids = Sequence[Sequence[int]]  # what each row has read and said so far, prompt included


def next_token_probabilities(
    logits: Tensor, config: GenerationConfig, ids: Ids = (), new_tokens: Sequence[int] = ()
) -> Tensor:
    """The distribution that the next token is drawn from: (B, V) -> (B, V), in float32.

    Args:
        logits: the network's output at the last position of each row.
        config: its `eos_token_id` is taken as it stands.
        ids: the row's tokens so far, for repetition penalty and n-grams; may be left out where both are off.
        new_tokens: how many of them were generated, for `min_new_tokens`; may be left out where that is 0.

    Raises:
        ValueError: what the settings need was left out.
    """
    return torch.softmax(next_token_scores(logits, config, ids, new_tokens), dim=-1)  # (B, V)


def next_token_scores(
    logits: Tensor, config: GenerationConfig, ids: Ids = (), new_tokens: Sequence[int] = ()
) -> Tensor:
    """The processed logits, whose largest is the greedy choice: (B, V) -> (B, V), in float32, as transformers does it.

    Arguments are those of `next_token_probabilities`.
    """
    needs_ids = config.repetition_penalty != 1 or config.no_repeat_ngram_size
    if (needs_ids and len(ids) != len(logits)) or (config.min_new_tokens and len(new_tokens) != len(logits)):
        raise ValueError(f"these settings need ids and new_tokens for each of the {len(logits)} rows of logits")
    scores = logits.to(torch.float32, copy=True)
    if config.repetition_penalty != 1:
        scores = repetition_penalty(scores, ids, config.repetition_penalty)
    if config.no_repeat_ngram_size:
        scores = no_repeat_ngram(scores, ids, config.no_repeat_ngram_size)
    if config.min_new_tokens:
        scores = min_new_tokens(scores, new_tokens, config)
    if config.do_sample:
        for warp in WARPERS:
            scores = warp(scores, config)
    return scores


def repetition_penalty(scores: Tensor, ids: Ids, penalty: float) -> Tensor:
    """Make every token less likely that stands anywhere in the row, once however often it stands there.

    A positive score is divided and a negative one multiplied. The end token stands in every dialogue, so a penalty
    makes replies longer too.
    """
    for row, seen in enumerate(ids):
        index = torch.tensor(sorted(set(seen)), device=scores.device)
        score = scores[row, index]
        scores[row, index] = torch.where(score < 0, score * penalty, score / penalty)
    return scores


def no_repeat_ngram(scores: Tensor, ids: Ids, size: int) -> Tensor:
    """Ban every token that would complete a run of `size` tokens that stands in the row already.

    Example: size 2 and the row 5 7 5 ban 7, as 5 was followed by 7 before.
    """
    for row, seen in enumerate(ids):
        last = list(seen[len(seen) - size + 1 :])  # the size - 1 tokens that the next one would follow
        banned = {
            seen[start + size - 1]
            for start in range(len(seen) - size + 1)
            if list(seen[start : start + size - 1]) == last
        }
        scores[row, list(banned)] = -torch.inf
    return scores


def min_new_tokens(scores: Tensor, new_tokens: Sequence[int], config: GenerationConfig) -> Tensor:
    """Ban the end tokens in rows that have not said enough."""
    short = [row for row, count in enumerate(new_tokens) if count < config.min_new_tokens]
    for end in config.end_ids:
        if end < scores.size(1):
            scores[short, end] = -torch.inf
    return scores


def temperature(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Divide by the temperature: below 1 sharpens the distribution, above 1 flattens it."""
    return scores if config.temperature == 1 else scores / config.temperature


def top_k(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Keep the k highest scores, and all that tie with the lowest of them, as transformers does."""
    if config.top_k == 0:
        return scores
    lowest = scores.topk(min(config.top_k, scores.size(1))).values[:, -1:]  # (B, 1)
    return scores.masked_fill(scores < lowest, -torch.inf)


def top_p(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Keep the likeliest tokens that together hold probability p (Holtzman et al., 2020).

    Example: p = 0.7 of 0.5, 0.3, 0.2: summed from the least likely, 0.2 and 0.5 and 1.0; what stays at or below
    1 - p = 0.3 goes, so 0.5 and 0.3 are left. The token that crosses p is kept, and so is always the likeliest.
    """
    if config.top_p >= 1:
        return scores
    ascending, order = scores.sort(dim=-1)  # (B, V)
    cut = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - config.top_p  # (B, V)
    cut[:, -1] = False
    return scores.masked_fill(cut.scatter(1, order, cut), -torch.inf)


WARPERS: tuple[Callable[[Tensor, GenerationConfig], Tensor], ...] = (temperature, top_k, top_p)  # with do_sample only
