"""Files as hostile bytes: readers that run no code and believe no size, and a writer that never leaves half a file.

Every reader yields `StoredTensor`s: name, shape and dtype now, the data when asked. What the names mean is left to
`weights.names`, what belongs together to `weights.checkpoint`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

DTYPES = {  # the names that commands and files use
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
ALIGNMENT = (
    64  # bytes, one cache line and one AVX-512 register: misaligned rows change float32 products in the last bit
)
JSON_LIMIT = 64 << 20  # bytes; GPT-2's tokenizer.json is 3.6 MB


Progress = Callable[[int, int], None]  # (tensors done, tensors in all); may raise to stop, and nothing is left behind


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is a sentence that names every problem and what to do."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in a file and is read when asked.

    Attributes:
        name: as the file spells it.
        shape: of the tensor that `read` returns.
        dtype: None for one that is not a floating-point number of this project.
        read: returns it, mapped from the file where that is possible.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    read: Callable[[], Tensor]


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in commands and files: `torch.float16` -> "float16"."""
    return str(dtype).removeprefix("torch.")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file cannot be read, is not JSON in UTF-8, or is not an object.
    """
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise CheckpointError(f"{path} is larger than {JSON_LIMIT >> 20} MiB; expected a small JSON file")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not valid JSON ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}; expected an object {{...}}")
    return content


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """List a safetensors file; its data is mapped, not read.

    Raises:
        CheckpointError: the file is damaged: empty, cut short, or with a header that does not fit it.
    """
    try:
        file = safe_open(path, framework="pt")
        stored = {}
        for name in file.keys():  # noqa: SIM118 - not a dict
            layout = file.get_slice(name)
            stored[name] = StoredTensor(
                name,
                tuple(layout.get_shape()),
                _SAFETENSORS_DTYPES.get(layout.get_dtype()),
                partial(file.get_tensor, name),
            )
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path} ({size:,} bytes) is not a whole safetensors file ({error}); it is empty, cut short or damaged: "
            f"fetch it again"
        ) from None
    return stored


def safetensors_metadata(path: Path) -> dict[str, str]:
    """The notes in a safetensors file's header (its `__metadata__`)."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def read_pickle(path: Path) -> dict[str, StoredTensor]:
    """List a file that `torch.save` wrote, without running anything that it says.

    torch's `weights_only` reader refuses every call but those that build tensors. It still believes the archive, so the
    archive's directory is checked first: a compressed record would be read as garbage or blow up in memory.

    Raises:
        CheckpointError: the file is damaged, would run code, or is not a flat dictionary of tensors.
    """
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch's reader raises whatever the damage leads to; its advice must not be shown
        call = re.search(r"GLOBAL (\S+)", str(error))
        if call:
            raise CheckpointError(
                f"{path} would run code when loaded ({call[1]}); it was not loaded. Expected a plain dictionary of "
                f"tensors: get the checkpoint as model.safetensors, or from a source that you trust"
            ) from None
        raise CheckpointError(f"{path} is a damaged pickle ({type(error).__name__}); fetch it again") from None
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise CheckpointError(f"{path} does not hold a dictionary from names to tensors, as a saved state_dict does")
    for name, tensor in content.items():
        if tensor.layout != torch.strided or not tensor.is_contiguous():
            raise CheckpointError(f"{path}: tensor {name} is not stored plainly, in row-major order; save it again")
    return {
        name: StoredTensor(
            name,
            tuple(tensor.shape),
            tensor.dtype if tensor.dtype in DTYPES.values() else None,
            partial(_itself, tensor),
        )
        for name, tensor in content.items()
    }


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _check_archive(path: Path) -> None:
    """Refuse a `torch.save` archive whose directory is not what torch writes: stored records, each once."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise CheckpointError(
            f"{path} is empty, cut short, or older than torch 1.6; expected a file as torch.save writes it today. "
            f"Fetch it again, or load and save it with a newer torch"
        ) from None
    names = [record.filename for record in records]
    if len(set(names)) != len(names) or any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError(
            f"{path} is an archive with compressed or repeated records, which torch.save never writes"
        )
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise CheckpointError(f"{path} declares more data than it holds; it is damaged: fetch it again")


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
    """
    codes = {dtype: code for code, dtype in _SAFETENSORS_DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    ordered = sorted(tensors, key=lambda tensor: _size(tensor) % ALIGNMENT != 0)
    offset = 0
    for tensor in ordered:
        assert tensor.dtype is not None
        end = offset + _size(tensor)
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
            file.write(data.flatten().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _size(tensor: StoredTensor) -> int:
    assert tensor.dtype is not None
    count = tensor.dtype.itemsize
    for length in tensor.shape:
        count *= length
    return count


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object for people: indented, keys in the order given."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256_of(paths: Iterable[Path]) -> str:
    """Checksum of the files' bytes, one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name beside `destination`; it takes that name only when all is written.

    Raises:
        CheckpointError: `destination` exists and is not an empty folder, or cannot be written.
    """
    if destination.is_symlink() or (
        destination.exists() and not (destination.is_dir() and not any(destination.iterdir()))
    ):
        raise CheckpointError(f"{destination} exists already; name a new folder, or remove it first")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{destination.name}.partial-", dir=destination.parent))
    except OSError as error:
        raise CheckpointError(f"{destination} cannot be created: {error.strerror}") from None
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp's folders are for the owner only
        for file in temporary.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if destination.exists():
            destination.rmdir()
        temporary.rename(destination)
    except OSError as error:
        raise CheckpointError(f"{destination} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
