"""Write a checkpoint: one tensor at a time, and under a temporary name until all of it is on the disk."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from dialogpt.files.disk import lock_output, reason_of, sync
from dialogpt.weights.formats.safetensors import SAFETENSORS_DTYPES
from dialogpt.weights.formats.tensors import ALIGNMENT, CheckpointError, Progress, StoredTensor


def write_safetensors(
    path: Path, tensors: Sequence[StoredTensor], metadata: Mapping[str, str], progress: Progress | None = None
) -> None:
    """Write tensors one after the other, so that one at a time is in memory, and see them on the disk.

    The data starts at a multiple of 64 bytes. The format allows no gaps, so tensors whose size is no multiple of 64
    come last and leave the others aligned.

    Args:
        path: a new file.
        tensors: in any order; what each `read` returns must have its `shape` and `dtype`.
        metadata: notes for the header.
        progress: called before each tensor.

    Raises:
        CheckpointError: a tensor is mapped from a file that was cut short meanwhile ("Bad address").
        OSError: the file cannot be written.
    """
    codes = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    ordered = sorted(tensors, key=lambda tensor: tensor.nbytes % ALIGNMENT != 0)
    offset = 0
    for tensor in ordered:
        assert tensor.dtype is not None
        end = offset + tensor.nbytes
        header[tensor.name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)  # 8 bytes of length come before the header
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for done, tensor in enumerate(ordered):
            if progress is not None:
                progress(done, len(ordered))
            data = tensor.read().contiguous()
            assert tuple(data.shape) == tensor.shape
            assert data.dtype == tensor.dtype
            try:
                file.write(data.flatten().view(torch.uint8).numpy().data)
            except OSError as error:
                if error.errno != errno.EFAULT:
                    raise
                raise CheckpointError(
                    f"the file that holds {tensor.name} was cut short while it was read; nothing is written, try again "
                    f"when it is complete"
                ) from None
    sync(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object for people: indented, keys in the order given."""
    try:
        text = json.dumps(content, indent=2)
    except RecursionError:
        raise CheckpointError(f"{path.name} would be nested too deeply; take out of the source's what is") from None
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def require_new(destination: Path) -> None:
    """Refuse a destination that exists and is not an empty folder.

    Raises:
        CheckpointError: it exists.
    """
    if destination.is_symlink() or (destination.exists() and (destination.is_file() or any(destination.iterdir()))):
        raise CheckpointError(f"{destination} exists already; name a new folder, or remove it first")


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name next to `destination`; it is renamed only when all is written.

    Raises:
        CheckpointError: `destination` exists and is not an empty folder, is being written by another process, or cannot
            be written; nothing is left.
    """
    shown, destination = destination, destination.absolute()
    made: list[Path] = []  # the temporary folder, and parents that were not there
    held = ExitStack()
    try:
        require_new(shown)
        temporary = destination.parent / f".{destination.name}.partial-{os.getpid()}-{os.urandom(4).hex()}"
        missing = [parent for parent in destination.parents if not parent.exists()]
        for folder in [*reversed(missing), temporary]:
            folder.mkdir()
            made.append(folder)
        held.callback(lock_output(destination))
        require_new(shown)  # another may have written it since
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        if destination.exists():
            destination.rmdir()
        temporary.rename(destination)
        made.clear()
        for folder in (destination, destination.parent):  # names are data, too
            sync(folder)
    except (OSError, ValueError) as error:
        if not isinstance(error, OSError) and type(error) not in (ValueError, UnicodeEncodeError):  # a name's errors
            raise
        if isinstance(error, BlockingIOError):
            raise CheckpointError(str(error)) from None
        raise CheckpointError(f"{shown} cannot be written: {reason_of(error)}") from None
    finally:
        held.close()
        for folder in reversed(made):
            if folder == temporary:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                with suppress(OSError):  # somebody else may have put something there by now
                    folder.rmdir()
