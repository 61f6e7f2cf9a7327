"""Recognise a file of tensors by its first bytes, and call the reader of its format."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from dialogpt.files.plain_file import require_plain_file
from dialogpt.weights.formats.pickles import OLD_MAGIC, read_pickle
from dialogpt.weights.formats.safetensors import read_safetensors
from dialogpt.weights.formats.tensors import CheckpointError, FileContent


def container(path: Path) -> str | None:
    """What kind of file holds tensors, by its first bytes: "safetensors", "torch" (an archive), "old torch", or None.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        require_plain_file(path)
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if head[:4] == b"PK\3\4":
        return "torch"
    if head[:1] == b"\x80" and OLD_MAGIC in head:
        return "old torch"
    return "safetensors" if head[8:9] == b"{" else None


def read_tensors(path: Path) -> FileContent:
    """List the tensors of a file, recognised by its content: safetensors, or what torch.save writes.

    Raises:
        CheckpointError: the file cannot be read, or is neither, or is damaged.
    """
    kind = container(path)
    if kind is None:
        _refuse_what_was_fetched_instead(path)
    if kind in ("torch", "old torch"):
        return read_pickle(path, old=kind == "old torch")
    if kind == "safetensors" or path.suffix == ".safetensors":
        return FileContent(read_safetensors(path))
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


def sha256_of(paths: Iterable[Path]) -> str:
    """Checksum of the files' bytes, one after the other, in hexadecimal.

    Raises:
        OSError: one cannot be read, or is no plain file.
    """
    digest = hashlib.sha256()
    for path in paths:
        require_plain_file(path)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
