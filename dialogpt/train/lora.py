"""LoRA (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021): low-rank updates of frozen weights.

A linear layer y = W x becomes y = W x + (alpha / rank) B A x, of which only A (rank, in) and B (out, rank) are trained.
Adapters are written in PEFT's format, whose names are those of the published GPT-2. Reading and merging adapters is
left to `dialogpt.weights.adapters`, training them to `dialogpt.train.trainer`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from dialogpt.model import GPT2
from dialogpt.weights.formats import StoredTensor, write_json, write_safetensors

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PUBLISHED = {  # our names of a block's layers to their published names
    "attention.qkv": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
_PREFIX = "base_model.model.transformer.h."
_PLAIN = {"bias": "none", "use_dora": False, "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None}


class LoRALinear(nn.Module):
    """A frozen linear layer and its adapter."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.scale = alpha / rank
        self.lora_A = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_B = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        # As in PEFT; B is zero, so the adapter has no effect at first.
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer and its adapter: (..., in) -> (..., out)."""
        out: Tensor = self.base(x)
        return out + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale

    def merged_weight(self) -> Tensor:
        """Return W + (alpha / rank) B A: (out, in)."""
        return self.base.weight.detach() + self.scale * (self.lora_B.detach() @ self.lora_A.detach())


def attach(model: GPT2, rank: int, alpha: float | None, targets: str) -> None:
    """Freeze a network and add adapters to some of its layers, in place.

    Args:
        model: the network.
        rank: of the adapters.
        alpha: scale times rank; None means twice the rank.
        targets: PEFT's names of layers, separated by commas; "c_proj" names two layers of each block.
    """
    model.requires_grad_(False)
    names = targets.split(",")
    for block in model.blocks:
        for ours, published in PUBLISHED.items():
            if published.rpartition(".")[2] in names:
                owner, _, name = ours.rpartition(".")
                parent = block.get_submodule(owner)
                setattr(parent, name, LoRALinear(getattr(parent, name), rank, 2.0 * rank if alpha is None else alpha))


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """Return the layers of a network that have adapters, by name, such as "blocks.0.attention.qkv"."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def merged_parameters(model: GPT2) -> Iterator[tuple[str, Tensor]]:
    """Yield the network's parameters with the adapters merged into them, under the names that they have without."""
    layers = adapters(model)
    for name, parameter in model.named_parameters():
        owner, _, last = name.rpartition(".base.")
        if owner in layers:
            yield f"{owner}.{last}", layers[owner].merged_weight() if last == "weight" else parameter.detach()
        elif not last.endswith(("lora_A", "lora_B")):
            yield name, parameter.detach()


def write_adapter(folder: Path, model: GPT2, base: str) -> None:
    """Write the adapters of a network in PEFT's format.

    Args:
        folder: an existing folder.
        model: a network with adapters.
        base: the name of the base checkpoint, for PEFT.
    """
    layers = adapters(model)
    tensors, targets = [], set()
    for name, layer in layers.items():
        _, number, ours = name.split(".", 2)
        targets.add(PUBLISHED[ours].rpartition(".")[2])
        for part in ("lora_A", "lora_B"):
            value = getattr(layer, part).detach()
            key = f"{_PREFIX}{number}.{PUBLISHED[ours]}.{part}.weight"
            tensors.append(StoredTensor(key, tuple(value.shape), value.dtype, value.cpu))
    first = next(iter(layers.values()))
    rank = first.lora_A.size(0)
    write_json(
        folder / CONFIG,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": rank,
            "lora_alpha": first.scale * rank,
            "lora_dropout": 0.0,
            "target_modules": sorted(targets),
            "fan_in_fan_out": True,  # published weights are (in, out)
            "inference_mode": True,
            **_PLAIN,
        },
    )
    write_safetensors(folder / TENSORS, tensors, {"format": "pt"})
