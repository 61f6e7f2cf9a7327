"""The logit lens: what each layer would answer if the network ended there (nostalgebraist, "interpreting GPT", 2020).

The residual stream after a layer goes through the final norm and the head, which were trained for the last layer only;
early layers therefore answer in rough words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dialogpt.inspect.capture import Capture

CHUNK = 16  # positions whose logits are held at a time: 3 MB with GPT-2's vocabulary; 64 took 1.2 times a reply's


@dataclass(frozen=True)
class LensReading:
    """What one layer would answer at R positions.

    Attributes:
        top_ids, top_logits, top_probabilities: the likeliest tokens, (R, k) each.
        log_probability: of each position's target token, (R,).
        rank: of each target token, 1 for the likeliest, (R,).
        logit: of each target token, (R,).
    """

    top_ids: Tensor
    top_logits: Tensor
    top_probabilities: Tensor
    log_probability: Tensor
    rank: Tensor
    logit: Tensor


@torch.inference_mode()
def lens_logits(capture: Capture, layer: int, positions: Sequence[int]) -> Tensor:
    """The logits that the residual stream gives after so many layers (0: the embeddings): (R, V)."""
    places = torch.tensor(list(positions), device=capture.residual[layer].device)
    model = capture.model
    return model.logits(model.final_norm(capture.residual[layer][places]))  # (R, V)


@torch.inference_mode()
def read_lens(
    capture: Capture,
    positions: Sequence[int],
    targets: Sequence[int],
    count: int,
    on_chunk: Callable[[], None] = lambda: None,
) -> list[LensReading]:
    """Read the lens after the embeddings and after every layer: L + 1 readings.

    Args:
        capture: a forward pass.
        positions: R positions.
        targets: of each, the token whose probability is of interest.
        count: how many of the likeliest tokens to return.
        on_chunk: called before each piece of the work; what it raises ends it.
    """
    count = min(count, capture.model.config.vocab_size)
    readings = []
    for layer in range(len(capture.residual)):
        parts = []
        for start in range(0, len(positions), CHUNK):
            on_chunk()
            logits = lens_logits(capture, layer, positions[start : start + CHUNK])
            parts.append(_read(logits, targets[start : start + CHUNK], count))
        readings.append(LensReading(*(torch.cat(tensors) for tensors in zip(*parts, strict=True))))
    return readings


def _read(logits: Tensor, targets: Sequence[int], count: int) -> tuple[Tensor, ...]:
    """The fields of a `LensReading` for a few positions: (R, V) -> (R, k) and (R,)."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    chosen = logits.gather(1, torch.tensor(list(targets), device=logits.device)[:, None])  # (R, 1)
    normalizer = logits.logsumexp(dim=-1, keepdim=True)  # (R, 1)
    top = logits.topk(count)
    rank = (logits > chosen).sum(dim=-1) + 1  # (R,)
    probabilities = (top.values - normalizer).exp()  # (R, k)
    return top.indices, top.values, probabilities, (chosen - normalizer)[:, 0], rank, chosen[:, 0]
