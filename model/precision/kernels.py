"""The kernels: each class packs a weight for one of torch's fast operators and checks whether that runs here.

A decoding step reads every weight once, so its floor is weight bytes over memory bandwidth; `F.linear` in float32
reaches a third of that for one row. Which kernel a precision uses is left to `choice.py`.

Inputs and outputs are float32 in every precision: on a CPU, attention and norms are fastest in float32, and most exact.
A kernel changes no setting of the process, so any number of threads may share a network.
"""

from __future__ import annotations

import functools
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

PACKED_FOR_ROWS = 64  # float32 weights are packed for many rows; for one row this is within 5 % of packing for one
BLOCKS = 8  # 4 to 16 take the same time on two cores
PACKING_THREADS = 4  # each needs a copy of its weight in float32 meanwhile
PACKED_OUTPUTS = 8192  # fbgemm packs a head of 50,257 outputs at once in three times the time, with no faster product
CHUNK = 256  # rows of a weight that are rounded at a time, so that a head of 150 MB is not in memory twice for int8
GROUP = 32  # weights that share a scale in int4
INT4_OUTPUTS = 64  # what its kernel packs together
MIN_SCALE = 6.1e-5  # what fbgemm uses for a smaller scale of activations (SMALL_SCALE_THRESHOLD)


class Kernel:
    """A product with a packed weight: (..., in) in float32 -> (..., out) in float32. It is immutable.

    Attributes:
        name: what `DIALOGPT_KERNELS` and `dialogpt bench --kernels` call it.
        max_error: the largest error of a product of the probe's numbers, relative to the largest result.
        group: the number of inputs is a multiple of it.
        bits: what it reads of a weight; 32 where it is no faster than float32.
        suits_head: whether it is good for logits. Not if results are rounded to bfloat16, in which logits of -100 would
            be half a nat apart, or if another one is faster for a head's many outputs.
    """

    name: ClassVar[str]
    bits: ClassVar[float] = 32
    max_error: ClassVar[float] = 1e-5
    group: ClassVar[int] = 1
    suits_head: ClassVar[bool] = True

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool) -> None:
        """Pack a weight (out, in) with its bias (out,); `gelu` says whether a GELU follows."""
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply, add the bias where there is one, and apply the GELU where one follows."""
        raise NotImplementedError

    @classmethod
    @functools.cache
    @torch.inference_mode(False)
    @torch.no_grad()
    def runs_here(cls) -> bool:
        """Whether the kernel computes a known product correctly on this machine; the result is cached.

        torch's capability flags do not say so: some of the operators are private and missing from other builds, some
        refuse a processor when they are called, and 8-bit products overflow silently without VNNI. A third of the
        weights are the largest of their output, and all activations are positive: these products overflow first.
        """
        weight, x = _probe()
        expected = F.linear(x.double(), weight.double())
        try:
            with warnings.catch_warnings():  # torch will drop quantized tensors, and says so once a process
                warnings.simplefilter("ignore")
                kernel = cls(weight, None, gelu=False)
                found = torch.cat([kernel(x), kernel(x[:1])])
        except Exception:  # every backend raises another type
            return False
        error = (found - torch.cat([expected, expected[:1]])).abs().max() / expected.abs().max()
        return bool(error <= cls.max_error)  # false for NaN

    def __deepcopy__(self, _: object) -> Kernel:
        return self


class Plain(Kernel):
    """`F.linear`, the fallback."""

    name = "plain"

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool) -> None:
        self.weight, self.bias, self.gelu = weight.float().contiguous(), bias, gelu

    def __call__(self, x: Tensor) -> Tensor:
        """See `Kernel`."""
        return _activated(F.linear(x, self.weight, self.bias), self.gelu)


class OneDNN(Kernel):
    """A weight packed for oneDNN, with the GELU in the same pass.

    Attributes:
        min_rows: fewer rows are filled up with copies of themselves.
    """

    min_rows: ClassVar[int] = 1
    dtype: ClassVar[torch.dtype] = torch.float32

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool) -> None:
        self.weight: Tensor = _pack_onednn(weight.to(self.dtype).contiguous(), PACKED_FOR_ROWS)
        self.bias = bias
        self.activation: tuple[str, list[float], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")

    def __call__(self, x: Tensor) -> Tensor:
        """See `Kernel`."""
        rows = x.numel() // x.size(-1)
        if rows >= self.min_rows or rows == 0:
            return self.multiply(x)
        if rows == 1 and x.dim() > 1:  # the commonest, with the fewest calls
            return self.multiply(torch.cat((x,) * self.min_rows))[:1]
        filled = torch.cat([x.reshape(rows, -1)] * self.min_rows)[: self.min_rows]  # (min_rows, in)
        return self.multiply(filled)[:rows].view(*x.shape[:-1], -1)

    def multiply(self, x: Tensor) -> Tensor:
        """Multiply any number of rows as they are."""
        y: Tensor = _linear_onednn(x, self.weight, self.bias, *self.activation)
        return y


class Float32(OneDNN):
    """float32; macOS has Accelerate, with which `Plain` is fast."""

    name = "onednn"


class Float32SixRows(Float32):
    """The same with at least six rows: oneDNN's kernels for AVX-512 read a weight fastest for five and six.

    23 GB/s, where four rows reach 20 to 21, and one, three, seven and eight 19 (AMD EPYC, two cores).
    """

    name = "onednn-6-rows"
    min_rows = 6


class Float32Blocks(Kernel):
    """float32 as the checkpoint has it, in blocks of outputs that torch multiplies as a batch of matrices.

    For one row `F.linear` uses one thread, a batch several: 23 GB/s, where oneDNN's product reaches 20 (AMD Zen 3,
    two cores). For the products of a block both are level from eight rows on; for two to seven this takes 1.2 of the
    time, and several rows of a head 1.6 to 2.4. The weight is copied, as a file may be overwritten, or hold it at an
    address that changes the last bits. A GELU follows by itself: in oneDNN's product with AVX2 it makes 64 rows take
    1.3 of the time.
    """

    name = "blocks"
    suits_head = False

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool) -> None:
        outputs, inputs = weight.shape
        size = outputs // BLOCKS
        whole = BLOCKS * size
        weight = weight.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        bias = torch.zeros(outputs) if bias is None else bias.float()
        self.weight, self.rest = weight[:whole].view(BLOCKS, size, inputs).mT, weight[whole:]
        self.bias, self.rest_bias = bias[:whole].view(BLOCKS, 1, size), bias[whole:]
        self.whole, self.gelu = whole, gelu

    def __call__(self, x: Tensor) -> Tensor:
        """See `Kernel`."""
        rows = x.reshape(1, -1, x.size(-1)).expand(BLOCKS, -1, -1)  # (BLOCKS, rows, in)
        blocks = torch.baddbmm(self.bias, rows, self.weight)  # (BLOCKS, rows, out / BLOCKS)
        y = blocks.transpose(0, 1).reshape(*x.shape[:-1], self.whole)  # (..., out)
        if len(self.rest):
            y = torch.cat((y, F.linear(x, self.rest, self.rest_bias)), dim=-1)
        return _activated(y, self.gelu)


class BFloat16SixRows(OneDNN):
    """bfloat16, and activations rounded to it, packed for oneDNN: for a processor with instructions for bfloat16.

    From eight rows on it is faster than `Float16`, and takes half its time for 64 and more; for one row, 1.2 of it.
    """

    name = "onednn-bfloat16"
    bits = 16
    max_error = 2e-2
    suits_head = False
    min_rows = 6
    dtype = torch.bfloat16

    def __call__(self, x: Tensor) -> Tensor:
        """See `Kernel`."""
        return super().__call__(x.bfloat16()).float()


class Float16(Kernel):
    """Weights of 16 bits, and everything else in float32, by fbgemm.

    Every number of float16 is one of float32, so where a weight was stored in float16 this is the product in float32.
    """

    name = "fbgemm-float16"
    bits = 16
    max_error = 1e-3

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool) -> None:
        self.gelu = gelu
        biases = repeat(None) if bias is None else torch.split(bias, PACKED_OUTPUTS)
        with packing_threads() as pool:
            parts = torch.split(weight, PACKED_OUTPUTS)
            self.packed = [*pool.map(lambda part, own: _pack_float16(part.float().contiguous(), own), parts, biases)]

    def __call__(self, x: Tensor) -> Tensor:
        """See `Kernel`."""
        if x.dim() == 1:
            return self(x[None])[0]
        if len(self.packed) == 1:
            return _activated(_linear_float16(x, self.packed[0]), self.gelu)
        return _activated(torch.cat([_linear_float16(x, part) for part in self.packed], dim=-1), self.gelu)


class BFloat16(Kernel):
    """Weights of bfloat16, and activations rounded to it, by `F.linear`: where fbgemm is not, as on ARM."""

    name = "bfloat16"
    bits = 16
    max_error = 2e-2
    suits_head = False

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool) -> None:
        self.weight, self.gelu = weight.bfloat16().contiguous(), gelu
        self.bias = None if bias is None else bias.bfloat16()

    def __call__(self, x: Tensor) -> Tensor:
        """See `Kernel`."""
        return _activated(F.linear(x.bfloat16(), self.weight, self.bias).float(), self.gelu)


class BFloat16Widened(BFloat16):
    """The same for a processor without instructions for bfloat16: many rows are multiplied in float32.

    A few hundred outputs at a time are widened, so that memory stays that of bfloat16. For 64 rows this takes a third
    of the time of torch's own product, which converts again and again there; below eight rows that one is faster.
    """

    name = "bfloat16-widened"
    min_rows: ClassVar[int] = 8

    def __call__(self, x: Tensor) -> Tensor:
        """See `Kernel`."""
        if x.numel() < self.min_rows * x.size(-1):
            return super().__call__(x)
        y = torch.cat([F.linear(x, chunk.float()) for chunk in torch.split(self.weight, CHUNK)], dim=-1)  # (..., out)
        return _activated(y if self.bias is None else y.add_(self.bias), self.gelu)


class Int8(Kernel):
    """8 bits a weight with a scale for each output, and 8 bits an activation with a scale for each row, by fbgemm.

    A row is quantized by its own range, so that no row changes another. torch's dynamic operator quantizes all rows by
    one range, which is right for one row. Several rows are quantized here instead: a row x becomes levels
    ``q = round(x / scale + zero_point)`` from 0 to 255, so that ``x = scale * (q - zero_point)`` but for rounding. The
    operator is given ``x / scale + zero_point - 128`` with scale 1 and zero point 128, rounds to q, and returns
    ``(q - 128) @ W.T + bias``. Of that, ``(zero_point - 128) * W.sum(dim=1)`` is too much, and the rest is in units of
    the row's scale.
    """

    name = "fbgemm-int8"
    bits = 8
    max_error = 2e-2
    levels: ClassVar[int] = 255  # the largest level of an activation

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
            return _activated(_linear_int8(x, self.packed, self.levels < 255), self.gelu)
        # `aminmax` along a dimension takes 20 times as long as both of these.
        low, high = x.amin(dim=-1, keepdim=True).clamp_(max=0), x.amax(dim=-1, keepdim=True).clamp_(min=0)  # (..., 1)
        scale = ((high - low) / self.levels).clamp_(min=MIN_SCALE)
        offset = (-low / scale).round_() - 128  # the zero point, less what the operator adds
        y = _linear_scaled_int8((x / scale).add_(offset), 1.0, 128, self.packed)  # (..., out), by scale, + bias
        # scale * (y - bias - offset * weight_sums) + bias, in place: 512 rows of small's fill 6 MB
        y.mul_(scale).addcmul_(1 - scale, self.bias).addcmul_(scale * offset, self.weight_sums, value=-1)
        return _activated(y, self.gelu)


class Int8SevenBit(Int8):
    """The same with 7 bits an activation, for a processor without VNNI.

    There fbgemm adds pairs of products in 16 bits: 2 x 127 x 127 fits below 32,768, and 2 x 255 x 127 does not.
    """

    name = "fbgemm-int8-7-bit"
    levels = 127


class Int8Weights(Kernel):
    """8 bits a weight with a scale for each output, and activations in bfloat16, by torch's own kernel.

    It is slower than `Int8`, and as slow as float32 where only this one runs: it saves memory.
    """

    name = "int8-weights"
    max_error = 2e-2
    group = 32  # it reads vectors beyond the end of rows of 8 or 24, and crashes

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool) -> None:
        self.levels, scales = quantized(weight)
        self.scales, self.bias, self.gelu = scales.bfloat16(), bias, gelu

    def __call__(self, x: Tensor) -> Tensor:
        """See `Kernel`."""
        y = _linear_int8_weights(x.reshape(-1, x.size(-1)).bfloat16(), self.levels, self.scales)  # (rows, out)
        y = y.float().view(*x.shape[:-1], len(self.levels))
        return _activated(y if self.bias is None else y + self.bias, self.gelu)


class Int4(Kernel):
    """4 bits a weight, with a scale and a middle for each group of 32; activations in bfloat16."""

    name = "int4"
    bits = 5  # a scale and a middle of 16 bits for 32 weights
    max_error = 1e-1
    group = GROUP

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


def _probe() -> tuple[Tensor, Tensor]:
    """A weight (96, 64) and activations (5, 64) in which large products of one sign meet."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 64, generator=generator).clamp(-3, 3)
    weight[:32] = 3.0
    return weight, torch.rand(5, 64, generator=generator) + 1.0


def packing_threads() -> ThreadPoolExecutor:
    """Threads to pack weights in, as fbgemm packs in one."""
    return ThreadPoolExecutor(min(PACKING_THREADS, torch.get_num_threads()))


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
    if operator is None:
        return None
    return getattr(operator.default, "_op", operator.default)  # a call without torch's dispatch in Python, 3 us less


_pack_onednn = _operator("mkldnn", "_reorder_linear_weight")
_linear_onednn = _operator("mkldnn", "_linear_pointwise")
_pack_float16 = _operator("quantized", "linear_prepack_fp16")
_linear_float16 = _operator("quantized", "linear_dynamic_fp16")
_pack_int8 = _operator("quantized", "linear_prepack")
_linear_int8 = _operator("quantized", "linear_dynamic")
_linear_scaled_int8 = _operator("quantized", "linear_with_input_q_dq_qweight_dq_output_fp32")
_linear_int8_weights = _operator("aten", "_weight_int8pack_mm")
_pack_int4 = _operator("aten", "_convert_weight_to_int4pack_for_cpu")
_linear_int4 = _operator("aten", "_weight_int4pack_mm_for_cpu")
