"""The learning rate of each step, and which optimizer updates which weights.

The training step is left to `dialogpt.train.trainer`. AdamW is Loshchilov and Hutter's ("Decoupled Weight Decay
Regularization", 2019); Muon is Jordan's ("Muon: An optimizer for hidden layers in neural networks", 2024). The schedule
`noam` is that of "Attention Is All You Need" (2017), section 5.3, as DialoGPT's training code has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from dialogpt.train.settings import TrainConfig

TABLES = ("token_embedding.", "position_embedding.", "output_head.")  # one row per token or position


def lr_at(step: int, steps: int, width: int, config: TrainConfig) -> float:
    """Return the learning rate of a step.

    Args:
        step: counted from 1.
        steps: the number of steps of the run.
        width: n_embd of the network, which `noam` scales by.
        config: `lr`, `schedule`, `warmup_steps` and `final_lr`.
    """
    assert config.lr is not None  # `planned` chooses one
    warmup = config.warmup_steps
    if warmup is None:
        warmup = 16_000 if config.schedule == "noam" else min(100, steps // 10)
    if config.schedule == "noam":  # its peak, at the end of the warm-up, is lr * 1e4 / sqrt(width * warmup)
        rising = step * warmup**-1.5 if warmup else math.inf
        return float(config.lr * 1e4 * width**-0.5 * min(step**-0.5, rising))
    if step <= warmup:
        return config.lr * step / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    falling = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    return config.lr * (config.final_lr + (1 - config.final_lr) * falling)


def build_optimizers(model: nn.Module, config: TrainConfig, dtype: torch.dtype) -> list[torch.optim.Optimizer]:
    """Build AdamW for all weights; or Muon, with products in `dtype`, for the blocks' matrices and AdamW for the rest.

    Vectors (norms and biases) have no weight decay: shrinking the scale of a norm does not regularize.
    """
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    matrices = [weight for name, weight in named if weight.dim() > 1 and not name.startswith(TABLES)]
    embeddings = [weight for name, weight in named if weight.dim() > 1 and name.startswith(TABLES)]
    vectors = [weight for _, weight in named if weight.dim() < 2]
    with_muon = config.optimizer == "muon"
    groups = [
        {"params": embeddings if with_muon else [*embeddings, *matrices], "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    adam = torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True)
    return [adam, Muon(matrices, weight_decay=config.weight_decay, dtype=dtype)] if with_muon else [adam]


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates: all directions of a matrix are learned at the same speed.

    torch 2.9 and newer have Muon, but always in bfloat16: a step of `tiny` then takes 0.11 s instead of 0.23 s on a
    processor with bfloat16 instructions, and 0.6 s instead of 0.13 s on one without. This one uses the dtype of the
    other products. The constants are the published ones. Updates are scaled to the usual root mean square of AdamW's,
    0.2, so that one learning rate serves both (Liu et al., "Muon is Scalable for LLM
    Training", 2025, section 2.2).
    """

    MOMENTUM, ROUNDS, LENGTH = 0.95, 5, 0.2
    A, B, C = 3.4445, -4.7750, 2.0315  # takes every singular value between 0.01 and 1 to about 1 in five rounds

    def __init__(self, matrices: Iterable[Tensor], *, weight_decay: float, dtype: torch.dtype) -> None:
        super().__init__(matrices, {"lr": 0.0, "weight_decay": weight_decay})
        self.dtype = dtype  # of the products

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum"] = torch.zeros_like(matrix)
                momentum = state["momentum"].lerp_(matrix.grad, 1 - self.MOMENTUM)
                ahead = matrix.grad.lerp(momentum, self.MOMENTUM)  # Nesterov's
                length = self.LENGTH * math.sqrt(max(matrix.shape))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(self.orthogonal(ahead.to(self.dtype)), alpha=-group["lr"] * length)

    @classmethod
    def orthogonal(cls, matrix: Tensor) -> Tensor:
        """Approximate U V' of the singular value decomposition U S V' by Newton-Schulz iteration: (m, n) -> (m, n)."""
        wide = matrix if matrix.size(0) <= matrix.size(1) else matrix.t()  # (m, n), m <= n: its square is the smaller
        x = wide / wide.norm().clamp(min=1e-7)
        for _ in range(cls.ROUNDS):
            square = x @ x.t()  # (m, m)
            x = torch.addmm(x, torch.addmm(square, square, square, beta=cls.B, alpha=cls.C), x, beta=cls.A)
        result: Tensor = x if wide is matrix else x.t()
        return result


def set_lr(optimizers: Sequence[torch.optim.Optimizer], lr: float) -> None:
    """Set the learning rate of all parameter groups."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
