"""Attention weights, recomputed from what attention read: the fast kernels of the network never hold them.

A weight says where a head looked, not what it took from there; `ablation` says what a turn is worth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dialogpt.inspect.capture import Capture, normed
from dialogpt.model.gpt2 import Attention


@torch.inference_mode()
def queries_keys_values(capture: Capture, layer: int) -> Tensor:
    """What one layer's heads compare and mix: (3, H, T, D)."""
    attention: Attention = capture.model.blocks[layer].attention  # type: ignore[assignment]
    qkv: Tensor = attention.qkv(normed(capture, layer))  # (T, 3C)
    return qkv.view(len(capture.ids), 3, attention.n_head, -1).permute(1, 2, 0, 3)  # (3, H, T, D)


@torch.inference_mode()
def attention_weights(capture: Capture, layer: int, positions: Sequence[int]) -> Tensor:
    """How each head of a layer spreads its attention: (H, R, T); each row sums to 1, and is 0 after its position.

    Args:
        capture: a forward pass.
        layer: from 0 on.
        positions: R positions that look back.
    """
    queries, keys, _ = queries_keys_values(capture, layer)  # (H, T, D) each
    places = torch.tensor(list(positions), device=queries.device)
    scores = queries[:, places] @ keys.transpose(1, 2) / math.sqrt(queries.size(2))  # (H, R, T)
    future = torch.arange(keys.size(1), device=queries.device) > places[:, None]  # (R, T)
    weights: Tensor = scores.masked_fill(future, -torch.inf).softmax(dim=-1)  # (H, R, T)
    return weights


def summed_by_turn(weights: Tensor, starts: Sequence[int]) -> Tensor:
    """Attention on each turn, averaged over heads: (H, R, T) -> (R, number of turns).

    Args:
        weights: see `attention_weights`.
        starts: the position of each turn's first token, the first of them 0.
    """
    ends = [*starts[1:], weights.size(2)]
    mean = weights.mean(dim=0)  # (R, T)
    return torch.stack([mean[:, start:end].sum(dim=1) for start, end in zip(starts, ends, strict=True)], dim=1)
