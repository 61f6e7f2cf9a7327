"""Rarely used logits processors: biases, bans and forced tokens, exactly as transformers computes them.

Each function follows its class in transformers' generation/logits_process.py; the two OpenAI penalties follow vLLM, as
transformers has none. All take scores, (B, V), which they may change in place.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from dialogpt.generation_config import GenerationConfig, several
from dialogpt.logits.processors import Seen, ban


def sequence_bias(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Add each bias to the token that completes its sequence; a sequence of one token always gets its bias."""
    return _biased(scores, config.sequence_bias or (), seen)


def presence_and_frequency(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Subtract from the scores of generated tokens: one penalty for occurring, the other for each occurrence.

    OpenAI's meaning and vLLM's formula (model_executor/layers/utils.py, apply_penalties); the prompt does not count.
    """
    for row, each in enumerate(seen):
        counts = Counter(each.generated)
        index = torch.tensor(list(counts), dtype=torch.long, device=scores.device)
        occurrences = torch.tensor(list(counts.values()), dtype=scores.dtype, device=scores.device)
        scores[row, index] -= config.frequency_penalty * occurrences + config.presence_penalty
    return scores


def bad_words(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Ban the token that completes a bad word; an end token alone is never banned."""
    return _biased(scores, _bans(config), seen)


def forced_tokens(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Allow one choice only: after a prompt of one token, and for the last token of a reply of maximum length."""
    for row, each in enumerate(seen):
        if config.forced_bos_token_id is not None and len(each.ids) == 1:
            _force(scores, row, config.forced_bos_token_id)
        last = config.reply_limit(each.prompt_length) - 1
        if config.forced_eos_token_id is not None and len(each.generated) == last:
            _force(scores, row, config.forced_eos_token_id)
    return scores


def remove_invalid_values(scores: Tensor, config: GenerationConfig, _: Sequence[Seen]) -> Tensor:
    """Replace NaN by 0, and infinity by the largest number."""
    largest = torch.finfo(scores.dtype).max
    return torch.nan_to_num(scores, nan=0.0, posinf=largest, neginf=-largest)


def exponential_decay(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Raise the scores of end tokens by a power of a factor, once a reply has a number of tokens."""
    assert config.exponential_decay_length_penalty is not None
    start, factor = config.exponential_decay_length_penalty
    ends = list(config.end_ids)
    for row, each in enumerate(seen):
        beyond = len(each.generated) - start
        if beyond > 0:
            end_scores = scores[row, ends]
            raised = end_scores.abs() * (_power(factor, beyond) - 1)
            scores[row, ends] = end_scores + raised.masked_fill(~torch.isfinite(end_scores), 0.0)
    return scores


def suppressed_tokens(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Ban tokens everywhere, or (`begin_suppress_tokens`) as the first token that is not forced."""
    for row, each in enumerate(seen):
        ban(scores, row, config.suppress_tokens or ())
        if _is_first(config, each):
            ban(scores, row, config.begin_suppress_tokens or ())
    return scores


Bias = tuple[tuple[int, ...], float]  # a sequence, and what is added to the token that completes it


def _bans(config: GenerationConfig) -> tuple[Bias, ...]:
    """Return bad words as biases of minus infinity."""
    ends = {(end,) for end in config.end_ids}
    return tuple((ids, -math.inf) for ids in config.bad_words_ids or () if ids not in ends)


def _biased(scores: Tensor, biases: tuple[Bias, ...], seen: Sequence[Seen]) -> Tensor:
    """Add each bias where its sequence could be completed; the biases of one token are summed first."""
    if not biases:
        return scores
    tokens, values, _ = _by_ending(biases)
    bias = torch.zeros_like(scores)
    bias[:, tokens] = torch.tensor(values, dtype=bias.dtype, device=bias.device)
    for row, each in enumerate(seen):
        for token, value in _completions(biases, each):
            bias[row, token] += value
    return scores + bias


def _completions(biases: tuple[Bias, ...], seen: Seen) -> Iterator[tuple[int, float]]:
    """Yield the tokens that would complete a sequence of several tokens here, with their biases."""
    for (*before, last), value in _by_ending(biases)[2].get(seen.ids[-1], ()):
        if list(seen.ids[-len(before) :]) == before:
            yield last, value


@lru_cache(maxsize=64)
def _by_ending(biases: tuple[Bias, ...]) -> tuple[list[int], list[float], dict[int, list[Bias]]]:
    """Return single tokens, their biases, and longer sequences by their last token but one.

    Cached, as a list of bad words may have thousands of entries.
    """
    single = {ids[0]: value for ids, value in biases if len(ids) == 1}
    longer: dict[int, list[Bias]] = {}
    for ids, value in dict(biases).items():
        if len(ids) > 1:
            longer.setdefault(ids[-2], []).append((ids, value))
    return list(single), list(single.values()), longer


def _force(scores: Tensor, row: int, tokens: int | tuple[int, ...]) -> None:
    """Allow these tokens only, bad words too, as transformers does; the server refuses such requests."""
    scores[row] = -torch.inf
    scores[row, list(several(tokens))] = 0


def _is_first(config: GenerationConfig, seen: Seen) -> bool:
    """Whether the next token is the reply's first; a forced one before it does not count."""
    return len(seen.generated) == int(seen.prompt_length == 1 and config.forced_bos_token_id is not None)


def _power(factor: float, exponent: int) -> float:
    try:
        return float(factor**exponent)
    except OverflowError:
        return math.inf
