"""The kernel of each precision on this machine: a fixed table, so that a seed gives the same reply every time.

The kernels, and the check whether one runs here, are left to `kernels.py`. `dialogpt bench --kernels` measures all
of them and says where the machine contradicts the table; ``DIALOGPT_KERNELS=float32=plain,int8=fbgemm-int8-7-bit``
overrides it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from types import MappingProxyType

import torch

from dialogpt.model.precision.kernels import (
    BFloat16,
    BFloat16SixRows,
    BFloat16Widened,
    Float16,
    Float32,
    Float32Blocks,
    Float32SixRows,
    Int4,
    Int8,
    Int8SevenBit,
    Int8Weights,
    Kernel,
    Plain,
)

CPU_PRECISIONS = ("float32", "bfloat16", "float16", "int8", "int4")
FLOAT32_OF_FLOAT16 = "float32 of float16"  # float32 for weights that are stored in float16, as DialoGPT's are
VARIABLE = "DIALOGPT_KERNELS"
Kernels = tuple[type[Kernel], ...]

# For each capability, the kernels of a precision, the fastest first; the first one that runs here is used. A kernel
# that computes wrong results counts as not running, so VNNI, which 8-bit products need, is no capability of its own. If
# none runs, weights are rounded to the precision and multiplied by float32's kernel. AVX512-BF16 and AVX2 were measured
# (docs/benchmarks.md); the other rows follow from which instructions and operators exist there.
_X86: dict[str, Kernels] = {
    "float32": (Float32, Plain),
    FLOAT32_OF_FLOAT16: (Float16, Float32, Plain),
    "bfloat16": (Float16, BFloat16Widened),
    "float16": (Float16,),
    "int8": (Int8, Int8SevenBit, Int8Weights),
    "int4": (Int4, Int8, Int8SevenBit),
}
_AVX512: dict[str, Kernels] = _X86 | {
    "float32": (Float32SixRows, Plain),
    FLOAT32_OF_FLOAT16: (Float16, Float32SixRows, Plain),
}
_OTHER: dict[str, Kernels] = _X86 | {"int8": (Int8Weights,), "int4": (Int4, Int8Weights)}
TABLE: Mapping[str, Mapping[str, Kernels]] = MappingProxyType(
    {
        "AVX512": _AVX512,
        # The fastest for prompts and batches: of two precisions of 16 bits, float16 is the fastest for one dialogue.
        "AVX512-BF16": _AVX512 | {"bfloat16": (BFloat16SixRows, Float16, BFloat16Widened)},
        "AVX2": _X86
        | {
            "float32": (Float32Blocks, Float32, Plain),
            FLOAT32_OF_FLOAT16: (Float16, Float32Blocks, Float32, Plain),
        },
        "ARM": _OTHER,
        "ARM-BF16": _OTHER | {"bfloat16": (BFloat16,)},
        "Accelerate": _OTHER | {"float32": (Plain,), FLOAT32_OF_FLOAT16: (Plain,)},
        "other": _OTHER,
    }
)


def capability() -> str:
    """Return the row of `TABLE` for this processor as torch uses it (ATEN_CPU_CAPABILITY=avx2 hides AVX-512)."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        if platform.system() == "Darwin":
            return "Accelerate"
        return "ARM-BF16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "ARM"
    found: str = torch.backends.cpu.get_cpu_capability()
    # The check is private to torch: without it, `bool` says no.
    if found == "AVX512" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)():
        return "AVX512-BF16"
    return found if found in TABLE else "other"


def kernel_for(precision: str, inputs: int, *, for_logits: bool = False) -> type[Kernel] | None:
    """Choose the kernel of a precision for weights of so many inputs; None where no kernel of it runs here.

    Args:
        precision: one of `CPU_PRECISIONS`, or `FLOAT32_OF_FLOAT16`; for float32 there is always one.
        inputs: a kernel may need a multiple of some number.
        for_logits: whether results are logits: kernels that do not suit an output head come after all others.

    Raises:
        ValueError: there is no such precision, or `DIALOGPT_KERNELS` asks for what cannot be.
    """
    row = TABLE[capability()]
    if precision not in row:
        raise ValueError(f"there is no precision {precision!r}; expected one of {', '.join(CPU_PRECISIONS)}")
    chosen = overrides(os.environ.get(VARIABLE, "")).get(precision)
    ordered = row[precision] if chosen is None else (chosen, *row[precision])
    if for_logits:
        ordered = tuple(sorted(ordered, key=lambda each: not each.suits_head))
    return next((each for each in ordered if inputs % each.group == 0 and each.runs_here()), None)


def candidates(precision: str) -> Kernels:
    """Return all kernels of a precision, on any processor, in the order of the table."""
    return tuple(dict.fromkeys(kernel for row in TABLE.values() for kernel in row[precision]))


def overrides(text: str) -> dict[str, type[Kernel]]:
    """Parse ``precision=kernel,...``; float32's kernel is also that of `FLOAT32_OF_FLOAT16`, unless it has its own.

    Raises:
        ValueError: an entry names no precision, none of its kernels, or one that does not run here.
    """
    found: dict[str, type[Kernel]] = {}
    for entry in filter(None, map(str.strip, text.split(","))):
        precision, _, name = map(str.strip, entry.partition("="))
        if precision not in TABLE["other"]:
            raise ValueError(
                f"{VARIABLE}: {entry!r} is none of {', '.join(TABLE['other'])}, an equals sign and a kernel"
            )
        names = {kernel.name: kernel for kernel in candidates(precision)}
        if name not in names:
            raise ValueError(f"{VARIABLE}: {precision} has no kernel {name!r}; expected one of {', '.join(names)}")
        if not names[name].runs_here():
            raise ValueError(f"{VARIABLE}: the kernel {name} does not run on this machine; remove {entry!r}")
        found[precision] = names[name]
    if "float32" in found:
        found.setdefault(FLOAT32_OF_FLOAT16, found["float32"])
    return found
