"""Swap a network's products for faster ones. The network stays what `gpt2.py` says; on other devices, and in float64,
nothing is swapped.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from dialogpt.model.config import TANH_GELUS
from dialogpt.model.gpt2 import GPT2, MLP
from dialogpt.model.precision.choice import kernel_for
from dialogpt.model.precision.kernels import GROUP, Int4, Int8Weights
from dialogpt.model.precision.packed import DirectLayerNorm, PackedBlock, PackedEmbedding, PackedLinear, Read, warn_once


def prepare(model: GPT2, precision: str, weights: Mapping[str, Read]) -> set[str]:
    """Swap a network's products, in place, before its weights are put into it.

    The network is for inference only from then on: packed weights are no parameters. The token embedding, which looks
    tokens up, stays one, of any dtype: mapped from a file, it takes no memory beside the head.

    Args:
        model: on a CPU, or without memory yet.
        precision: one of `CPU_PRECISIONS`.
        weights: each reads a weight, by the parameter's name, whenever it is called.

    Returns:
        The names of the weights that are in the network already; all others are to be loaded, in float32.

    Raises:
        ValueError: there is no such precision.
    """
    _warn_of_substitutes(precision, model)
    placed = {"token_embedding.weight"}
    for name, module in list(model.named_modules()):
        parent = model.get_submodule(name.rpartition(".")[0])
        own = name.rpartition(".")[2]
        if isinstance(module, nn.Linear):
            read, read_bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")  # an output head has no bias
            gelu = isinstance(parent, MLP) and own == "up" and model.config.activation_function in TANH_GELUS
            setattr(parent, own, PackedLinear(read, read_bias, precision, gelu, is_head=module is model.output_head))
            if gelu:
                parent.activation = nn.Identity()
            placed |= {f"{name}.weight"} | (set() if read_bias is None else {f"{name}.bias"})
        elif type(module) is nn.LayerNorm:
            norm = DirectLayerNorm(module.normalized_shape, eps=module.eps, device="meta")
            norm.weight, norm.bias = module.weight, module.bias
            setattr(parent, own, norm)
    for layer, block in enumerate(model.blocks):
        model.blocks[layer] = PackedBlock.of(block)
    tied = model.output_head is None
    layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    model.token_embedding = PackedEmbedding(weights["token_embedding.weight"], precision, layers, is_head=tied)
    return placed


def _warn_of_substitutes(precision: str, model: GPT2) -> None:
    """Warn once that another kernel takes the place of the one that was asked for; this also tries what runs here."""
    inputs = {module.in_features for module in model.modules() if isinstance(module, nn.Linear)}
    for kernel in {kernel_for(precision, each) for each in inputs}:
        if kernel is None:
            warn_once(
                f"this torch or processor has no products of {precision}: the weights are rounded, but kept in float32"
            )
        elif precision == "int4" and kernel is not Int4:
            warn_once(
                f"there are no products of int4 here, or a width is no multiple of {GROUP}: int8 takes their place"
            )
        if kernel is Int8Weights:
            warn_once("products of int8 are no faster than those of float32 here: int8 only saves memory")
