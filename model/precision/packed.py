"""The modules that take the place of a network's linear layers and of its token embedding: their weights are packed.

They are for inference only, in float32, on a CPU: packed weights are no parameters. The kernel is `choice.py`'s.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dialogpt.model.gpt2 import TokenEmbedding
from dialogpt.model.precision.choice import kernel_for
from dialogpt.model.precision.kernels import Float16, Float32, Kernel, Plain, quantized

FLOAT16_MAX = 65504  # below 2^-14 float16's numbers are 2^-24 apart, so bfloat16's move by up to 2^-25
INFERENCE_ONLY = "a network with packed weights cannot be trained and gives no gradients; load it with trainable=True"
Read = Callable[[], Tensor]
logger = logging.getLogger(__name__)


class PackedLinear(nn.Module):
    """A linear layer of float32 activations, (..., in) -> (..., out), for inference only.

    Its weight is packed at its first use, as packing 500 MB takes half a second, and opening a checkpoint stays fast.
    """

    def __init__(self, read: Read, read_bias: Read | None, precision: str, gelu: bool) -> None:
        """Take what will be packed.

        Args:
            read: reads its weight (out, in), also for `state_dict`, which thereby is complete.
            read_bias: reads its bias (out,); None where it has none.
            precision: one of `CPU_PRECISIONS`.
            gelu: whether a GELU follows, which is then applied here: in float32 in the same pass.
        """
        super().__init__()
        self.read = read
        self.bias: Tensor | None
        self.register_buffer("bias", None if read_bias is None else read_bias().float())
        self.precision, self.gelu = precision, gelu
        self.weight: Tensor | None = read()  # until it is packed
        self.kernel: Kernel | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.training or (x.requires_grad and torch.is_grad_enabled()):
            raise RuntimeError(INFERENCE_ONLY)
        return (self.kernel or self.packed())(x)

    def packed(self) -> Kernel:
        """Pack the weight; threads that come at once each pack it, and one result stays."""
        weight, bias = self.weight, self.bias
        if weight is not None:  # else another thread was faster
            self.kernel = pack(weight, bias, self.precision, self.gelu)
            self.weight = None
        assert self.kernel is not None
        return self.kernel

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.read().float()

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLinear:
        _refuse_conversion(fn)
        return self


class PackedEmbedding(TokenEmbedding):
    """The token embedding: mapped from its file for looking tokens up, and packed for the head.

    It is packed at the first look-up, before all layers. It is the largest weight; until it is packed, its pages of the
    file count as memory, and afterwards the layers use that room.
    """

    def __init__(self, read: Read, precision: str, *, is_head: bool = True) -> None:
        """Take a weight (V, C).

        Args:
            read: reads it; a ValueError says that it cannot be read any more.
            precision: one of `CPU_PRECISIONS`.
            is_head: whether it is the output head too; else it is only mapped.
        """
        weight = read()
        super().__init__(weight.size(0), weight.size(1), _weight=weight)
        self.read, self.precision, self.is_head = read, precision, is_head
        self.kernel: Kernel | None = None

    @property
    def activation_dtype(self) -> torch.dtype:
        """What the network computes in."""
        return torch.float32

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, C), in float32."""
        if self.kernel is None and self.is_head:
            self.packed()
        return F.embedding(ids, self.weight).float()

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V)."""
        if self.training or (hidden.requires_grad and torch.is_grad_enabled()):
            raise RuntimeError(INFERENCE_ONLY)
        return (self.kernel or self.packed())(hidden)

    def packed(self) -> Kernel:
        """Pack the weight, and map it anew; threads that come at once each do so, and one result stays."""
        self.kernel = kernel = pack(self.weight, None, self.precision, gelu=False)
        with suppress(ValueError):  # where the file is gone, what was read of it stays in memory
            self.weight = nn.Parameter(self.read(), requires_grad=False)
        return kernel

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.read().float()

    def _apply(self, fn: Any, recurse: bool = True) -> PackedEmbedding:
        _refuse_conversion(fn)
        return self


def _refuse_conversion(convert: Callable[[Tensor], Tensor]) -> None:
    """Refuse to move packed weights, or to convert them; `model.cpu()` and the like change nothing."""
    probe = torch.empty(0)
    if convert(probe).dtype != probe.dtype or convert(probe).device != probe.device:
        raise RuntimeError("packed weights keep their dtype, on the CPU; load the network again as it should be")


@torch.inference_mode(False)
@torch.no_grad()
def pack(weight: Tensor, bias: Tensor | None, precision: str, gelu: bool) -> Kernel:
    """Pack a weight for a precision: rounded to it, in the kernel that this machine has for it."""
    if precision == "float32" and weight.dtype == torch.float16 and Float16.runs_here():
        precision = "float16"  # the same numbers in half the bytes
    elif precision == "bfloat16":
        weight = weight.bfloat16()
    kernel = kernel_for(precision, weight.size(1))
    becomes_float16 = weight.dtype != torch.float16 and (precision == "float16" or kernel is Float16)
    if becomes_float16 and float(torch.stack(weight.aminmax()).abs().max()) > FLOAT16_MAX:
        warn_once(f"a weight is beyond float16, whose largest number is {FLOAT16_MAX:,}: its layer is kept in float32")
        precision, kernel = "float32", kernel_for("float32", weight.size(1))
    if kernel in (Float32, Plain) and precision == "float16":
        weight = weight.half()
    elif kernel in (Float32, Plain) and precision in ("int8", "int4"):
        levels, scales = quantized(weight)
        weight = levels * scales[:, None]
    return kernel(weight, bias, gelu)


@functools.cache
def warn_once(text: str) -> None:
    """Log a warning, unless it was logged before."""
    logger.warning("%s", text)
