"""Check the values of tensors: NaN, infinity, and whether two hold the same numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from dialogpt.weights.formats.tensors import CheckpointError, StoredTensor

_ROWS = 4096  # of a matrix that are compared at a time


def non_finite(stored: StoredTensor, values: Tensor) -> list[str]:
    """The sentence about a tensor's values that are NaN or infinite; none where all are finite."""
    count = count_non_finite(values)
    return [f"{stored.name} holds {count:,} values that are NaN or infinite"] if count else []


def find_damage(tensors: Iterable[StoredTensor]) -> list[str]:
    """Read tensors one by one; returns a sentence for each that holds NaN or infinity."""
    return [problem for stored in tensors for problem in non_finite(stored, stored.read())]


def refuse(path: object, problems: list[str]) -> None:
    """Refuse a checkpoint whose values are damaged.

    Raises:
        CheckpointError: there are problems; all are named.
    """
    if problems:
        raise CheckpointError(f"{path} cannot be used: {'; '.join(problems)}. Fetch it again")


def equal_values(left: Tensor, right: Tensor) -> bool:
    """Whether all values are the same, in the dtype that holds both."""
    dtype = torch.promote_types(left.dtype, right.dtype)
    return torch.equal(left.to(dtype), right.to(dtype))


def same_values(left: StoredTensor, right: StoredTensor) -> bool:
    """Whether two stored matrices of one shape hold the same numbers; read in chunks of rows, up to a difference."""
    one, other = left.read(), right.read()
    rows = range(0, one.size(0), _ROWS)
    return all(equal_values(one[start : start + _ROWS], other[start : start + _ROWS]) for start in rows)


def count_non_finite(tensor: Tensor) -> int:
    """How many values of a tensor are NaN or infinite; one pass and no copy where there are none."""
    if tensor.numel() == 0 or all(map(math.isfinite, map(float, torch.aminmax(tensor)))):  # a NaN becomes both ends
        return 0
    return int((~torch.isfinite(tensor)).sum())
