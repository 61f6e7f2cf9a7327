"""Select from a vocabulary's scores without sorting all of them, which takes 4 ms for 50,257."""

from __future__ import annotations

import torch
from torch import Tensor

from dialogpt.generation_config import GenerationConfig

MAX_SHORT_SORT = 1024  # with more tokens left, top_p sorts the removed ones too


def nth_largest(scores: Tensor, n: int) -> Tensor:
    """Return the n-th largest score of each row: (B, V) -> (B, 1)."""
    return scores.topk(min(n, scores.size(1))).values[:, -1:]  # (B, 1)


def removed_by_short_sort(scores: Tensor, config: GenerationConfig) -> Tensor | None:
    """Return what top_p removes by sorting only the tokens that are left, as after top_k: (B, V).

    None where only sorting all scores can tell: too many tokens are left, a cumulative sum
    equals 1 - p up to rounding, or a removed score equals a kept one.
    """
    num_left = int((scores > -torch.inf).sum(dim=-1).max())
    if not 0 < num_left <= MAX_SHORT_SORT:
        return None
    ascending = scores.topk(num_left).values.flip(-1)  # (B, num_left)
    total = ascending.softmax(dim=-1).cumsum(dim=-1)
    cut = total <= 1 - config.top_p
    cut[:, -config.tokens_to_keep :] = False
    kept = ascending.masked_fill(cut, torch.inf).amin(dim=-1, keepdim=True)  # (B, 1), the smallest kept score
    removed = ascending.masked_fill(~cut, -torch.inf).amax(dim=-1, keepdim=True)  # (B, 1), the largest removed one
    # A row with fewer tokens left than others, and than `tokens_to_keep`, keeps and removes -inf: no difference.
    doubtful = ((total - (1 - config.top_p)).abs() < 1e-5).any() or ((removed == kept) & (kept > -torch.inf)).any()
    return None if doubtful else scores < kept
