"""The loss: cross entropy of each learned token, computed only where there is one and a few rows at a time.

The logits of a batch are its largest tensor by far: 8,192 places times 50,257 tokens are 1.6 GB in float32, and
autograd would keep several such. Here a slice of them is computed, turned into its gradient at once and forgotten, so
that backward has nothing left to do but to scale. The formulas are those of softmax regression: the gradient of a
row's loss by its logits is softmax(logits) - onehot(label).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dialogpt.model import GPT2
from dialogpt.train.data.batches import IGNORED

SLICE_ROWS = 256  # of logits at a time: 8 MiB for 8,192 tokens, 51 MB for 50,257; for tiny 128 and 1,024 are slower


class Objective(nn.Module):
    """A network and its loss as one module, which is what data parallel training wraps."""

    def __init__(self, model: GPT2) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """The sum over learned tokens of weight times -log p(token): (B, T) three times -> scalar.

        Args:
            ids: token ids, padded on the right.
            labels: (B, T), not shifted: the ids themselves, or `IGNORED`. The first of a row is never learned.
            weights: (B, T) how much each label counts; None is 1 for all.
        """
        hidden = self.model.hidden(ids)[:, :-1]  # (B, T - 1, C)
        targets = labels[:, 1:]  # (B, T - 1)
        learned = targets != IGNORED
        counts = torch.ones_like(targets[learned], dtype=torch.float32) if weights is None else weights[:, 1:][learned]
        return linear_cross_entropy(hidden[learned], self.model.token_embedding.weight, targets[learned], counts)


def linear_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """sum(weights * cross_entropy(hidden @ head.T, targets)), without ever holding all logits.

    Args:
        hidden: (N, C).
        head: (V, C).
        targets: (N,) token ids.
        weights: (N,).
    """
    place = hidden.device.type
    if torch.is_autocast_enabled(place):
        hidden = hidden.to(torch.get_autocast_dtype(place))
    learning = torch.is_grad_enabled() and (hidden.requires_grad or head.requires_grad)
    with torch.autocast(place, enabled=False):  # it would cast the head anew for every slice
        total: Tensor = _LinearCrossEntropy.apply(hidden, head, targets, weights, learning)  # type: ignore[no-untyped-call]
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    """The loss and, in the same pass, its gradients by `hidden` and `head`.

    Products are computed in the dtype of `hidden` (bfloat16 in mixed precision), everything else in at least float32.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, learning: bool) -> Tensor:
        exact = torch.promote_types(head.dtype, torch.float32)
        table = head.to(hidden.dtype)  # (V, C)
        weights = weights.to(exact)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        if learning:
            by_hidden = torch.empty_like(hidden)
            head_learns = ctx.needs_input_grad[1]  # not with adapters, whose head is frozen
            by_head = torch.zeros(head.shape if head_learns else 0, dtype=exact, device=head.device)
        for start in range(0, len(hidden), SLICE_ROWS):
            part = slice(start, start + SLICE_ROWS)
            logits = (hidden[part] @ table.t()).to(exact)  # (n, V)
            places, counts = targets[part, None], weights[part, None]  # each (n, 1)
            scored = logits.gather(-1, places)
            highest = logits.amax(-1, keepdim=True)
            odds = logits.sub_(highest).exp_()  # (n, V); one pass of exp serves the loss and its gradient
            sums = odds.sum(-1, keepdim=True)  # (n, 1)
            total += ((sums.log() + highest - scored) * counts).sum()
            if learning:
                slope = odds.mul_(counts / sums).scatter_add_(-1, places, -counts)  # (n, V)
                slope = slope.to(hidden.dtype)
                torch.mm(slope, table, out=by_hidden[part])
                if head_learns:
                    by_head += slope.t() @ hidden[part]
        if learning:
            ctx.save_for_backward(by_hidden, by_head)
            ctx.head_dtype = head.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *by_total: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        by_hidden, by_head = ctx.saved_tensors
        (scale,) = by_total
        for_head = (by_head * scale).to(ctx.head_dtype) if ctx.needs_input_grad[1] else None
        return by_hidden * float(scale), for_head, None, None, None
