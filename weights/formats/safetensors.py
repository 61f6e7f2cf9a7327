"""Read safetensors: the header is believed only as far as the library and the file's size agree with it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from dialogpt.files.plain_file import require_plain_file
from dialogpt.weights.formats.tensors import CheckpointError, MappedFile, StoredTensor, unreadable_dtype
from dialogpt.weights.formats.text import parse_json

SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
MAX_HEADER_BYTES = 4 << 20  # GPT-2 large's header has 60 kB


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """List a safetensors file; its data is mapped, not read.

    Raises:
        CheckpointError: the file is damaged: empty, cut short, or with a header that does not fit it.
    """
    try:
        require_plain_file(path)
        with path.open("rb") as start:
            declared = int.from_bytes(start.read(8), "little")
            if MAX_HEADER_BYTES < declared < path.stat().st_size:
                raise CheckpointError(
                    f"{path} declares a header of {declared:,} bytes; expected at most {MAX_HEADER_BYTES:,}"
                )
            header = start.read(min(declared, MAX_HEADER_BYTES))
        with safe_open(path, framework="pt") as checked:  # by the library, which believes no header either
            layouts = {name: checked.get_slice(name) for name in checked.keys()}  # noqa: SIM118 - not a dict
            shapes = {name: tuple(layout.get_shape()) for name, layout in layouts.items()}
            dtype_names = {name: layout.get_dtype() for name, layout in layouts.items()}
        content = parse_json(header.decode(), path)  # the library takes the last of two tensors with the same name
        file = MappedFile(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path} ({size:,} bytes) is not a whole safetensors file ({error}); it is empty, cut short or damaged: "
            f"fetch it again"
        ) from None
    float8 = sorted({dtype for dtype in dtype_names.values() if dtype.startswith("F8_")})
    if float8:
        raise CheckpointError(f"{path} holds {unreadable_dtype(', '.join(float8))}")
    stored = {}
    for name, shape in shapes.items():
        layout = content[name]
        if not isinstance(layout, dict):  # the library takes a list for an object
            raise CheckpointError(f"{path}: its header does not describe {name!r} as an object; fetch it again")
        dtype = SAFETENSORS_DTYPES.get(dtype_names[name])
        read = partial(file.tensor, 8 + declared + layout["data_offsets"][0], shape, dtype or torch.uint8)
        stored[name] = StoredTensor(name, shape, dtype, read)
    return stored


def safetensors_metadata(path: Path) -> dict[str, str]:
    """The notes in a safetensors file's header (its `__metadata__`)."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})
