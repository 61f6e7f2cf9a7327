"""Speed on a CPU: every product by the kernel that reads its weight fastest.

A decode step reads every weight once, so its floor is weight bytes over memory bandwidth; `F.linear` in float32 reaches
a third of that. `prepare` swaps the products of a network for faster ones, by its precision:

- float32: packed for oneDNN. What is stored in float16, as DialoGPT's weights are, is packed as float16: the same
  numbers, half the bytes.
- float16: packed for fbgemm.
- bfloat16: rounded to bfloat16, then packed as float16 for fbgemm. torch's own products of bfloat16 read a weight for
  one row at half the speed.
- int8: packed for fbgemm. int4: packed for torch's own kernel.

The network stays what `gpt2.py` says. What comes and goes between the products is float32 in every precision: on a
CPU, attention and norms in float32 are the fastest, and the most exact. A forward pass changes no setting of the
process, so any number of threads may share one network. Some of the operators used here are private to
torch: where this one, or this processor, has not got them (`has_onednn` and the like), another product takes their
place, with a notice where that changes numbers. On other devices, and in float64, nothing is swapped.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dialogpt.model.gpt2 import GPT2, MLP, TokenEmbedding

CPU_PRECISIONS = ("float32", "bfloat16", "float16", "int8", "int4")
MANY_ROWS = 64  # what float32 weights are packed for; for one row that is as fast, within 5 %, as packed for one
FEWEST_ROWS = 4  # oneDNN reads a weight at 30 GB/s for one row and at 36 for four
CHUNK = 256  # rows of a weight that are rounded at a time, so that a head of 150 MB is not in memory twice for int8
LARGEST = 65504  # float16's largest number; below 2^-14 its numbers are 2^-24 apart, so bfloat16's move by up to 2^-25
GROUP = 32  # weights that share a scale in int4
INT4_ROWS = 64  # outputs that its kernel packs together
LEAST_STEP = 6.1e-5  # what fbgemm takes for a smaller scale of activations (SMALL_SCALE_THRESHOLD)
INFERENCE_ONLY = "a network with packed weights cannot be trained and gives no gradients; load it with trainable=True"
Read = Callable[[], Tensor]
logger = logging.getLogger(__name__)


def prepare(model: GPT2, precision: str, weights: Mapping[str, Read]) -> set[str]:
    """Swap a network's products, in place, before its weights are put into it.

    The network is for inference only from then on: packed weights are no parameters. The token embedding, which looks
    tokens up, stays one, of any dtype: mapped from a file, it takes no memory beside the head.

    Args:
        model: on a CPU, or without memory yet.
        precision: one of `CPU_PRECISIONS`.
        weights: each reads a weight, by the parameter's name, whenever it is asked.

    Returns:
        The names of the weights that are in their place already; all others are to be loaded, in float32.

    Raises:
        ValueError: there is no such precision.
    """
    _notice_substitutes(precision, model)
    if precision in ("int8", "int4") and has_int8():
        _suppress_deprecation()
    placed = {"token_embedding.weight"}
    for name, module in list(model.named_modules()):
        parent = model.get_submodule(name.rpartition(".")[0])
        own = name.rpartition(".")[2]
        if isinstance(module, nn.Linear):
            read, read_bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
            gelu = isinstance(parent, MLP) and own == "up"
            setattr(parent, own, PackedLinear(read, read_bias, precision, gelu))
            if gelu:
                parent.gelu = nn.Identity()
            placed |= {f"{name}.weight", f"{name}.bias"}
    model.token_embedding = PackedEmbedding(weights["token_embedding.weight"], precision)
    return placed


# ---- modules ----


class PackedLinear(nn.Module):
    """A linear layer of float32 activations, (..., in) -> (..., out), whose weight is packed when it is first used.

    It is for inference only. Packing 500 MB takes half a second, which who only looks at a network need not wait for.
    """

    def __init__(self, read: Read, read_bias: Read, precision: str, gelu: bool) -> None:
        """Take what will be packed.

        Args:
            read: reads its weight (out, in), also for `state_dict`, which thereby is complete.
            read_bias: reads its bias (out,).
            precision: one of `CPU_PRECISIONS`.
            gelu: whether a GELU follows, which is applied, too: in float32 in the same pass.
        """
        super().__init__()
        self.read = read
        self.bias: Tensor
        self.register_buffer("bias", read_bias().float())
        self.precision, self.gelu = precision, gelu
        self.weight: Tensor | None = read()  # until it is packed
        self.kernel: Kernel | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.training or (x.requires_grad and torch.is_grad_enabled()):
            raise RuntimeError(INFERENCE_ONLY)
        return (self.kernel or self.packed())(x)

    def packed(self) -> Kernel:
        """Pack the weight; threads that do it at once do the same twice."""
        weight, bias = self.weight, self.bias
        if weight is not None:  # else another thread was faster
            self.kernel = _packed(weight, bias, self.precision, self.gelu)
            self.weight = None
        assert self.kernel is not None
        return self.kernel

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.read().float()

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLinear:
        _refuse_to_become_another(fn)
        return self


class PackedEmbedding(TokenEmbedding):
    """The token embedding, mapped for looking up, and packed for the head.

    It is packed at the first look-up, before all layers: the largest weight, whose pages in the file count as memory
    until it is packed, has then the room that they will take.
    """

    def __init__(self, read: Read, precision: str) -> None:
        """Take a weight (V, C).

        Args:
            read: reads it; a ValueError says that it cannot be read any more.
            precision: one of `CPU_PRECISIONS`.
        """
        weight = read()
        super().__init__(weight.size(0), weight.size(1), _weight=weight)
        self.read, self.precision = read, precision
        self.kernel: Kernel | None = None

    @property
    def activation_dtype(self) -> torch.dtype:
        """What the network computes in."""
        return torch.float32

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, C), in float32."""
        if self.kernel is None:
            self.packed()
        return F.embedding(ids, self.weight).float()

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V)."""
        if self.training or (hidden.requires_grad and torch.is_grad_enabled()):
            raise RuntimeError(INFERENCE_ONLY)
        return (self.kernel or self.packed())(hidden)

    def packed(self) -> Kernel:
        """Pack the weight, and map it anew; threads that do it at once do the same twice."""
        self.kernel = kernel = _packed(self.weight, None, self.precision, gelu=False)
        with suppress(ValueError):  # where the file is gone, what was read of it stays in memory
            self.weight = nn.Parameter(self.read(), requires_grad=False)
        return kernel

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.read().float()

    def _apply(self, fn: Any, recurse: bool = True) -> PackedEmbedding:
        _refuse_to_become_another(fn)
        return self


def _refuse_to_become_another(change: Callable[[Tensor], Tensor]) -> None:
    """Refuse what would move or convert a packed weight; `model.cpu()` and the like change nothing."""
    probe = torch.empty(0)
    if change(probe).dtype != probe.dtype or change(probe).device != probe.device:
        raise RuntimeError("packed weights keep their dtype, on the CPU; load the network again as it should be")


@torch.inference_mode(False)
@torch.no_grad()
def _packed(weight: Tensor, bias: Tensor | None, precision: str, gelu: bool) -> Kernel:
    """A weight in the kernel of a precision."""
    if precision == "float32" and weight.dtype == torch.float16 and has_float16():
        precision = "float16"  # the same numbers in half the bytes
    elif precision == "bfloat16":
        weight = weight.bfloat16()
    kernel = kernel_for(precision, weight.size(1))
    becomes_float16 = weight.dtype != torch.float16 and (precision == "float16" or kernel is Float16)
    if becomes_float16 and float(torch.stack(weight.aminmax()).abs().max()) > LARGEST:
        _notice(f"a weight is beyond float16, whose largest number is {LARGEST:,}: its layer is kept in float32")
        precision, kernel = "float32", kernel_for("float32", weight.size(1))
    if kernel in (Float32, Plain) and precision == "float16":
        weight = weight.half()
    elif kernel in (Float32, Plain) and precision in ("int8", "int4"):
        levels, scale = quantized(weight)
        weight = levels * scale[:, None]
    return kernel(weight, bias, gelu)


def kernel_for(precision: str, inputs: int) -> type[Kernel]:
    """Choose the kernel of a precision for weights of so many inputs, or what comes nearest to it on this machine.

    Raises:
        ValueError: there is no such precision.
    """
    if precision not in CPU_PRECISIONS:
        raise ValueError(f"there is no precision {precision!r}; expected one of {', '.join(CPU_PRECISIONS)}")
    if precision == "int4" and has_int4() and inputs % GROUP == 0:
        return Int4
    if precision in ("int4", "int8") and has_int8():
        return Int8
    if precision in ("float16", "bfloat16") and has_float16():
        return Float16
    if precision == "bfloat16":
        return BFloat16
    return Float32 if has_onednn() else Plain


def has_onednn() -> bool:
    """Whether float32 weights can be packed; macOS has Accelerate instead, whose plain product is fast."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return _has(_pack_float, _linear_float) and available


def has_float16() -> bool:
    """Whether fbgemm's products of float16 weights run here."""
    return _has(_pack_float16, _linear_float16) and torch.cpu._is_avx2_supported()


def has_int8() -> bool:
    """Whether fbgemm's products of 8 bits run here, and are right.

    Without VNNI, fbgemm adds pairs of products in 16 bits, which 8-bit activations overflow.
    """
    return _has(_pack_int8, _linear_int8, _linear_scaled_int8) and torch.cpu._is_vnni_supported()


def has_int4() -> bool:
    """Whether torch has products of 4 bits."""
    return _has(_pack_int4, _linear_int4)


def _notice_substitutes(precision: str, model: GPT2) -> None:
    """Say once that another kernel takes the place of the one that was asked for."""
    inputs = {module.in_features for module in model.modules() if isinstance(module, nn.Linear)}
    for kernel in {kernel_for(precision, each) for each in inputs}:
        if precision == "int4" and kernel is Int8:
            _notice(f"there are no products of int4 here, or a width is no multiple of {GROUP}: int8 takes their place")
        elif precision in ("float16", "int8", "int4") and kernel in (Float32, Plain):
            _notice(
                f"this torch or processor has no products of {precision}: the weights are rounded, but kept in float32"
            )


class Kernel:
    """A product with a packed weight: (..., in) in float32 -> (..., out) in float32. It never changes."""

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool) -> None:
        """Pack a weight (out, in) with its bias (out,); `gelu` says whether a GELU follows."""
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply, add the bias where there is one, and apply the GELU where one follows."""
        raise NotImplementedError

    def __deepcopy__(self, _: object) -> Kernel:
        return self


class Plain(Kernel):
    """By `F.linear`, where there is no better one."""

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool) -> None:
        self.weight, self.bias, self.gelu = weight.float().contiguous(), bias, gelu

    def __call__(self, x: Tensor) -> Tensor:
        """See `Kernel`."""
        return _activated(F.linear(x, self.weight, self.bias), self.gelu)


class Float32(Kernel):
    """float32, by oneDNN."""

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool) -> None:
        self.weight: Tensor = _pack_float(weight.float().contiguous(), MANY_ROWS)
        self.bias = bias
        self.then: tuple[str, list[float], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")

    def __call__(self, x: Tensor) -> Tensor:
        """See `Kernel`."""
        rows = x.numel() // x.size(-1)
        if rows >= FEWEST_ROWS or rows == 0:
            return self.multiply(x)
        filled = torch.cat([x.reshape(rows, -1)] * FEWEST_ROWS)[:FEWEST_ROWS]  # (4, in)
        return self.multiply(filled)[:rows].view(*x.shape[:-1], -1)

    def multiply(self, x: Tensor) -> Tensor:
        """Any number of rows, as they come."""
        y: Tensor = _linear_float(x, self.weight, self.bias, *self.then)
        return y


class Float16(Kernel):
    """Weights of 16 bits, and all else in float32, by fbgemm.

    Every number of float16 is one of float32, so where a weight was stored in float16 this is the product in float32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool) -> None:
        self.packed = _pack_float16(weight.float().contiguous(), bias)
        self.gelu = gelu

    def __call__(self, x: Tensor) -> Tensor:
        """See `Kernel`."""
        if x.dim() == 1:
            return self(x[None])[0]
        return _activated(_linear_float16(x, self.packed), self.gelu)


class BFloat16(Kernel):
    """Weights of bfloat16, and activations rounded to it, by `F.linear`: where fbgemm is not, as on ARM."""

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool) -> None:
        self.weight, self.gelu = weight.bfloat16().contiguous(), gelu
        self.bias = None if bias is None else bias.bfloat16()

    def __call__(self, x: Tensor) -> Tensor:
        """See `Kernel`."""
        return _activated(F.linear(x.bfloat16(), self.weight, self.bias).float(), self.gelu)


class Int8(Kernel):
    """8 bits a weight with a scale for each output, and 8 bits an activation with a scale for each row, by fbgemm.

    A row is quantised by its own range, so that no row moves another: torch's operator takes one scale for all its
    rows, which is right for one row; of several, each is scaled beforehand.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool) -> None:
        self.gelu = gelu
        levels, scale = quantized(weight)
        parts = torch.split(levels, CHUNK)  # summed at once, they would become numbers of 8 bytes
        self.sums = scale * torch.cat([part.sum(dim=1) for part in parts])  # (out,)
        self.bias = torch.zeros_like(scale) if bias is None else bias
        zeros = torch.zeros(len(scale), dtype=torch.long)
        tensor = torch._make_per_channel_quantized_tensor(levels, scale.double(), zeros, 0)
        self.packed = _pack_int8(tensor, self.bias)

    def __call__(self, x: Tensor) -> Tensor:
        """See `Kernel`."""
        if x.dim() == 1:
            return self(x[None])[0]
        if x.numel() == x.size(-1):
            return _activated(_linear_int8(x, self.packed), self.gelu)
        low, high = x.aminmax(dim=-1, keepdim=True)  # (..., 1) each
        low, high = low.clamp(max=0), high.clamp(min=0)
        step = ((high - low) / 255).clamp(min=LEAST_STEP)
        shift = (-low / step).round() - 128  # so that the range takes the levels from 0 to 255
        y = _linear_scaled_int8(x / step + shift, 1.0, 128, self.packed)  # (..., out), in steps, the bias among it
        return _activated(torch.addcmul(self.bias, y - self.bias - shift * self.sums, step), self.gelu)


class Int4(Kernel):
    """4 bits a weight, with a scale and a middle for each group of 32; activations in bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool) -> None:
        self.gelu = gelu
        outputs, inputs = weight.shape
        padded = -(-outputs // INT4_ROWS) * INT4_ROWS
        packed = torch.empty(padded, inputs // 2, dtype=torch.uint8)
        scales = torch.zeros(inputs // GROUP, padded, 2, dtype=torch.bfloat16)
        for start in range(0, padded, CHUNK):
            part = weight[start : start + CHUNK].float()
            part = F.pad(part, (0, 0, 0, -len(part) % INT4_ROWS)).view(-1, inputs // GROUP, GROUP)  # (rows, groups, 32)
            low, high = part.aminmax(dim=2, keepdim=True)
            scale = ((high - low) / 15).clamp(min=1e-8).bfloat16().float()
            middle = (low + 8 * scale).bfloat16().float()
            levels = ((part - middle) / scale).round().add(8).clamp(0, 15).flatten(1)
            stop = start + len(part)
            packed[start:stop] = _pack_int4(levels.int(), 1)
            scales[:, start:stop] = torch.cat([scale, middle], dim=2).transpose(0, 1)
        self.packed, self.scales, self.outputs, self.bias = packed, scales, outputs, bias

    def __call__(self, x: Tensor) -> Tensor:
        """See `Kernel`."""
        y = _linear_int4(x.reshape(-1, x.size(-1)).bfloat16(), self.packed, GROUP, self.scales)  # (rows, padded)
        y = y[:, : self.outputs].float().view(*x.shape[:-1], self.outputs)
        return _activated(y if self.bias is None else y + self.bias, self.gelu)


def _activated(y: Tensor, gelu: bool) -> Tensor:
    return F.gelu(y, approximate="tanh") if gelu else y


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight in 8 bits: levels from -127 to 127 (out, in), and what one is worth in each row (out,)."""
    levels = torch.empty(weight.shape, dtype=torch.int8)
    scale = torch.empty(len(weight))
    for start in range(0, len(weight), CHUNK):
        part = weight[start : start + CHUNK].float()
        low, high = part.aminmax(dim=1)
        worth = torch.maximum(-low, high).clamp(min=1e-30) / 127
        levels[start : start + CHUNK] = (part / worth[:, None]).round()
        scale[start : start + CHUNK] = worth
    return levels, scale


def _operator(library: str, name: str) -> Any:
    """One of torch's operators, or None where this torch has none of that name."""
    operator = getattr(getattr(torch.ops, library), name, None)
    return None if operator is None else operator.default


_pack_float = _operator("mkldnn", "_reorder_linear_weight")
_linear_float = _operator("mkldnn", "_linear_pointwise")
_pack_float16 = _operator("quantized", "linear_prepack_fp16")
_linear_float16 = _operator("quantized", "linear_dynamic_fp16")
_pack_int8 = _operator("quantized", "linear_prepack")
_linear_int8 = _operator("quantized", "linear_dynamic")
_linear_scaled_int8 = _operator("quantized", "linear_with_input_q_dq_qweight_dq_output_fp32")
_pack_int4 = _operator("aten", "_convert_weight_to_int4pack_for_cpu")
_linear_int4 = _operator("aten", "_weight_int4pack_mm_for_cpu")


def _has(*operators: Any) -> bool:
    return None not in operators


@functools.cache
def _suppress_deprecation() -> None:
    """Use up the warning that torch gives once a process: it will drop quantized tensors, whose kernel is the fastest.

    It is suppressed while a network is prepared: filters of warnings belong to the whole process, and a forward pass,
    which packs, may run in many threads.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._make_per_channel_quantized_tensor(
            torch.zeros(1, 1, dtype=torch.int8), torch.ones(1).double(), torch.zeros(1, dtype=torch.long), 0
        )


@functools.cache
def _notice(text: str) -> None:
    """Say something once."""
    logger.warning("%s", text)
