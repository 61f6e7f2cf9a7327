"""Which kernel a precision uses on this machine. How each multiplies is left to `kernels.py`."""

from __future__ import annotations

from dialogpt.model.precision.kernels import GROUP, BFloat16, Float16, Float32, Int4, Int8, Kernel, Plain

CPU_PRECISIONS = ("float32", "bfloat16", "float16", "int8", "int4")


def kernel_for(precision: str, inputs: int) -> type[Kernel]:
    """Choose the kernel of a precision for weights of so many inputs, or what comes nearest to it on this machine.

    Raises:
        ValueError: there is no such precision.
    """
    if precision not in CPU_PRECISIONS:
        raise ValueError(f"there is no precision {precision!r}; expected one of {', '.join(CPU_PRECISIONS)}")
    if precision == "int4" and Int4.runs_here() and inputs % GROUP == 0:
        return Int4
    if precision in ("int4", "int8") and Int8.runs_here():
        return Int8
    if precision in ("float16", "bfloat16") and Float16.runs_here():
        return Float16
    if precision == "bfloat16":
        return BFloat16
    return Float32 if Float32.runs_here() else Plain
