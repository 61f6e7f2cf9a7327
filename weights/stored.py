"""What all readers and writers of checkpoints share: a tensor that lies in a file, dtypes by name, and their error."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {  # the names that commands and files use
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
PRECISIONS = (*DTYPES, "int8", "int4")  # what a network can be loaded in; files hold the first four
ALIGNMENT = 64  # bytes, a cache line and an AVX-512 register: misaligned rows change float32 products in the last bit
Progress = Callable[[int, int], None]  # (tensors done, tensors in all); may raise to stop, and nothing is left behind


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is a sentence that names every problem and what to do.

    What a file says is quoted in it, and may be megabytes; so a long message loses its middle.
    """

    def __init__(self, message: str) -> None:
        most = 1000  # characters, a screen's worth
        super().__init__(message if len(message) <= most else f"{message[: most // 2]} … {message[-most // 3 :]}")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in a file and is read when asked.

    Attributes:
        name: as the file spells it.
        shape: of the tensor that `read` returns.
        dtype: None for one that is not a floating-point number of this project.
        read: returns it, mapped from the file where that is possible.
        forget: takes what was mapped of it out of memory again, where it would count as the process's own; what still
            holds the tensor reads it anew.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    read: Callable[[], Tensor]
    forget: Callable[[], None] = lambda: None

    @property
    def nbytes(self) -> int:
        """How much memory the tensor takes."""
        assert self.dtype is not None
        return math.prod(self.shape) * self.dtype.itemsize


class MappedFile:
    """A file whose bytes are used where they lie: they are read when touched, and what is written there stays here."""

    def __init__(self, path: Path) -> None:
        """Map a file that is not empty.

        Raises:
            OSError: it cannot be read.
        """
        with path.open("rb") as file:
            self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def tensor(self, start: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The numbers from a byte on, row by row."""
        if 0 in shape:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self.memory, dtype=dtype, count=math.prod(shape), offset=start).view(shape)

    def forget(self, start: int, nbytes: int) -> None:
        """Take whole pages out of memory; whoever reads them finds what the file holds, and not what was written."""
        begin = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (start + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if begin < end and hasattr(mmap, "MADV_DONTNEED"):
            self.memory.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in commands and files: `torch.float16` -> "float16"."""
    return str(dtype).removeprefix("torch.")
