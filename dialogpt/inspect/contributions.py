"""Which parts of the network raised a token's logit: direct logit attribution (Elhage et al., 2021).

The residual stream is a sum of the embeddings and of what every attention and MLP adds, and with the standard deviation
of its final norm held fixed, the logit is linear in it: the parts below sum to it. An indirect effect, by which a
layer changes what later ones compute, is counted there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dialogpt.inspect.capture import Capture


@dataclass(frozen=True)
class Part:
    """A summand of a logit.

    Attributes:
        kind: "token" or "position" (embeddings), "attention", "mlp", "bias" (of the final norm) or "rounding" (what a
            network whose weights or sums are rounded answers otherwise).
        layer: of an attention or MLP, from 0 on; None for the others.
    """

    kind: str
    layer: int | None = None


def parts_of(layers: int) -> list[Part]:
    """The summands in the order in which `contributions` returns them."""
    blocks = [Part(kind, layer) for layer in range(layers) for kind in ("attention", "mlp")]
    return [Part("token"), Part("position"), *blocks, Part("bias"), Part("rounding")]


@torch.inference_mode()
def contributions(capture: Capture, positions: Sequence[int], tokens: Sequence[int], logits: Tensor) -> Tensor:
    """Split the logit of a token at each position into what each part of the network added: (R, parts).

    Args:
        capture: a forward pass.
        positions: R positions.
        tokens: of each, the token whose logit is split.
        logits: the network's own logits of these tokens, (R,); what the parts miss of them is the last part.
    """
    model, final = capture.model, capture.residual[-1]
    places = torch.tensor(list(positions), device=final.device)
    table = model.output_head or model.token_embedding
    head = table.weight[torch.tensor(list(tokens), device=final.device)].to(final.dtype)  # (R, C)
    norm = model.final_norm
    deviation = (final[places].var(dim=-1, unbiased=False) + norm.eps).sqrt()  # (R,)
    direction = head * norm.weight  # (R, C)
    blocks = [output for pair in zip(capture.attention_output, capture.mlp_output, strict=True) for output in pair]
    split = []
    for added in (capture.token_embedding, capture.position_embedding, *blocks):
        centred = added[places] - added[places].mean(dim=-1, keepdim=True)  # (R, C)
        split.append((centred * direction).sum(dim=-1) / deviation)  # (R,)
    split.append(head @ norm.bias)  # (R,)
    split.append(logits - torch.stack(split).sum(dim=0))
    return torch.stack(split, dim=1)  # (R, parts)
