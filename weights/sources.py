"""Open a source, whatever it is; and what users do with one: load, convert, export.

A source is `tiny` (the checkpoint that the package carries), a folder or a file of ours or as it was published, or the
name of a checkpoint on the Hugging Face hub ("owner/name", "owner/name@revision"). This file stands on top of the
others, which all take an open `Checkpoint`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dialogpt.model import GPT2
from dialogpt.weights import hub
from dialogpt.weights.adapters import merge_adapter
from dialogpt.weights.checkpoint import Checkpoint, open_path
from dialogpt.weights.convert import Report, write_ours, write_published
from dialogpt.weights.device_check import check_device
from dialogpt.weights.folders import WEIGHT_SUFFIXES, best_of_run, foreign_file, pointed_folder
from dialogpt.weights.formats import DTYPES, CheckpointError, Progress, container
from dialogpt.weights.llama_cpp import write_gguf
from dialogpt.weights.load import build_network, device_of, read_ranking_head, require_dtype
from dialogpt.weights.slips import missing

TINY = Path(__file__).parent / "tiny"
_HUB_URL = re.compile(r"https?://[\w.-]+/(\w[\w.-]*/\w[\w.-]*)", re.ASCII)
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\w[\w./-]*)?", re.ASCII)
Source = str | os.PathLike[str] | Checkpoint


def open_checkpoint(
    source: Source,
    *,
    n_head: int | None = None,
    adapter: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    turn_prefix: Sequence[str] | None = None,
) -> Checkpoint:
    """Open a source and check that its parts fit each other.

    A name on the hub is downloaded and converted when it is first asked for, and found in the cache from then on.

    Args:
        source: see this file's opening; an open checkpoint is returned as it is.
        n_head: heads of attention, for a file without a ``config.json`` whose heads are not 64 wide.
        adapter: the folder of a PEFT adapter that is merged into the weights as they are read.
        progress: called before each tensor of what is downloaded and converted.
        turn_prefix: what each turn of the user, and each of the bot, begins with; None is the checkpoint's own, and two
            empty texts are nothing.

    Raises:
        CheckpointError: there is no such source, or it cannot be used; the message names every problem found.
    """
    if turn_prefix is not None:
        user, bot = turn_prefix
        checkpoint = open_checkpoint(source, n_head=n_head, adapter=adapter, progress=progress)
        return replace(checkpoint, turn_prefix=(user, bot) if user or bot else None)
    if adapter is not None:
        return merge_adapter(open_checkpoint(source, n_head=n_head, progress=progress), adapter)
    if isinstance(source, Checkpoint):
        return source
    path = _find(source)
    if path is None:
        name = os.fspath(source)
        folder = hub.converted(name, n_head, progress)
        try:
            return replace(open_path(folder, n_head=n_head), name=name)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; it is a converted copy, and dialogpt cache --clear {name.partition('@')[0]} removes it, for "
                f"another try"
            ) from None
    return open_path(path, n_head=n_head)


def _find(source: str | os.PathLike[str]) -> Path | None:
    """Turn the name of a source into a path that exists; None for a name on the hub."""
    if source == "tiny":  # the word, and no path to a folder of that name
        if TINY.is_dir():
            return TINY
        raise CheckpointError(
            f"the checkpoint that this package carries is missing ({TINY}); install the package again, or pass a folder"
        )
    name, path = os.fspath(source), Path(source)
    if match := _HUB_URL.match(name):
        raise CheckpointError(f"{name} is an address; name the checkpoint alone: {match[1]}")
    if not name:
        raise CheckpointError("the name of the checkpoint is empty; expected a folder, a file, or a name on the hub")
    try:
        name.encode()
        folder, file, exists = path.is_dir(), path.is_file(), path.exists()
    except PermissionError:
        raise CheckpointError(f"{name} cannot be read: permission denied") from None
    except (OSError, ValueError):  # a name that is too long, holds a NUL, or is not UTF-8
        folder = file = exists = False
    if file and (pointed := pointed_folder(path)) is not None:
        return pointed
    has_weights_name = path.suffix in WEIGHT_SUFFIXES or name.endswith(".index.json")
    if file and (has_weights_name or container(path) is None):
        if foreign := foreign_file(path.parent, [path.name]):
            raise CheckpointError(foreign)
        if not has_weights_name:
            raise CheckpointError(f"{name} is no checkpoint's weights; pass the folder that holds a checkpoint")
    if folder and (chosen := best_of_run(path)) is not None:
        return chosen
    if folder or file:
        return path.resolve() if path.is_symlink() and folder else path  # once: a run moves its links while it is read
    if exists:
        raise CheckpointError(f"{name} is neither a folder nor a plain file")
    if _HUB_NAME.fullmatch(name) and not (path.parent.is_dir() and "@" not in name):
        return None
    if _HUB_NAME.fullmatch(name):  # more likely a slip than a repository of somebody who is called like the folder
        there = ", ".join(sorted(file.name for file in path.parent.iterdir())[:6]) or "nothing"
        raise CheckpointError(
            f"{missing(name)}; the folder {path.parent} has {there}; check the name (for the hub's checkpoint of that "
            f"name, {name}@main)"
        )
    raise CheckpointError(
        f"{missing(name)}; check the path, or name a checkpoint on the Hugging Face hub as owner/name or "
        f"owner/name@revision (microsoft/DialoGPT-small, openai-community/gpt2)"
    )


def load(
    source: Source,
    *,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    trainable: bool = False,
    progress: Progress | None = None,
) -> GPT2:
    """Open a source and build its network; see `open_checkpoint` and `dialogpt.weights.load.build_network`."""
    checkpoint = open_checkpoint(source)
    if dtype in DTYPES:
        require_dtype(dtype, device)
    if dtype in DTYPES and device_of(device).type != "cpu":
        check_device(device_of(device), DTYPES[dtype], hub.cache_folder())
    return build_network(checkpoint, dtype=dtype, device=device, trainable=trainable, progress=progress)


def load_ranking_head(
    source: Source, *, dtype: str = "float32", device: str | torch.device = "cpu", n_head: int | None = None
) -> Tensor:
    """Open a DialogRPT and read its ranking head, (1, C); see `dialogpt.weights.load.read_ranking_head`."""
    return read_ranking_head(open_checkpoint(source, n_head=n_head), dtype=dtype, device=device)


def convert(
    source: Source,
    destination: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Write a source in this project's own format; see `dialogpt.weights.convert.write_ours`."""
    return write_ours(open_checkpoint(source), destination, dtype=dtype, progress=progress)


def export(source: Source, destination: str | os.PathLike[str], *, progress: Progress | None = None) -> Report:
    """Write a source as transformers' folders are; see `dialogpt.weights.convert.write_published`."""
    return write_published(open_checkpoint(source), destination, progress=progress)


def export_gguf(
    source: Source,
    destination: str | os.PathLike[str],
    *,
    dtype: str = "float16",
    progress: Progress | None = None,
) -> Report:
    """Write a source for llama.cpp; see `dialogpt.weights.llama_cpp.write_gguf`."""
    return write_gguf(open_checkpoint(source), destination, dtype=dtype, progress=progress)
