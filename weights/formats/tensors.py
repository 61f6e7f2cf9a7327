"""What all readers and writers of checkpoints share: a tensor that lies in a file, dtypes by name, and their error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dialogpt.errors import CheckpointError as CheckpointError  # for the readers and writers here

DTYPES = {  # the names that commands and files use
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
PRECISIONS = (*DTYPES, "int8", "int4")  # what a network can be loaded in; files hold the first four
ALIGNMENT = 64  # bytes, a cache line and an AVX-512 register: misaligned rows change float32 products in the last bit
Progress = Callable[[int, int], None]  # (tensors done, tensors in all); may raise to stop, and nothing is left behind


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in a file and is read when asked.

    Attributes:
        name: as the file spells it.
        shape: of the tensor that `read` returns.
        dtype: None for one that is not a floating-point number of this project.
        read: returns it, mapped from the file where that is possible; each time anew, so that what is written into one
            changes no other, and what was read leaves memory with it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """How much memory the tensor takes."""
        assert self.dtype is not None
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class FileContent:
    """What a file of tensors holds.

    Attributes:
        tensors: the weights, by their names in the file.
        ignored: what else the file holds, with the reason why it is not needed, such as an optimizer's state.
        settings: nanoGPT's ``model_args``, its config; empty elsewhere.
    """

    tensors: dict[str, StoredTensor]
    ignored: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


class MappedFile:
    """A file whose numbers are used where they lie: read when they are touched, and never written back."""

    def __init__(self, path: Path) -> None:
        """Note what a file is now.

        Raises:
            OSError: there is none.
        """
        self.path = path
        self.state = _state(path)

    def tensor(self, start: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The numbers from a byte on, row by row, in a mapping of their own, or in a copy where they are not aligned.

        Raises:
            CheckpointError: the file is not what it was any more.
        """
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes == 0:
            return torch.empty(shape, dtype=dtype)
        try:
            if _state(self.path) != self.state:
                raise OSError
            storage = torch.UntypedStorage.from_file(str(self.path), False, start + nbytes)
        except (OSError, RuntimeError):
            raise CheckpointError(f"{self.path} was changed while it was in use; open it again") from None
        if start % dtype.itemsize == 0:
            return torch.empty(0, dtype=dtype).set_(storage, start // dtype.itemsize, shape)  # type: ignore[call-overload, no-any-return]
        numbers = torch.empty(0, dtype=torch.uint8).set_(storage, start, (nbytes,))  # type: ignore[call-overload]
        copied: Tensor = numbers.clone().view(dtype).view(shape)
        return copied


def _state(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in commands and files: `torch.float16` -> "float16"."""
    return str(dtype).removeprefix("torch.")


def unreadable_dtype(dtype: str) -> str:
    """The end of a sentence about a file whose weights were rounded to float8 or the like."""
    return f"tensors of {dtype}; expected {', '.join(DTYPES)}: fetch the checkpoint that they were rounded from"
