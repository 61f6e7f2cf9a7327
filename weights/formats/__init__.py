"""Files as hostile bytes: readers that run no code and believe no size, a writer that leaves no half-written file."""

from dialogpt.weights.formats.checks import count_non_finite, equal_values, find_damage, non_finite, refuse, same_values
from dialogpt.weights.formats.containers import container, read_tensors, sha256_of
from dialogpt.weights.formats.safetensors import read_safetensors, safetensors_metadata
from dialogpt.weights.formats.tensors import (
    ALIGNMENT,
    DTYPES,
    PRECISIONS,
    CheckpointError,
    FileContent,
    Progress,
    StoredTensor,
    dtype_name,
)
from dialogpt.weights.formats.text import read_json, read_text
from dialogpt.weights.formats.writer import new_folder, require_new, write_json, write_safetensors

__all__ = [
    "ALIGNMENT",
    "DTYPES",
    "PRECISIONS",
    "CheckpointError",
    "FileContent",
    "Progress",
    "StoredTensor",
    "container",
    "count_non_finite",
    "dtype_name",
    "equal_values",
    "find_damage",
    "new_folder",
    "non_finite",
    "read_json",
    "read_safetensors",
    "read_tensors",
    "read_text",
    "refuse",
    "require_new",
    "safetensors_metadata",
    "same_values",
    "sha256_of",
    "write_json",
    "write_safetensors",
]
