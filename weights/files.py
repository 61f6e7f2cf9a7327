"""Files as hostile bytes: readers that run no code and believe no size, and a writer that never leaves half a file.

Every reader yields `StoredTensor`s: name, shape and dtype now, the data when asked. What the names mean is left to
`weights.names`, what belongs together to `weights.checkpoint`.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickletools
import re
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
TEXT_LIMIT = 16 << 20  # bytes; GPT-2's tokenizer.json is 3.6 MB
HEADER_LIMIT = 4 << 20  # bytes of a safetensors header; GPT-2 large's is 60 kB

# What the pickle of a state_dict names, and the instructions by which one could name more; torch.save writes neither.
_HARMLESS = frozenset({"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"})
_STORAGE = re.compile(r"torch [A-Z][A-Za-z0-9]*Storage")
_OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9"  # how a file of torch before 1.6 begins
_FOREIGN = frozenset({"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "BYTEARRAY8"})
_PICKLE_LIMIT = 1 << 20  # bytes; GPT-2 large's is 50 kB


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


def read_text(path: Path) -> str:
    """Read a small text file.

    Raises:
        CheckpointError: it is missing, not a plain file, too large, unreadable, or not UTF-8.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for ever, a device never end
            raise CheckpointError(f"{path} is not a plain file")
        if path.stat().st_size > TEXT_LIMIT:
            raise CheckpointError(f"{path} is larger than {TEXT_LIMIT >> 20} MiB; expected a small text file")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is not UTF-8 text; fetch it again") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: as `read_text`, or it is not JSON, or not an object.
    """
    text = read_text(path)
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}; expected an object {{...}}")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def container(path: Path) -> str | None:
    """What kind of file holds tensors, by its first bytes: "safetensors", "torch" (an archive), "old torch", or None.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if head[:4] == b"PK\3\4":
        return "torch"
    if head == _OLD_MAGIC:
        return "old torch"
    return "safetensors" if head[8:] == b"{" else None


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """List the tensors of a file, whatever its name says: safetensors, or what torch.save writes.

    Raises:
        CheckpointError: the file cannot be read, or is neither, or is damaged.
    """
    kind = container(path)
    if kind == "old torch":
        raise CheckpointError(
            f"{path} is in the format that torch wrote before 1.6, which this version does not read; load and save it "
            f"with a newer torch, or let transformers write it as model.safetensors (see the README)"
        )
    if kind == "torch":
        return read_pickle(path)
    if kind == "safetensors" or path.suffix == ".safetensors":
        return read_safetensors(path)
    raise CheckpointError(
        f"{path} is empty, cut short, or no file of tensors; expected safetensors, or what torch.save writes. Fetch it "
        f"again"
    )


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """List a safetensors file; its data is mapped, not read.

    Raises:
        CheckpointError: the file is damaged: empty, cut short, or with a header that does not fit it.
    """
    try:
        with path.open("rb") as start:
            declared = int.from_bytes(start.read(8), "little")
        if HEADER_LIMIT < declared < path.stat().st_size:
            raise CheckpointError(f"{path} declares a header of {declared:,} bytes; expected at most {HEADER_LIMIT:,}")
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

    What the pickle in it may call is checked before torch's `weights_only` reader sees it, which would still let it
    reserve any amount of memory; and so is the archive's directory, as a compressed record would be read as garbage.

    Raises:
        CheckpointError: the file is damaged, would run code, or is not a flat dictionary of tensors.
    """
    held = _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch's reader raises whatever the damage leads to; its advice must not be shown
        raise CheckpointError(f"{path} is a damaged pickle ({type(error).__name__}); fetch it again") from None
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise CheckpointError(f"{path} does not hold a dictionary from names to tensors, as a saved state_dict does")
    for name, tensor in content.items():
        if not tensor.is_contiguous():
            raise CheckpointError(f"{path}: tensor {name} is not stored plainly, in row-major order; save it again")
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in content.values()}
    if sum(storages.values()) != held:  # a storage that claims more than its record would take in its neighbours
        raise CheckpointError(f"{path} declares other sizes than its records have; it is damaged: fetch it again")
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
    return tensor.detach()


def _check_archive(path: Path) -> int:
    """Refuse a `torch.save` archive that is not what torch writes: stored records, each once, and a harmless pickle.

    torch must see what was checked: it finds records without regard to case, and the directory where the file's end
    says it is, while Python takes the one that stands just before the end.

    Returns:
        The bytes that the records of tensors hold.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            names = [record.filename.lower() for record in records]
            if any(record.compress_type != zipfile.ZIP_STORED for record in records) or len(set(names)) != len(names):
                raise CheckpointError(f"{path} has compressed or repeated records, which torch.save never writes")
            if sum(record.file_size for record in records) > path.stat().st_size:
                raise CheckpointError(f"{path} declares more data than it holds; it is damaged: fetch it again")
            if _directory_offsets(path) != {archive.start_dir}:
                raise CheckpointError(f"{path} has two directories, which torch.save never writes")
            pickles = [record for record in records if record.filename.lower().endswith("data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > _PICKLE_LIMIT:
                raise CheckpointError(f"{path} is not an archive of tensors as torch.save writes it")
            data = archive.read(pickles[0])
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is cut short or damaged ({error}); fetch it again") from None
    _check_pickle(path, data)
    return sum(record.file_size for record in records if "/data/" in record.filename)


def _directory_offsets(path: Path) -> set[int]:
    """Where the end of an archive says that its directory begins; it says so twice where it has a long form too."""
    with path.open("rb") as file:
        file.seek(-42, os.SEEK_END)
        locator, end = file.read(20), file.read(22)
        if end[:4] != b"PK\5\6":
            raise zipfile.BadZipFile("there is text after its directory")
        offsets = {int.from_bytes(end[16:20], "little")} - {0xFFFFFFFF}  # too large for the short form
        if locator[:4] == b"PK\6\7":
            file.seek(int.from_bytes(locator[8:16], "little") + 48)
            offsets.add(int.from_bytes(file.read(8), "little"))
    return offsets


def _check_pickle(path: Path, data: bytes) -> None:
    """Refuse a pickle that names anything but what a dictionary of tensors is made of."""
    try:
        for operation, argument, _ in pickletools.genops(data):
            if operation.name == "GLOBAL" and argument not in _HARMLESS and not _STORAGE.fullmatch(str(argument)):
                called = str(argument).replace(" ", ".")
            elif operation.name in _FOREIGN:
                called = f"by the instruction {operation.name}"
            else:
                continue
            raise CheckpointError(
                f"{path} would run code when loaded ({called}); it was not loaded. Expected a plain dictionary of "
                f"tensors: get the checkpoint as model.safetensors, or from a source that you trust"
            )
    except (ValueError, IndexError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is a damaged pickle; fetch it again") from None


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
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


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
        CheckpointError: `destination` exists and is not an empty folder, or cannot be written; nothing is left.
    """
    shown, destination = destination, destination.absolute()
    made: list[Path] = []  # the temporary folder, and parents that were not there
    try:
        if destination.is_symlink() or (destination.exists() and (destination.is_file() or any(destination.iterdir()))):
            raise CheckpointError(f"{shown} exists already; name a new folder, or remove it first")
        temporary = destination.parent / f".{destination.name}.partial-{os.getpid()}-{os.urandom(4).hex()}"
        missing = [parent for parent in destination.parents if not parent.exists()]
        for folder in [*reversed(missing), temporary]:
            folder.mkdir()
            made.append(folder)
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        if destination.exists():
            destination.rmdir()
        temporary.rename(destination)
        made.clear()
        for folder in (destination, destination.parent):  # names are data, too
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    except (OSError, ValueError) as error:
        if not isinstance(error, OSError) and type(error) not in (ValueError, UnicodeEncodeError):  # a name's errors
            raise
        raise CheckpointError(f"{shown} cannot be written: {getattr(error, 'strerror', None) or error}") from None
    finally:
        for folder in reversed(made):
            if folder == temporary:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                with suppress(OSError):  # somebody else may have put something there by now
                    folder.rmdir()
