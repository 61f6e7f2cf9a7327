"""Files as hostile bytes: readers that run no code and believe no size, and a writer that never leaves half a file.

Every reader yields `StoredTensor`s: name, shape and dtype now, the data when asked. What the names mean is left to
`names.py`, what belongs together to `checkpoint.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dialogpt.weights.disk import reason_of, sync
from dialogpt.weights.pickles import OLD_MAGIC, read_pickle
from dialogpt.weights.stored import ALIGNMENT, CheckpointError, MappedFile, Progress, StoredTensor

_SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
TEXT_LIMIT = 8 << 20  # bytes; GPT-2's tokenizer.json is 3.6 MB
ELEMENT_LIMIT = 600_000  # signs that begin one more value or line; GPT-2's tokenizer.json has 250,000
HEADER_LIMIT = 4 << 20  # bytes of a safetensors header; GPT-2 large's is 60 kB


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
        text = path.read_text(encoding="utf-8-sig")  # Windows' editors begin files with a byte order mark
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is not UTF-8 text; fetch it again") from None
    if sum(map(text.count, "\n,[{")) > ELEMENT_LIMIT:  # small values take up to a hundred times their bytes in memory
        raise CheckpointError(f"{path} holds more than {ELEMENT_LIMIT:,} values; expected a small text file")
    return text


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: as `read_text`, or it is not JSON, or not an object.
    """
    return _parse_json(read_text(path), path)


def _parse_json(text: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}; expected an object {{...}}")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are there once; readers differ in which of two they believe."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {key!r} is there twice")
        made[key] = value
    return made


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def container(path: Path) -> str | None:
    """What kind of file holds tensors, by its first bytes: "safetensors", "torch" (an archive), "old torch", or None.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if head[:4] == b"PK\3\4":
        return "torch"
    if head[:1] == b"\x80" and OLD_MAGIC in head:
        return "old torch"
    return "safetensors" if head[8:9] == b"{" else None


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """List the tensors of a file, whatever its name says: safetensors, or what torch.save writes.

    Raises:
        CheckpointError: the file cannot be read, or is neither, or is damaged.
    """
    kind = container(path)
    if kind is None:
        _refuse_what_was_fetched_instead(path)
    if kind in ("torch", "old torch"):
        return read_pickle(path, old=kind == "old torch")
    if kind == "safetensors" or path.suffix == ".safetensors":
        return read_safetensors(path)
    raise CheckpointError(
        f"{path} is empty, cut short, or no file of tensors; expected safetensors, or what torch.save writes. Fetch it "
        f"again"
    )


def _refuse_what_was_fetched_instead(path: Path) -> None:
    """Recognise what downloads bring in place of weights; fetching it again in the same way would bring the same."""
    with path.open("rb") as file:
        head = file.read(32)
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is only git's pointer to a large file; run: git lfs pull")
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(
            f"{path} is a web page, not weights; fetch the file itself (the hub's resolve/, not blob/)"
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
                raise CheckpointError(
                    f"{path} declares a header of {declared:,} bytes; expected at most {HEADER_LIMIT:,}"
                )
            header = start.read(min(declared, HEADER_LIMIT))
        with safe_open(path, framework="pt") as checked:  # by the library, which believes no header either
            layouts = {name: checked.get_slice(name) for name in checked.keys()}  # noqa: SIM118 - not a dict
            shapes = {name: tuple(layout.get_shape()) for name, layout in layouts.items()}
            dtypes = {name: _SAFETENSORS_DTYPES.get(layout.get_dtype()) for name, layout in layouts.items()}
        content = _parse_json(header.decode(), path)  # the library takes the last of two tensors with the same name
        file = MappedFile(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path} ({size:,} bytes) is not a whole safetensors file ({error}); it is empty, cut short or damaged: "
            f"fetch it again"
        ) from None
    stored = {}
    for name, shape in shapes.items():
        layout = content[name]
        if not isinstance(layout, dict):  # the library takes a list for an object
            raise CheckpointError(f"{path}: its header does not describe {name!r} as an object; fetch it again")
        dtype = dtypes[name]
        read = partial(file.tensor, 8 + declared + layout["data_offsets"][0], shape, dtype or torch.uint8)
        stored[name] = StoredTensor(name, shape, dtype, read)
    return stored


def safetensors_metadata(path: Path) -> dict[str, str]:
    """The notes in a safetensors file's header (its `__metadata__`)."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


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
            file.write(data.flatten().view(torch.uint8).numpy().data)
    sync(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object for people: indented, keys in the order given."""
    try:
        text = json.dumps(content, indent=2)
    except RecursionError:
        raise CheckpointError(f"{path.name} would be nested too deeply; take out of the source's what is") from None
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def sha256_of(paths: Iterable[Path]) -> str:
    """Checksum of the files' bytes, one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def require_new(destination: Path) -> None:
    """Refuse a destination that exists and is not an empty folder.

    Raises:
        CheckpointError: as said.
    """
    if destination.is_symlink() or (destination.exists() and (destination.is_file() or any(destination.iterdir()))):
        raise CheckpointError(f"{destination} exists already; name a new folder, or remove it first")


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name beside `destination`; it takes that name only when all is written.

    Raises:
        CheckpointError: `destination` exists and is not an empty folder, or cannot be written; nothing is left.
    """
    shown, destination = destination, destination.absolute()
    made: list[Path] = []  # the temporary folder, and parents that were not there
    try:
        require_new(shown)
        temporary = destination.parent / f".{destination.name}.partial-{os.getpid()}-{os.urandom(4).hex()}"
        missing = [parent for parent in destination.parents if not parent.exists()]
        for folder in [*reversed(missing), temporary]:
            folder.mkdir()
            made.append(folder)
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
        raise CheckpointError(f"{shown} cannot be written: {reason_of(error)}") from None
    finally:
        for folder in reversed(made):
            if folder == temporary:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                with suppress(OSError):  # somebody else may have put something there by now
                    folder.rmdir()
