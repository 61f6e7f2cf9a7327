"""Dropout on a CPU with cheaper random numbers: one 64-bit random integer masks four values.

torch samples one number per value, sequentially, which takes 10 % of the time of training `tiny`; this takes a third of
that. The rate is exact to 1 in 65,536. On a GPU torch's own dropout is fast and is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dialogpt.model import GPT2


class Dropout(nn.Module):
    """Set each value to zero with probability `rate`, and scale the others by 1 / (1 - rate), in training mode only."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of `x`, which may be any."""
        if not self.training or self.rate == 0:
            return x
        numbers = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
        parts = numbers.view(torch.int16)[: x.numel()].view(x.shape)  # from -32,768 to 32,767, all equally likely
        kept = (parts >= round(self.rate * 65536) - 32768).to(x.dtype)
        return x * kept.mul_(1 / (1 - self.rate))


def use_cheap_dropout(model: GPT2) -> None:
    """Replace torch's dropout by this one in a network on the CPU."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, Dropout(child.p))
