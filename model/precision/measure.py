"""Time every kernel that runs here, and compare the fastest with the one that `choice.py` names."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dialogpt.model.config import GPT2Config
from dialogpt.model.precision.choice import FLOAT32_OF_FLOAT16, TABLE, VARIABLE, candidates, kernel_for
from dialogpt.model.precision.kernels import Kernel

BLOCKS = 3  # of a network that are measured, with its head: more than a processor's cache holds
MANY_ROWS = 64  # a short prompt
CLEARLY = 0.9  # a kernel contradicts the table when it takes less than this share of the time


@dataclass(frozen=True)
class Timing:
    """The measurement of one kernel of one precision.

    Attributes:
        precision: a row of `choice.TABLE`.
        kernel: its name.
        chosen: whether the table, or `DIALOGPT_KERNELS`, uses it here.
        one_row_ms: median milliseconds for one row through some blocks' products and the head's; None: it does not run.
        many_rows_ms: the same with `MANY_ROWS` rows.
    """

    precision: str
    kernel: str
    chosen: bool
    one_row_ms: float | None
    many_rows_ms: float | None


@torch.no_grad()
def measure_kernels(config: GPT2Config, rounds: int = 9) -> Iterator[list[Timing]]:
    """Time the kernels of one precision after another, with random weights of a network's shapes.

    Args:
        config: its widths and vocabulary count, not its number of blocks.
        rounds: the kernels of a precision take turns, as machines are shared; medians are of so many turns.
    """
    generator = torch.Generator().manual_seed(0)
    C, inner = config.n_embd, config.inner_dim
    shapes = [(3 * C, C), (C, C), (inner, C), (C, inner)] * BLOCKS + [(config.vocab_size, C)]  # (out, in) each
    weights = [torch.randn(shape, generator=generator).mul_(0.02) for shape in shapes]
    for precision in TABLE["other"]:
        chosen = kernel_for(precision, C)
        runnable = [kernel for kernel in candidates(precision) if kernel.runs_here() and not C % kernel.group]
        rounded = [weight.half() if precision == FLOAT32_OF_FLOAT16 else weight for weight in weights]
        of_head = kernel_for(precision, C, for_logits=True)
        products = {
            kernel: [
                *(kernel(weight, None, gelu=False) for weight in rounded[:-1]),
                (kernel if kernel.suits_head or of_head is None else of_head)(rounded[-1], None, gelu=False),
            ]
            for kernel in runnable
        }
        one, many = (_medians(products, weights, rows, rounds) for rows in (1, MANY_ROWS))
        yield [
            Timing(precision, kernel.name, kernel is chosen, one.get(kernel), many.get(kernel))
            for kernel in candidates(precision)
        ]


def _medians(
    products: dict[type[Kernel], list[Kernel]], weights: list[Tensor], rows: int, rounds: int
) -> dict[type[Kernel], float]:
    """Median milliseconds that each kernel takes for all products with so many rows."""
    inputs = {weight.size(1): torch.randn(1, rows, weight.size(1)) for weight in weights}
    seconds: dict[type[Kernel], list[float]] = {kernel: [] for kernel in products}
    for turn in range(rounds + 1):  # the first is not counted
        for kernel, packed in products.items():
            start = time.perf_counter()
            for product, weight in zip(packed, weights, strict=True):
                product(inputs[weight.size(1)])
            if turn:
                seconds[kernel].append(time.perf_counter() - start)
    return {kernel: 1e3 * statistics.median(times) for kernel, times in seconds.items()}


def contradictions(timings: list[Timing]) -> list[str]:
    """One sentence for each kernel that is clearly faster than the chosen one for one row, and not slower for many."""
    used = next((timing for timing in timings if timing.chosen), None)
    if used is None or used.one_row_ms is None or used.many_rows_ms is None:
        return []
    return [
        f"{each.precision}: {each.kernel} takes {each.one_row_ms / used.one_row_ms:.2f} of the time of {used.kernel} "
        f"for one row and {each.many_rows_ms / used.many_rows_ms:.2f} for {MANY_ROWS}. To use it, set "
        f"{VARIABLE}='{each.precision}={each.kernel}'"
        for each in timings
        if each.one_row_ms is not None
        and each.many_rows_ms is not None
        and each.one_row_ms < CLEARLY * used.one_row_ms
        and each.many_rows_ms < used.many_rows_ms / CLEARLY
    ]
