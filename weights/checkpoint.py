"""Open a source: find out what it is, and collect its parts without reading anything heavy.

A source is `tiny` (the checkpoint that the package carries), a folder or a file of ours or as transformers writes it,
or the name of a checkpoint on the Hugging Face hub. Reading bytes is left to `weights.files`, names to
`weights.names`, building the network to `weights.load`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from model import IGNORABLE, ConfigError, GPT2Config, unknown_keys
from weights.files import (
    CheckpointError,
    StoredTensor,
    container,
    read_json,
    read_tensors,
    safetensors_metadata,
    sha256_of,
)
from weights.names import from_ours, from_published
from weights.vocabulary import GPT2_SIZE, Vocabulary, gpt2_vocabulary, read_vocabulary

FORMAT_VERSION = 1
logger = logging.getLogger(__name__)
TINY = Path(__file__).parent / "tiny"
WEIGHT_FILES = (  # in the order of preference
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".pkl")  # others are weights only if their content says so
_OUR_KEYS = ("format_version", "history_tokens")  # what our config.json has beyond transformers'
_ABOUT_THE_FILE = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path")
_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?(@[\w./-]+)?")


@dataclass(frozen=True)
class Origin:
    """Where weights were first published: the name of their folder or file, and the checksum of its weights."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """All parts of one checkpoint, its tensors still on the disk.

    Attributes:
        config: sizes of the network.
        tensors: the network's parameters under our names, each once.
        read_vocabulary: gives `vocabulary`, which says what it is.
        generation_config: the content of ``generation_config.json``, which conversions carry along and nothing here
            acts on yet; empty where there is none.
        history_tokens: how much dialogue the model should be shown, where the checkpoint says so.
        path: the folder or file that was opened.
        files: the files that hold the weights.
        ours: whether it is in this project's own format.
        settings: what ``config.json`` says besides the network's sizes: labels, other tokens, notes.
        ignored: tensors of a published file that are not needed, with the reason.
        head: a published file's own copy of the output head.
    """

    config: GPT2Config
    tensors: dict[str, StoredTensor]
    read_vocabulary: Callable[[], Vocabulary | None]
    generation_config: dict[str, Any]
    history_tokens: int | None
    path: Path
    files: tuple[Path, ...]
    ours: bool
    settings: dict[str, Any] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    head: StoredTensor | None = None

    @property
    def vocabulary(self) -> Vocabulary | None:
        """Its own, GPT-2's where it has none and the size fits, or None.

        Ours was checked when it was converted, and is read when first asked for: a network needs none, and 50,000
        tokens take 20 MB to read.

        Raises:
            CheckpointError: it is damaged, or larger than the embedding.
        """
        return self.read_vocabulary()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights; of several, the one that holds them all."""
        dtypes = [tensor.dtype for tensor in self.tensors.values() if tensor.dtype is not None]
        widest = dtypes[0]
        for dtype in dtypes:
            widest = torch.promote_types(widest, dtype)
        return widest

    @property
    def parameters(self) -> int:
        """How many numbers the network has learned."""
        return sum(torch.Size(tensor.shape).numel() for tensor in self.tensors.values())

    def origin(self) -> Origin:
        """Where the weights come from: of a converted checkpoint, what was converted; may read all of them."""
        if self.ours:
            notes = safetensors_metadata(self.files[0])
            return Origin(notes.get("origin", "unknown"), notes.get("origin_sha256", "unknown"))
        return Origin(os.fsencode(self.path.resolve().name).decode(errors="replace"), self.sha256())

    def sha256(self) -> str:
        """Checksum of the weight files, one after the other; reads them all."""
        return sha256_of(self.files)


Source = str | os.PathLike[str] | Checkpoint


def open_checkpoint(source: Source) -> Checkpoint:
    """Open a source and check that its parts fit each other.

    Args:
        source: see this file's opening; an open checkpoint is returned as it is.

    Raises:
        CheckpointError: there is no such source, or it cannot be used; the message names every problem found.
    """
    if isinstance(source, Checkpoint):
        return source
    path = _find(source)
    folder = path if path.is_dir() else path.parent
    values = _read_config(folder)
    ours = "format_version" in values
    try:
        config = GPT2Config.from_dict(values)
    except ConfigError as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be used: {error}") from None
    files = _weight_files(path)
    if ours:
        _check_format(path, values, files)
    try:
        mapped = (from_ours if ours else from_published)(_read_all(files), config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    vocabulary = cache(partial(_find_vocabulary, folder, config))
    if not ours:
        vocabulary()
    unknown = [key for key in unknown_keys(values) if key not in _OUR_KEYS]
    if unknown:
        logger.warning("%s has settings that are not known here: %s", folder / "config.json", ", ".join(unknown))
    generation = folder / "generation_config.json"
    return Checkpoint(
        config=config,
        tensors=mapped.tensors,
        read_vocabulary=vocabulary,
        generation_config=read_json(generation) if generation.exists() else {},
        history_tokens=_history_tokens(values, folder),
        path=path,
        files=files,
        ours=ours,
        settings={key: values[key] for key in values if key in IGNORABLE and key not in _ABOUT_THE_FILE},
        ignored=mapped.ignored,
        head=mapped.head,
    )


def _check_format(path: Path, values: dict[str, Any], files: tuple[Path, ...]) -> None:
    """Refuse what claims to be in our format and is not, or is of another time."""
    if values["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {values['format_version']!r}, this program reads {FORMAT_VERSION}: "
            f"convert the original again"
        )
    if any(file.suffix != ".safetensors" for file in files):
        raise CheckpointError(f"{path} is in our format, which is model.safetensors, and has {files[0].name} instead")


def _find(source: str | os.PathLike[str]) -> Path:
    """Turn the name of a source into a path that exists."""
    if source == "tiny":  # the word, and no path to a folder of that name
        if TINY.is_dir():
            return TINY
        raise CheckpointError(
            f"the checkpoint that this package carries is missing ({TINY}); install the package again, or pass a folder"
        )
    name, path = os.fspath(source), Path(source)
    if not name:
        raise CheckpointError("the name of the checkpoint is empty; expected a folder or a file")
    try:
        name.encode()
        folder, file, exists = path.is_dir(), path.is_file(), path.exists()
    except (OSError, ValueError):  # a name that is too long, holds a NUL, or is not UTF-8
        folder = file = exists = False
    if file and path.suffix not in _SUFFIXES and not name.endswith(".index.json") and container(path) is None:
        raise CheckpointError(f"{name} is no checkpoint's weights; pass the folder that holds a checkpoint")
    if folder or file:
        return path
    if exists:
        raise CheckpointError(f"{name} is neither a folder nor a plain file")
    advice = "check the path"
    if _HUB_NAME.fullmatch(name):
        advice = (
            "if it is a name on the Hugging Face hub, download config.json, the weights, vocab.json and merges.txt "
            "into a folder and pass that folder"
        )
    raise CheckpointError(f"there is no folder or file {name!r}: {advice}")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not os.path.lexists(path):
        raise CheckpointError(
            f"{folder} has no config.json; expected a checkpoint's folder: config.json, {WEIGHT_FILES[0]} or "
            f"{WEIGHT_FILES[2]}, vocab.json and merges.txt"
        )
    return read_json(path)


def _weight_files(path: Path) -> tuple[Path, ...]:
    """The files that hold the weights, in a fixed order."""
    if path.is_dir():
        name = next((name for name in WEIGHT_FILES if os.path.lexists(path / name)), None)
        if name is None:
            raise CheckpointError(f"{path} has no weights; expected one of {', '.join(WEIGHT_FILES)}")
        path = path / name
    if not path.name.endswith(".index.json"):
        return (path,)
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise CheckpointError(f"{path} has no weight_map from tensors to files")
    names = sorted(set(shards.values()))
    foreign = [name for name in names if Path(name).name != name or name in (".", "..")]
    if foreign:
        raise CheckpointError(f"{path} points outside its folder ({foreign[0]!r}); expected plain file names")
    missing = [name for name in names if not os.path.isfile(path.parent / name)]  # noqa: PTH113 - says no where a Path would raise
    if missing:
        raise CheckpointError(f"{path} names files that are missing: {', '.join(missing)}; fetch them into the folder")
    return tuple(path.parent / name for name in names)


def _read_all(files: tuple[Path, ...]) -> dict[str, StoredTensor]:
    stored: dict[str, StoredTensor] = {}
    for file in files:
        part = read_tensors(file)
        twice = sorted(stored.keys() & part.keys())
        if twice:
            raise CheckpointError(f"{file} holds tensors that another shard holds too: {', '.join(twice[:4])}")
        stored |= part
    return stored


def _find_vocabulary(folder: Path, config: GPT2Config) -> Vocabulary | None:
    """Read the vocabulary, see that the network has a row for each token, and say what a user should know."""
    vocabulary = read_vocabulary(folder)
    if vocabulary is None and config.vocab_size == GPT2_SIZE:
        vocabulary = gpt2_vocabulary()
        logger.warning("%s has no vocabulary; GPT-2's is used, as its %d tokens fit", folder, GPT2_SIZE)
    elif vocabulary is None:
        logger.warning(
            "%s has no vocabulary, and GPT-2's %d tokens do not fit its %d embedding rows: it cannot read or write "
            "text until vocab.json and merges.txt lie beside it",
            folder,
            GPT2_SIZE,
            config.vocab_size,
        )
        return None
    if vocabulary.size > config.vocab_size:
        raise CheckpointError(
            f"{folder}: the vocabulary needs {vocabulary.size:,} embedding rows and the network has "
            f"{config.vocab_size:,}; these files do not belong together"
        )
    if vocabulary.size < config.vocab_size:
        logger.warning("%d embedding rows of %s have no text", config.vocab_size - vocabulary.size, folder)
    return vocabulary


def _history_tokens(values: dict[str, Any], folder: Path) -> int | None:
    tokens = values.get("history_tokens")
    if tokens is None or (isinstance(tokens, int) and not isinstance(tokens, bool) and tokens > 0):
        return tokens
    raise CheckpointError(f"{folder / 'config.json'}: history_tokens is {tokens!r}, expected a whole number above 0")
