"""The products: one class each, which packs a weight for one of torch's fast operators and says whether that runs here.

A decoding step reads every weight once, so its floor is weight bytes over memory bandwidth; `F.linear` in float32
reaches a third of that for one row. Some of the operators below are private to torch, and a processor may lack the
instructions of others, hence `runs_here`. Which kernel a precision uses is left to `choice.py`.

A product takes float32 and gives float32, in every precision: on a CPU, attention and norms in float32 are the fastest,
and the most exact. It changes no setting of the process, so any number of threads may share a network.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PACKED_FOR_ROWS = 64  # float32 weights are packed for many rows; for one row that is within 5 % of packed for one
MIN_ROWS = 4  # oneDNN reads a weight at 30 GB/s for one row and at 36 for four
CHUNK = 256  # rows of a weight that are rounded at a time, so that a head of 150 MB is not in memory twice for int8
GROUP = 32  # weights that share a scale in int4
INT4_OUTPUTS = 64  # what its kernel packs together
MIN_SCALE = 6.1e-5  # what fbgemm uses for a smaller scale of activations (SMALL_SCALE_THRESHOLD)


class Kernel:
    """A product with a packed weight: (..., in) in float32 -> (..., out) in float32. It is immutable."""

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool) -> None:
        """Pack a weight (out, in) with its bias (out,); `gelu` says whether a GELU follows."""
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply, add the bias where there is one, and apply the GELU where one follows."""
        raise NotImplementedError

    @classmethod
    def runs_here(cls) -> bool:
        """Whether this torch and this processor have the product, and compute it right."""
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

    @classmethod
    def runs_here(cls) -> bool:
        """Everywhere."""
        return True


class Float32(Kernel):
    """float32, packed for oneDNN, with the GELU in the same pass; macOS has Accelerate, with which `Plain` is fast."""

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool) -> None:
        self.weight: Tensor = _pack_float32(weight.float().contiguous(), PACKED_FOR_ROWS)
        self.bias = bias
        self.activation: tuple[str, list[float], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")

    def __call__(self, x: Tensor) -> Tensor:
        """See `Kernel`."""
        rows = x.numel() // x.size(-1)
        if rows >= MIN_ROWS or rows == 0:
            return self.multiply(x)
        filled = torch.cat([x.reshape(rows, -1)] * MIN_ROWS)[:MIN_ROWS]  # (4, in)
        return self.multiply(filled)[:rows].view(*x.shape[:-1], -1)

    def multiply(self, x: Tensor) -> Tensor:
        """Multiply any number of rows as they are."""
        y: Tensor = _linear_float32(x, self.weight, self.bias, *self.activation)
        return y

    @classmethod
    def runs_here(cls) -> bool:
        """Where torch was built with oneDNN."""
        available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return _all_exist(_pack_float32, _linear_float32) and available


class Float16(Kernel):
    """Weights of 16 bits, and everything else in float32, by fbgemm.

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

    @classmethod
    def runs_here(cls) -> bool:
        """On x86 with AVX2."""
        return _all_exist(_pack_float16, _linear_float16) and torch.cpu._is_avx2_supported()


class BFloat16(Kernel):
    """Weights of bfloat16, and activations rounded to it, by `F.linear`: where fbgemm is not, as on ARM."""

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool) -> None:
        self.weight, self.gelu = weight.bfloat16().contiguous(), gelu
        self.bias = None if bias is None else bias.bfloat16()

    def __call__(self, x: Tensor) -> Tensor:
        """See `Kernel`."""
        return _activated(F.linear(x.bfloat16(), self.weight, self.bias).float(), self.gelu)

    @classmethod
    def runs_here(cls) -> bool:
        """Everywhere."""
        return True


class Int8(Kernel):
    """8 bits a weight with a scale for each output, and 8 bits an activation with a scale for each row, by fbgemm.

    A row is quantized by its own range, so that no row changes another. torch's dynamic operator quantizes all rows by
    one range, which is right for one row. Several rows are quantized here instead: a row x becomes levels
    ``q = round(x / scale + zero_point)`` from 0 to 255, so that ``x = scale * (q - zero_point)`` but for rounding. The
    operator is given ``x / scale + zero_point - 128`` with scale 1 and zero point 128, rounds to q, and returns
    ``(q - 128) @ W.T + bias``. Of that, ``(zero_point - 128) * W.sum(dim=1)`` is too much, and the rest is in units of
    the row's scale.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool) -> None:
        self.gelu = gelu
        levels, scale = quantized(weight)
        parts = torch.split(levels, CHUNK)  # summed at once, they would become numbers of 8 bytes
        self.weight_sums = scale * torch.cat([part.sum(dim=1) for part in parts])  # (out,)
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
        scale = ((high - low) / 255).clamp(min=MIN_SCALE)
        offset = (-low / scale).round() - 128  # the zero point, less what the operator adds
        y = _linear_scaled_int8(x / scale + offset, 1.0, 128, self.packed)  # (..., out), in units of scale, plus bias
        return _activated(torch.addcmul(self.bias, y - self.bias - offset * self.weight_sums, scale), self.gelu)

    @classmethod
    def runs_here(cls) -> bool:
        """On x86 with VNNI: without it fbgemm adds pairs of products in 16 bits, which 8-bit activations overflow."""
        return _all_exist(_pack_int8, _linear_int8, _linear_scaled_int8) and torch.cpu._is_vnni_supported()


class Int4(Kernel):
    """4 bits a weight, with a scale and a middle for each group of 32; activations in bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool) -> None:
        self.gelu = gelu
        outputs, inputs = weight.shape
        padded = -(-outputs // INT4_OUTPUTS) * INT4_OUTPUTS
        packed = torch.empty(padded, inputs // 2, dtype=torch.uint8)
        scales = torch.zeros(inputs // GROUP, padded, 2, dtype=torch.bfloat16)
        for start in range(0, padded, CHUNK):
            part = weight[start : start + CHUNK].float()
            part = F.pad(part, (0, 0, 0, -len(part) % INT4_OUTPUTS)).view(
                -1, inputs // GROUP, GROUP
            )  # (rows, groups, 32)
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

    @classmethod
    def runs_here(cls) -> bool:
        """Wherever this torch has its operators."""
        return _all_exist(_pack_int4, _linear_int4)


def _activated(y: Tensor, gelu: bool) -> Tensor:
    return F.gelu(y, approximate="tanh") if gelu else y


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a weight to 8 bits: levels from -127 to 127 (out, in), and the scale of each output (out,)."""
    levels = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(len(weight))
    for start in range(0, len(weight), CHUNK):
        part = weight[start : start + CHUNK].float()
        low, high = part.aminmax(dim=1)
        scale = torch.maximum(-low, high).clamp(min=1e-30) / 127
        levels[start : start + CHUNK] = (part / scale[:, None]).round()
        scales[start : start + CHUNK] = scale
    return levels, scales


def _operator(library: str, name: str) -> Any:
    """One of torch's operators, or None where this torch has none of that name."""
    operator = getattr(getattr(torch.ops, library), name, None)
    return None if operator is None else operator.default


_pack_float32 = _operator("mkldnn", "_reorder_linear_weight")
_linear_float32 = _operator("mkldnn", "_linear_pointwise")
_pack_float16 = _operator("quantized", "linear_prepack_fp16")
_linear_float16 = _operator("quantized", "linear_dynamic_fp16")
_pack_int8 = _operator("quantized", "linear_prepack")
_linear_int8 = _operator("quantized", "linear_dynamic")
_linear_scaled_int8 = _operator("quantized", "linear_with_input_q_dq_qweight_dq_output_fp32")
_pack_int4 = _operator("aten", "_convert_weight_to_int4pack_for_cpu")
_linear_int4 = _operator("aten", "_weight_int4pack_mm_for_cpu")


def _all_exist(*operators: Any) -> bool:
    return None not in operators
