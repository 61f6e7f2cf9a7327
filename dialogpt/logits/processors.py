"""Logits processors that look at repetition and at the length of a reply, exactly as transformers computes them.

Each function but `no_repeat_reply` follows its class in transformers' generation/logits_process.py, which has the scope
"all" only. Their order is in `dialogpt.sampler`, the others are in `dialogpt.logits.rare_processors`. All take scores,
(B, V), which they may change in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
        """The reply so far; it holds no end token, as nothing is chosen after one."""
        return self.ids[self.prompt_length :]

    def in_scope(self, scope: str) -> list[Sequence[int]]:
        """Return the runs of tokens in which repetition counts; the next token continues the last run."""
        if scope == "all":
            return [self.ids]
        return [*(self.own_turns if scope == "own" else ()), self.generated]


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


def minimum_length(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Ban end tokens while the reply is below `min_new_tokens`; without it, prompt and reply below `min_length`."""
    for row, each in enumerate(seen):
        if config.min_new_tokens is None:
            too_short = len(each.ids) < config.min_length
        else:
            too_short = len(each.generated) < config.min_new_tokens
        if too_short:
            ban(scores, row, config.end_ids)
    return scores


def no_repeat_reply(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Ban end tokens where the reply so far equals the bot's last turn: it has to continue."""
    for row, each in enumerate(seen):
        if each.own_turns and list(each.generated) == list(each.own_turns[-1]):
            ban(scores, row, config.end_ids)
    return scores


def ban(scores: Tensor, row: int, tokens: Sequence[int]) -> None:
    """Ban these tokens in a row; those beyond the vocabulary are passed over."""
    scores[row, [token for token in tokens if token < scores.size(1)]] = -torch.inf
