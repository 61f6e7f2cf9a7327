"""LoRA (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021): small matrices beside frozen weights.

A linear layer y = W x becomes y = W x + (alpha / rank) B A x, of which only A (rank, in) and B (out, rank) are learned.
Adapters are written in PEFT's format, whose names are those of the published GPT-2. Reading and merging one is left to
`dialogpt.weights.adapters`, what trains them to `dialogpt.train.trainer`.
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
PUBLISHED = {  # our layers of a block, and their published names
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
        nn.init.kaiming_uniform_(
            self.lora_A, a=math.sqrt(5)
        )  # as PEFT does; B is zero, so that nothing changes at first

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        out: Tensor = self.base(x)
        return out + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale

    def merged_weight(self) -> Tensor:
        """W + (alpha / rank) B A: (out, in)."""
        return self.base.weight.detach() + self.scale * (self.lora_B.detach() @ self.lora_A.detach())


def attach(model: GPT2, rank: int, alpha: float | None, targets: str) -> None:
    """Freeze a network, and give some of its layers adapters.

    Args:
        model: is changed.
        rank: of the adapters.
        alpha: their scale times the rank; None is twice the rank.
        targets: PEFT's names of layers, with commas between them; "c_proj" is two layers of each block.
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
    """The layers of a network that have adapters, by their names: "blocks.0.attention.qkv" and so on."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def merged_parameters(model: GPT2) -> Iterator[tuple[str, Tensor]]:
    """The parameters that the network would have without adapters and with their effect, by their plain names."""
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
        folder: an existing one.
        model: a network with adapters.
        base: the checkpoint that they belong to, for those who load them.
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
