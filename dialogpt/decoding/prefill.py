"""Prefilling: compute the tokens of a prompt that the cache does not hold.

A cache row is cropped to the prefix that it shares with the prompt, and the rest is computed; every decoder does that
here. Several prompts at once are left to `dialogpt.decoding.prefill_batch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dialogpt.decoding.sequence import TokenSequence
from dialogpt.model import GPT2, KVCache, shared_prefix


def cached_tokens(cache: KVCache, ids: Sequence[int], num_scored: int = 1, row: int = 0) -> int:
    """Return how many tokens need not be computed: the shared prefix, but never the last `num_scored` tokens of `ids`.

    Their hidden states are needed: the last one's gives the logits of the next token.
    """
    return min(shared_prefix(cache.ids[row], ids), len(ids) - num_scored)


def crop_to_prefix(cache: KVCache, ids: Sequence[int], num_scored: int = 1, row: int = 0) -> list[int]:
    """Crop a row of a cache to the prefix that it shares with `ids`, and return the tokens that are missing."""
    cache.crop(row, cached_tokens(cache, ids, num_scored, row))
    return list(ids[len(cache.ids[row]) :])


@torch.inference_mode()
def prefill(model: GPT2, ids: Sequence[int], cache: KVCache, num_scored: int) -> Tensor:
    """Make a cache of one row hold `ids`, computing what is missing.

    Args:
        model: the network.
        ids: what the cache holds afterwards.
        cache: of one row.
        num_scored: how many of the last tokens are computed in any case, as their hidden states are needed.

    Returns:
        The hidden states of the computed tokens, (1, T, C); T is 0 if none was missing.
    """
    missing = crop_to_prefix(cache, ids, num_scored)
    if not missing:
        return torch.empty(1, 0, model.config.n_embd)
    return model.hidden(torch.tensor([missing], device=model.device), cache)  # (1, T, C)


def logits_after(model: GPT2, ids: Sequence[int], cache: KVCache, num_scored: int) -> Tensor:
    """Prefill `ids` and return the logits after each of the last tokens: (num_scored, V) in float32."""
    return model.logits(prefill(model, ids, cache, num_scored)[0, -num_scored:]).float()


@dataclass(frozen=True)
class Prefilled:
    """Sequences whose prompts are in a cache.

    Attributes:
        sequences: in the order of the cache's rows.
        cache: of their prompts.
        hidden: the hidden state of each prompt's last token, (B, C).
        borrowed: whether others, such as a chat, may hold this very cache; then it has one row, and none is added.
    """

    sequences: list[TokenSequence]
    cache: KVCache
    hidden: Tensor
    borrowed: bool


def prefill_sequence(model: GPT2, sequence: TokenSequence, cache: KVCache | None) -> Prefilled:
    """Prefill the prompt of one sequence in a cache, which may hold a prefix of it; None is a new one."""
    filled = KVCache.for_model(model) if cache is None else cache
    hidden = prefill(model, sequence.ids, filled, num_scored=1)[:, -1]  # (1, C)
    return Prefilled([sequence], filled, hidden, borrowed=cache is not None)
