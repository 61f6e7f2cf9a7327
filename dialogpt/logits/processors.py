"""Logits processors: what bans, biases and penalizes tokens, exactly as transformers does it.

Each function follows its class in transformers' generation/logits_process.py; the two OpenAI penalties follow vLLM, as
transformers has none. Their order is in `dialogpt.sampler`. All take scores, (B, V), which they may change in place.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dialogpt.errors import DialogueError, Problem, SettingsError
from dialogpt.generation_config import GenerationConfig


@dataclass(frozen=True)
class Seen:
    """The tokens of one sequence so far.

    Attributes:
        ids: all of them, prompt included.
        prompt_length: how many of them are the prompt.
        own_turns: the bot's turns in the prompt, without end tokens.
    """

    ids: Sequence[int]
    prompt_length: int
    own_turns: Sequence[Sequence[int]] = ()

    @property
    def generated(self) -> Sequence[int]:
        """The reply so far."""
        return self.ids[self.prompt_length :]

    def in_scope(self, scope: str) -> list[Sequence[int]]:
        """Return the runs of tokens in which repetition counts; the next token continues the last run."""
        if scope == "all":
            return [self.ids]
        return [*(self.own_turns if scope == "own" else ()), self.generated]


def check_tokens(config: GenerationConfig, vocab_size: int) -> None:
    """Refuse settings that name tokens outside the vocabulary, or need an end token where there is none.

    Raises:
        SettingsError: there are some.
    """
    forced_bos, forced_eos = config.forced_bos_token_id, config.forced_eos_token_id
    named = {
        "sequence_bias": [token for ids, _ in config.sequence_bias or () for token in ids],
        "bad_words_ids": [token for ids in config.bad_words_ids or () for token in ids],
        "forced_bos_token_id": () if forced_bos is None else (forced_bos,),
        "forced_eos_token_id": () if forced_eos is None else _several(forced_eos),
        "eos_token_id": config.end_ids if config.exponential_decay_length_penalty else (),
    }
    problems = [
        Problem(name, next(token for token in tokens if token >= vocab_size), f"below {vocab_size:,}, the vocabulary")
        for name, tokens in named.items()
        if any(token >= vocab_size for token in tokens)
    ]
    if problems:
        raise SettingsError(problems)
    if config.exponential_decay_length_penalty and not config.end_ids:
        raise DialogueError(
            "exponential_decay_length_penalty needs an end token, and neither network nor settings name one; "
            "set eos_token_id"
        )


def sequence_bias(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Add each bias to the token that completes its sequence; a sequence of one token always gets its bias."""
    return _biased(scores, config.sequence_bias or (), seen)


def repetition_penalty(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Divide positive scores of tokens in scope by the penalty, and multiply negative ones, however often they occur.

    The end token occurs in every dialogue, so a penalty with scope "all" makes replies longer too.
    """
    penalty = config.repetition_penalty
    for row, each in enumerate(seen):
        tokens = sorted({token for run in each.in_scope(config.repetition_scope) for token in run})
        index = torch.tensor(tokens, dtype=torch.long, device=scores.device)
        score = scores[row, index]
        scores[row, index] = torch.where(score < 0, score * penalty, score / penalty)
    return scores


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


def no_repeat_ngram(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Ban every token that would repeat n tokens in a row.

    Example: n = 2 and the sequence 5 7 5 ban 7, as 7 followed 5 before.
    """
    size = config.no_repeat_ngram_size
    for row, each in enumerate(seen):
        runs = each.in_scope(config.repetition_scope)
        if len(runs[-1]) < size - 1:
            continue
        last = list(runs[-1][len(runs[-1]) - size + 1 :])  # the n - 1 tokens before the next one
        banned = {
            run[start + size - 1]
            for run in runs
            for start in range(len(run) - size + 1)
            if list(run[start : start + size - 1]) == last
        }
        scores[row, list(banned)] = -torch.inf
    return scores


def bad_words(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Ban the token that completes a bad word; an end token alone is never banned."""
    return _biased(scores, _bans(config), seen)


def minimum_length(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Ban end tokens while the reply, or without `min_new_tokens` prompt and reply together, is too short."""
    for row, each in enumerate(seen):
        if config.min_new_tokens is None:
            too_short = len(each.ids) < config.min_length
        else:
            too_short = len(each.generated) < config.min_new_tokens
        if too_short:
            _ban(scores, row, config.end_ids)
    return scores


def no_repeat_reply(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Ban end tokens where the reply so far equals the bot's last turn: it has to continue."""
    for row, each in enumerate(seen):
        if each.own_turns and list(each.generated) == list(each.own_turns[-1]):
            _ban(scores, row, config.end_ids)
    return scores


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
        _ban(scores, row, config.suppress_tokens or ())
        if _is_first(config, each):
            _ban(scores, row, config.begin_suppress_tokens or ())
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
    """Return single tokens, their biases, and longer sequences by their last token but one; lists are long."""
    single = {ids[0]: value for ids, value in biases if len(ids) == 1}
    longer: dict[int, list[Bias]] = {}
    for ids, value in dict(biases).items():
        if len(ids) > 1:
            longer.setdefault(ids[-2], []).append((ids, value))
    return list(single), list(single.values()), longer


def _ban(scores: Tensor, row: int, tokens: Sequence[int]) -> None:
    scores[row, [token for token in tokens if token < scores.size(1)]] = -torch.inf


def _force(scores: Tensor, row: int, tokens: int | tuple[int, ...]) -> None:
    """Allow these tokens only, bad words too, as transformers does; the server refuses such requests."""
    scores[row] = -torch.inf
    scores[row, list(_several(tokens))] = 0


def _is_first(config: GenerationConfig, seen: Seen) -> bool:
    """Whether the next token is the reply's first; a forced one before it does not count."""
    return len(seen.generated) == int(seen.prompt_length == 1 and config.forced_bos_token_id is not None)


def _several(ids: int | tuple[int, ...]) -> tuple[int, ...]:
    return (ids,) if isinstance(ids, int) else ids


def _power(factor: float, exponent: int) -> float:
    try:
        return float(factor**exponent)
    except OverflowError:
        return math.inf
