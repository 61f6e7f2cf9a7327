"""GPT-2 as a program of ONNX Runtime or OpenVINO, with its cache as inputs and outputs.

`scripts/peers.py` runs both. Their usual exporter, optimum, wants older versions of transformers than this project
(optimum-onnx 0.1.0 installs 4.57, optimum-intel 2.2.0 installs 5.5), so the plain network is exported here.

A step takes ids (1, T) and, of every layer, keys and values (1, H, S - T, D); it returns the logits of the last token
(1, V) and the keys and values of all S tokens, which are copies: ONNX Runtime copies the whole cache in each step, and
OpenVINO, which keeps it as a state, does not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dialogpt.model import GPT2
from dialogpt.weights import load

T_AXIS, CACHED_AXIS = 1, 2  # of ids, and of keys and values


class LongerCache:
    """Stands for `KVCache` in an export: new keys and values behind the earlier ones, in tensors of their own."""

    def __init__(self, past: tuple[Tensor, ...]) -> None:
        """Take keys and values of each layer in turn."""
        self.past = past
        self.present: list[Tensor] = []

    def append(self, layer: int, keys_values: Tensor) -> tuple[Tensor, Tensor]:
        """Join one layer's new keys and values, (2, B, H, T, D), to its earlier ones; each (B, H, S, D)."""
        past = self.past[2 * layer : 2 * layer + 2]
        keys, values = (torch.cat(pair, dim=2) for pair in zip(past, keys_values.unbind(), strict=True))
        self.present += [keys, values]
        return keys, values


class ExportedStep(nn.Module):
    """`GPT2.hidden` and `GPT2.logits` without anything that a traced program cannot hold."""

    def __init__(self, network: GPT2) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor, order: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Read new tokens.

        Args:
            ids: (1, T).
            order: (1,) which row of the cache continues; always 0. OpenVINO knows attention with a state by it.
            past: keys and values of each layer in turn, (1, H, S - T, D).
        """
        network, cache = self.network, LongerCache(tuple(each.index_select(0, order) for each in past))
        slots = torch.arange(past[0].size(CACHED_AXIS) + ids.size(T_AXIS))
        positions = slots[past[0].size(CACHED_AXIS) :]
        x = network.token_embedding(ids) + network.position_embedding(positions)  # (1, T, C)
        for layer, block in enumerate(network.blocks):
            x = block(x, slots <= positions[:, None], cache, layer)
        return network.logits(network.final_norm(x[:, -1])), *cache.present


def example(network: GPT2) -> tuple[Tensor, ...]:
    """Arguments of a step after three tokens, for tracing."""
    config = network.config
    past = [torch.zeros(1, config.n_head, 3, config.head_dim) for _ in range(2 * config.n_layer)]
    return torch.tensor([[5, 6]]), torch.zeros(1, dtype=torch.int32), *past


def write_onnx(folder: Path, file: Path) -> None:
    """Write a checkpoint as an ONNX program; the first input is ids, the second order, the first output logits."""
    network = load(folder, trainable=True)
    arguments = example(network)
    dynamic = torch.export.Dim.DYNAMIC
    shapes = ({T_AXIS: dynamic}, None, tuple({CACHED_AXIS: dynamic} for _ in arguments[2:]))
    file.parent.mkdir()
    with torch.no_grad():
        torch.onnx.export(  # opset 20 is the first with GELU as one operator
            ExportedStep(network), arguments, file, dynamo=True, opset_version=20, dynamic_shapes=shapes, verbose=False
        )


def openvino_model(folder: Path) -> Any:
    """Build a checkpoint's OpenVINO program from ids and order to logits, with its cache as a state.

    The state begins with no tokens. Without `order` and a beginning, OpenVINO computes attention in single operators,
    and copies the cache: its kernel for it (ScaledDotProductAttention) matches this form only.
    """
    import openvino
    from openvino import opset13
    from openvino.passes import MakeStateful, Manager

    network = load(folder, trainable=True)
    H, D = network.config.n_head, network.config.head_dim
    arguments = example(network)
    shapes = [[1, -1], [1], *([1, H, -1, D] for _ in arguments[2:])]
    with torch.no_grad():
        model = openvino.convert_model(
            ExportedStep(network).eval(),
            example_input=arguments,
            input=[openvino.PartialShape(each) for each in shapes],
        )
    pairs = {}
    for index, (past, present) in enumerate(zip(model.inputs[2:], model.outputs[1:], strict=True)):
        past.get_tensor().set_names({f"past {index}"})
        present.get_tensor().set_names({f"present {index}"})
        pairs[f"past {index}"] = f"present {index}"
    manager = Manager()
    manager.register_pass(MakeStateful(pairs))
    manager.run_passes(model)
    for operator in model.get_ops():
        if operator.get_type_name() == "ReadValue":
            operator.set_arguments([opset13.constant(np.zeros((1, H, 0, D), np.float32))])
    model.validate_nodes_and_infer_types()
    return model
