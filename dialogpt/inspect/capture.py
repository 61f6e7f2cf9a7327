"""One forward pass with everything kept that the network computes on its way, without changing the network.

Forward hooks record the residual stream and what each block adds to it. They sit on a second set of containers around
the same layers, so that threads that share the network notice nothing. What the records mean is left to the modules
beside this one: `lens`, `attention`, `contributions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dialogpt.model import GPT2
from dialogpt.model.gpt2 import Block


@dataclass(frozen=True)
class Capture:
    """What one sequence left behind in the network.

    Attributes:
        model: the network.
        ids: the T tokens that were read.
        token_embedding, position_embedding: (T, C), whose sum enters the first block.
        residual: the residual stream before each block, and after the last: L + 1 times (T, C).
        attention_output, mlp_output: what each block adds to it: L times (T, C) each.
    """

    model: GPT2
    ids: list[int]
    token_embedding: Tensor
    position_embedding: Tensor
    residual: list[Tensor]
    attention_output: list[Tensor]
    mlp_output: list[Tensor]


@torch.inference_mode()
def capture(model: GPT2, ids: Sequence[int]) -> Capture:
    """Read a sequence and keep what the network computes.

    Args:
        model: in evaluation mode, as `dialogpt.weights.load` returns it; of any precision.
        ids: at least one token, and no more than the network has positions.

    Raises:
        CacheFull: there are more tokens than positions.
    """
    observed = _containers_around(model)
    residual: list[Tensor] = []
    attention_output: list[Tensor] = []
    mlp_output: list[Tensor] = []
    blocks: list[Block] = list(observed.blocks)  # type: ignore[arg-type]
    for block in blocks:
        block.register_forward_pre_hook(lambda _block, inputs: residual.append(inputs[0][0]))
        block.attention.register_forward_hook(lambda _module, _inputs, output: attention_output.append(output[0]))
        block.mlp.register_forward_hook(lambda _module, _inputs, output: mlp_output.append(output[0]))
    blocks[-1].register_forward_hook(lambda _block, _inputs, output: residual.append(output[0]))
    row = torch.tensor([list(ids)], device=model.device)  # (1, T)
    observed.hidden(row)
    positions = torch.arange(len(ids), device=model.device)
    return Capture(
        model,
        list(ids),
        model.token_embedding(row)[0],
        model.position_embedding(positions),
        residual,
        attention_output,
        mlp_output,
    )


def _containers_around(model: GPT2) -> GPT2:
    """A network of new containers around the same layers, weights and packed kernels; it takes no memory."""
    with torch.device("meta"):
        observed = GPT2(model.config)
    for name, module in model.named_modules():
        if not any(module.children()):
            parent, _, own = name.rpartition(".")
            setattr(observed.get_submodule(parent), own, module)
    for container in observed.modules():
        if any(container.children()):
            container.training = model.training
    return observed


def normed(capture: Capture, layer: int) -> Tensor:
    """What the attention of a block reads, (T, C)."""
    norm: nn.Module = capture.model.blocks[layer].attention_norm  # type: ignore[assignment]
    result: Tensor = norm(capture.residual[layer])
    return result
