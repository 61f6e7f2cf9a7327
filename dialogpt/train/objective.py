"""The loss: cross entropy of the target tokens, computed at target positions only, in chunks of rows.

The logits of a batch are by far its largest tensor: 8,192 positions times 50,257 tokens are 1.6 GB in float32, and
autograd would keep several tensors of that size. Here each chunk of logits is computed, converted to its gradient and
freed, so that the backward pass only scales the gradients. As in softmax regression, the gradient of a row's loss with
respect to its logits is softmax(logits) - onehot(label).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dialogpt.model import GPT2
from dialogpt.train.data.batches import IGNORED

CHUNK_ROWS = 256  # of logits: 8 MiB for 8,192 tokens, 51 MB for 50,257; for tiny, 128 and 1,024 are slower


class Objective(nn.Module):
    """A network and its loss as one module, which is what data parallel training wraps."""

    def __init__(self, model: GPT2) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the sum of weight * -log p(token) over the target tokens, a scalar.

        Args:
            ids: (B, T) token ids, padded on the right.
            labels: (B, T) target ids, not shifted, or `IGNORED`. The first token of a row is never a target.
            weights: (B, T) weight of each label; None means 1 for all.
        """
        hidden = self.model.hidden(ids)[:, :-1]  # (B, T - 1, C)
        targets = labels[:, 1:]  # (B, T - 1)
        is_target = targets != IGNORED
        head = self.model.output_head or self.model.token_embedding
        counts = (
            torch.ones_like(targets[is_target], dtype=torch.float32) if weights is None else weights[:, 1:][is_target]
        )
        return linear_cross_entropy(hidden[is_target], head.weight, targets[is_target], counts)


def linear_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return sum(weights * cross_entropy(hidden @ head.T, targets)) without storing all logits at once.

    Args:
        hidden: (N, C).
        head: (V, C).
        targets: (N,) token ids.
        weights: (N,).
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or head.requires_grad)
    with torch.autocast(device, enabled=False):  # else it would cast the head again for every chunk
        total: Tensor = _LinearCrossEntropy.apply(hidden, head, targets, weights, needs_gradient)  # type: ignore[no-untyped-call]
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    """Compute the loss and, in the same pass, its gradients with respect to `hidden` and `head`.

    Products are computed in the dtype of `hidden` (bfloat16 in mixed precision), everything else in at least float32.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, needs_gradient: bool
    ) -> Tensor:
        exact = torch.promote_types(head.dtype, torch.float32)
        table = head.to(hidden.dtype)  # (V, C)
        weights = weights.to(exact)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        if needs_gradient:
            hidden_gradient = torch.empty_like(hidden)
            head_needs_gradient = ctx.needs_input_grad[1]  # not with adapters, whose head is frozen
            head_gradient = torch.zeros(head.shape if head_needs_gradient else 0, dtype=exact, device=head.device)
        for start in range(0, len(hidden), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            logits = (hidden[part] @ table.t()).to(exact)  # (n, V)
            labels, counts = targets[part, None], weights[part, None]  # each (n, 1)
            scored = logits.gather(-1, labels)
            highest = logits.amax(-1, keepdim=True)
            odds = logits.sub_(highest).exp_()  # (n, V); one pass of exp serves the loss and its gradient
            sums = odds.sum(-1, keepdim=True)  # (n, 1)
            total += ((sums.log() + highest - scored) * counts).sum()
            if needs_gradient:
                logit_gradient = odds.mul_(counts / sums).scatter_add_(-1, labels, -counts)  # (n, V)
                logit_gradient = logit_gradient.to(hidden.dtype)
                torch.mm(logit_gradient, table, out=hidden_gradient[part])
                if head_needs_gradient:
                    head_gradient += logit_gradient.t() @ hidden[part]
        if needs_gradient:
            ctx.save_for_backward(hidden_gradient, head_gradient)
            ctx.head_dtype = head.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *total_gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        hidden_gradient, head_gradient = ctx.saved_tensors
        (scale,) = total_gradients
        scaled_head_gradient = (head_gradient * scale).to(ctx.head_dtype) if ctx.needs_input_grad[1] else None
        return hidden_gradient * float(scale), scaled_head_gradient, None, None, None
