"""Open a source: find out what it is, and collect its parts without reading anything heavy.

A source is `tiny` (the checkpoint that the package carries), a folder or a file of ours or as it was published, or the
name of a checkpoint on the Hugging Face hub ("owner/name", "owner/name@revision"). Reading bytes is left to
`files.py`, names to `names.py`, the hub to `hub.py`, building the network to `dialogpt.weights.load`.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from dialogpt.errors import Problem
from dialogpt.model import IGNORABLE, ConfigError, GPT2Config, unknown_keys
from dialogpt.weights.disk import LINK_LIMIT
from dialogpt.weights.files import container, read_json, read_tensors, safetensors_metadata, sha256_of
from dialogpt.weights.names import RANKING_HEAD, from_ours, from_published, infer_config
from dialogpt.weights.stored import CheckpointError, StoredTensor
from dialogpt.weights.vocabulary import GPT2_SIZE, Vocabulary, gpt2_vocabulary, read_vocabulary

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
_OUR_KEYS = ("format_version", "history_tokens", "chat", "about")  # what our config.json has beyond transformers'
_ABOUT_THE_FILE = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path")
SHARD_LIMIT = 1000
_SHARD = re.compile(r"-[0-9]+-of-[0-9]+\.")
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\w[\w./-]*)?", re.ASCII)
RUN = "run.json"  # what a training run's folder has
_STEP = re.compile(r"step-[0-9]{8,}")  # how a run names its checkpoints
_NO_WEIGHTS = ("training_args.bin", "optimizer.*", "scheduler.*", "scaler.*", "rng_state*")  # what training leaves
_BESIDE = (
    "fetch the model.safetensors or pytorch_model.bin that is published beside it, or convert it with transformers 4 "
    "and its framework (from_pretrained with from_tf or from_flax, then save_pretrained)"
)
_FOREIGN = {  # other systems' files: what each is, and what helps
    "*.h5": ("TensorFlow's weights", _BESIDE),
    "*.msgpack": ("Flax's weights", _BESIDE),
    "*.ot": ("rust-bert's weights", "fetch the model.safetensors or pytorch_model.bin that is published beside it"),
    "*.ckpt*": (
        "OpenAI's original TensorFlow checkpoint",
        "the same weights are published for PyTorch: openai-community/gpt2 on the Hugging Face hub, and gpt2-medium, "
        "gpt2-large and gpt2-xl there",
    ),
    "*.gguf": ("llama.cpp's weights", "fetch the checkpoint that they were made from"),
    "*.gz": ("a packed file", "unpack it first"),
    "*.zip": ("a packed file", "unpack it first"),
    "*.onnx": ("an ONNX program", "fetch the checkpoint that it was made from"),
}


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
        generation_config: the content of ``generation_config.json``, which conversions carry along and
            `dialogpt.generation_config` reads; empty where there is none.
        history_tokens: how much dialogue the model should be shown, where the checkpoint says so.
        chat: settings of `GenerationConfig` that suit it better than those of the chat preset; mostly empty.
        about: who speaks, in a sentence for people, where the checkpoint says so.
        path: the folder or file that was opened.
        files: the files that hold the weights.
        name: on the hub, if it comes from there.
        read_sha256: gives `sha256()`.
        heads_assumed: whether no file and nobody said how many heads of attention there are.
        ours: whether it is in this project's own format.
        settings: what ``config.json`` says besides the network's sizes: labels, other tokens, notes.
        ignored: tensors of the published file that are not needed, with the reason.
        heads: a published file's own copies of the output head.
        ranking_head: DialogRPT's, (1, C): how good a reply is, from the last token's state.
    """

    config: GPT2Config
    tensors: dict[str, StoredTensor]
    read_vocabulary: Callable[[], Vocabulary | None]
    generation_config: dict[str, Any]
    history_tokens: int | None
    path: Path
    files: tuple[Path, ...]
    ours: bool
    chat: dict[str, Any] = field(default_factory=dict)
    about: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    heads: tuple[StoredTensor, ...] = ()
    ranking_head: StoredTensor | None = None
    name: str | None = None
    read_sha256: Callable[[], str] = lambda: sha256_of(())
    heads_assumed: bool = False

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
    def stored(self) -> dict[str, StoredTensor]:
        """All that was learned, under our names: the network's tensors, and the ranking head where there is one."""
        return self.tensors | ({} if self.ranking_head is None else {RANKING_HEAD.ours: self.ranking_head})

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
        """How many numbers were learned."""
        return sum(torch.Size(tensor.shape).numel() for tensor in self.stored.values())

    @property
    def run(self) -> Path | None:
        """The folder of the training run that it is a checkpoint of."""
        here = self.path if self.path.is_dir() else self.path.parent
        of_run = _STEP.fullmatch(here.name) is not None and (here.parent / RUN).is_file()
        return here.parent.resolve() if of_run else None

    @property
    def shown_name(self) -> str:
        """What it is called: by the hub, by its training run, or by its folder or file."""
        return self.name or (self.run or self.path.resolve()).name

    def origin(self) -> Origin:
        """Where the weights come from: of a converted checkpoint, what was converted; may read all of them."""
        if self.ours:
            notes = safetensors_metadata(self.files[0])
            return Origin(notes.get("origin", "unknown"), notes.get("origin_sha256", "unknown"))
        return Origin(self.name or os.fsencode(self.path.resolve().name).decode(errors="replace"), self.sha256())

    def sha256(self) -> str:
        """Checksum of the weight files, one after the other; reads them all, once."""
        return self.read_sha256()


Source = str | os.PathLike[str] | Checkpoint


def open_checkpoint(source: Source, *, n_head: int | None = None) -> Checkpoint:
    """Open a source and check that its parts fit each other.

    A name on the hub is downloaded and converted when it is first asked for, and found in the cache from then on.

    Args:
        source: see this file's opening; an open checkpoint is returned as it is.
        n_head: heads of attention, for a file without a ``config.json`` whose heads are not 64 wide.

    Raises:
        CheckpointError: there is no such source, or it cannot be used; the message names every problem found.
    """
    if isinstance(source, Checkpoint):
        return source
    path = _find(source)
    if path is None:
        from dialogpt.weights import hub  # it opens what it has downloaded

        name = os.fspath(source)
        folder = hub.converted(name, n_head)
        try:
            return replace(open_path(folder, n_head=n_head), name=name)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; it is a converted copy, and dialogpt cache --clear {name.partition('@')[0]} removes it, for "
                f"another try"
            ) from None
    return open_path(path, n_head=n_head)


def open_path(path: Path, *, n_head: int | None = None) -> Checkpoint:
    """Open a folder or a file that exists; see `open_checkpoint`."""
    folder = path if path.is_dir() else path.parent
    files = _weight_files(path)
    values = _read_config(folder)
    ours = "format_version" in values
    if ours:
        _check_format(path, values, files)
    stored = _read_all(files)
    try:
        config = _config(values, n_head) if values else infer_config(stored, n_head)
        mapped = from_ours(stored, config) if ours else from_published(stored, config)
    except ConfigError as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be used: {error}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    vocabulary = cache(partial(_find_vocabulary, path, config))
    if not ours:
        vocabulary()
    if not values:
        found = vocabulary()
        config = config if found is None else replace(config, eos_token_id=found.eos_id)
        heads = f"{config.n_head} heads of {config.head_dim}"
        heads += (
            ", as in every published GPT-2, are assumed (--n-head says otherwise)" if n_head is None else ", as asked"
        )
        sizes = f"{config.n_layer} layers, {config.n_embd} wide"
        logger.warning("%s has no config.json; its tensors' shapes say %s, but not the heads: %s", path, sizes, heads)
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
        chat=_checked(values, "chat", dict, "settings and their values", folder) or {},
        about=_checked(values, "about", str, "a sentence", folder),
        path=path,
        files=files,
        ours=ours,
        settings={key: values[key] for key in values if key in IGNORABLE and key not in _ABOUT_THE_FILE},
        ignored=_ignored(files[0]) if ours else mapped.ignored,
        heads=mapped.heads,
        ranking_head=mapped.ranking_head,
        heads_assumed=not values and n_head is None,
        read_sha256=cache(partial(sha256_of, files)),
    )


def _config(values: dict[str, Any], n_head: int | None) -> GPT2Config:
    """The sizes in a ``config.json``, which what was asked for must not contradict."""
    config = GPT2Config.from_dict(values)
    if n_head not in (None, config.n_head):
        raise ConfigError([Problem("n_head", n_head, f"{config.n_head}, as config.json says")])
    return config


def _ignored(file: Path) -> dict[str, str]:
    """What was left out when a file of ours was made."""
    try:
        ignored = json.loads(safetensors_metadata(file).get("ignored", "{}"))
    except (ValueError, RecursionError):
        return {}
    return {str(name): str(reason) for name, reason in ignored.items()} if isinstance(ignored, dict) else {}


def _check_format(path: Path, values: dict[str, Any], files: tuple[Path, ...]) -> None:
    """Refuse what claims to be in our format and is not, or is of another time."""
    if values["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {values['format_version']!r}, this program reads {FORMAT_VERSION}: "
            f"convert the original again"
        )
    if any(file.suffix != ".safetensors" for file in files):
        raise CheckpointError(f"{path} is in our format, which is model.safetensors, and has {files[0].name} instead")


def _find(source: str | os.PathLike[str]) -> Path | None:
    """Turn the name of a source into a path that exists; None for a name on the hub."""
    if source == "tiny":  # the word, and no path to a folder of that name
        if TINY.is_dir():
            return TINY
        raise CheckpointError(
            f"the checkpoint that this package carries is missing ({TINY}); install the package again, or pass a folder"
        )
    name, path = os.fspath(source), Path(source)
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
    if folder and (chosen := _best_of_run(path)) is not None:
        return chosen
    if file and path.suffix not in _SUFFIXES and not name.endswith(".index.json") and container(path) is None:
        raise CheckpointError(
            _foreign(path.parent, [path.name])
            or f"{name} is no checkpoint's weights; pass the folder that holds a checkpoint"
        )
    if folder or file:
        return path
    if exists:
        raise CheckpointError(f"{name} is neither a folder nor a plain file")
    if _HUB_NAME.fullmatch(name) and not (path.parent.is_dir() and "@" not in name):
        return None
    if _HUB_NAME.fullmatch(name):  # more likely a slip than a repository of somebody who is called like the folder
        there = ", ".join(sorted(file.name for file in path.parent.iterdir())[:6]) or "nothing"
        raise CheckpointError(
            f"there is no {path.name!r} in the folder {path.parent}, which has {there}; check the name (for the hub's "
            f"checkpoint of that name, {name}@main)"
        )
    raise CheckpointError(
        f"there is no folder or file {name!r}: check the path, or name a checkpoint on the Hugging Face hub as "
        f"owner/name or owner/name@revision (microsoft/DialoGPT-small, openai-community/gpt2)"
    )


def _best_of_run(folder: Path) -> Path | None:
    """The best checkpoint of a training run, else its last; None if the folder is no run's."""
    if not (folder / RUN).is_file():
        return None
    return pointed_folder(folder / "best") or pointed_folder(folder / "last")


def pointed_folder(path: Path) -> Path | None:
    """The checkpoint that a run's `last` or `best` stands for; None if the path is no such thing.

    Each is a small text file that names a folder beside it, as links need a right on Windows that few people have.
    Earlier versions made links, which are still followed.

    Raises:
        CheckpointError: the folder that it names is not there.
    """
    try:
        if path.is_dir():
            return path.resolve()
        if not path.is_file() or path.stat().st_size > LINK_LIMIT:
            return None
        name = path.read_bytes().strip().decode("ascii", "replace")
    except OSError:
        return None
    if not _STEP.fullmatch(name):
        return None
    folder = path.parent.resolve() / name
    if not folder.is_dir():
        raise CheckpointError(f"{path} names {name}, which is not beside it; pass another checkpoint of the run")
    return folder


def _read_config(folder: Path) -> dict[str, Any]:
    """The content of ``config.json``; empty where there is none, as beside Microsoft's own files."""
    path = folder / "config.json"
    return read_json(path) if os.path.lexists(path) else {}


def weights_among(names: Iterable[str]) -> str | None:
    """The file that holds a checkpoint's weights, or their index, by its name; None where that is not clear.

    Args:
        names: of all files in a folder.
    """
    names = sorted(names)
    usual = next((name for name in WEIGHT_FILES if name in names), None)
    others = _other_weights(names)
    return usual or (others[0] if len(others) == 1 else None)


def _other_weights(names: Iterable[str]) -> list[str]:
    """Files that may hold weights under any name, as Microsoft's `small_ft.pkl` does."""
    fitting = [name for name in names if Path(name).suffix in _SUFFIXES]
    return [name for name in fitting if not any(fnmatch(name, pattern) for pattern in _NO_WEIGHTS)]


def _weight_files(path: Path) -> tuple[Path, ...]:
    """The files that hold the weights, in a fixed order."""
    if path.is_dir():
        names = sorted(file.name for file in path.iterdir())
        chosen = weights_among(names)
        if chosen is None:
            raise CheckpointError(no_weights(path, names))
        path = path / chosen
    if not path.name.endswith(".index.json"):
        return (path,)
    return tuple(path.parent / name for name in shard_names(path))


def no_weights(folder: str | Path, names: list[str]) -> str:
    """Why a folder, or a repository on the hub, holds no weights that can be used."""
    several = _other_weights(names)
    if any(_SHARD.search(name) for name in several):
        return f"{folder} holds shards of weights ({several[0]}, ...) without their index, a .index.json; fetch it too"
    if several:
        more = f" and {len(several) - 4} more" if len(several) > 4 else ""
        return f"{folder} holds several files of weights ({', '.join(several[:4])}{more}); pass the one that is meant"
    usual = ", ".join(WEIGHT_FILES)
    return _foreign(folder, names) or f"{folder} has no weights; expected one of {usual}, or one .pkl of any name"


def _foreign(folder: str | Path, names: Iterable[str]) -> str | None:
    """What to say of another system's file, if there is one."""
    for name in names:
        for pattern, (kind, advice) in _FOREIGN.items():
            if fnmatch(name, pattern):
                return f"{Path(folder) / name} is {kind}, which is not read here: {advice}"
    return None


def shard_names(index: Path) -> list[str]:
    """The files that an index of shards names, in a fixed order; all lie beside it.

    Raises:
        CheckpointError: it is no index, or points elsewhere.
    """
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise CheckpointError(f"{index} has no weight_map from tensors to files")
    names = sorted(set(shards.values()))
    if len(names) > SHARD_LIMIT:
        raise CheckpointError(f"{index} names {len(names):,} files; expected at most {SHARD_LIMIT}")
    foreign = [name for name in names if Path(name).name != name or name in (".", "..") or "\\" in name]
    if foreign:
        raise CheckpointError(f"{index} points outside its folder ({foreign[0]!r}); expected plain file names")
    return names


def _read_all(files: tuple[Path, ...]) -> dict[str, StoredTensor]:
    stored: dict[str, StoredTensor] = {}
    missing = [file.name for file in files if not os.path.isfile(file)]  # noqa: PTH113 - says no where a Path would raise
    if missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        names = ", ".join(missing[:4])
        raise CheckpointError(f"{files[0].parent} lacks files of weights: {names}{more}; fetch them into it")
    for file in files:
        part = read_tensors(file)
        twice = sorted(stored.keys() & part.keys())
        if twice:
            raise CheckpointError(f"{file} holds tensors that another shard holds too: {', '.join(twice[:4])}")
        stored |= part
    return stored


def _find_vocabulary(path: Path, config: GPT2Config) -> Vocabulary | None:
    """Read the vocabulary, see that the network has a row for each token, and say what a user should know."""
    vocabulary = read_vocabulary(path if path.is_dir() else path.parent)
    if vocabulary is None and config.vocab_size == GPT2_SIZE:
        vocabulary = gpt2_vocabulary()
        logger.warning("%s has no vocabulary; GPT-2's is used, as its %d tokens fit", path, GPT2_SIZE)
    elif vocabulary is None:
        logger.warning(
            "%s has no vocabulary, and GPT-2's %d tokens do not fit its %d embedding rows: it cannot read or write "
            "text until vocab.json and merges.txt lie beside it",
            path,
            GPT2_SIZE,
            config.vocab_size,
        )
        return None
    if vocabulary.size > config.vocab_size:
        raise CheckpointError(
            f"{path}: the vocabulary needs {vocabulary.size:,} embedding rows and the network has "
            f"{config.vocab_size:,}; these files do not belong together"
        )
    if vocabulary.size < config.vocab_size:
        logger.warning("%d embedding rows of %s have no text", config.vocab_size - vocabulary.size, path)
    return vocabulary


def _checked(values: dict[str, Any], key: str, kind: type, expected: str, folder: Path) -> Any:
    """A value of ``config.json`` that is of a kind, or None where there is none."""
    value = values.get(key)
    if value is None or isinstance(value, kind):
        return value
    raise CheckpointError(f"{folder / 'config.json'}: {key} is {str(value)[:80]!r}, expected {expected}")


def _history_tokens(values: dict[str, Any], folder: Path) -> int | None:
    tokens = values.get("history_tokens")
    if tokens is None or (isinstance(tokens, int) and not isinstance(tokens, bool) and tokens > 0):
        return tokens
    raise CheckpointError(f"{folder / 'config.json'}: history_tokens is {tokens!r}, expected a whole number above 0")
