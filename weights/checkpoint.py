"""A checkpoint on the disk: its parts collected and checked against each other, without reading anything heavy.

`open_path` opens a folder or a file that exists. What else a source can be is left to `sources.py`, reading bytes to
`dialogpt.weights.formats`, names to `names.py`, building the network to `load.py`.
"""

from __future__ import annotations

import codecs
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from dialogpt.errors import Problem
from dialogpt.model import IGNORABLE, ConfigError, GPT2Config, unknown_keys
from dialogpt.weights.folders import RUN, STEP, read_all, weight_files
from dialogpt.weights.formats import (
    CheckpointError,
    FileContent,
    StoredTensor,
    read_json,
    read_text,
    safetensors_metadata,
    sha256_of,
)
from dialogpt.weights.inferred_config import config_of_nanogpt, infer_config
from dialogpt.weights.litgpt import from_litgpt, is_litgpt
from dialogpt.weights.names import RANKING_HEAD, Mapped, from_ours
from dialogpt.weights.published import from_published, is_linear, is_usual
from dialogpt.weights.vocabulary import GPT2_SIZE, TOKENIZER_FILES, Vocabulary, gpt2_vocabulary, read_vocabulary
from dialogpt.weights.wrapped import unwrapped

FORMAT_VERSION = 1
MAX_GPT2_ROWS = 50304  # GPT-2's tokens, padded to a multiple of 128 as nanoGPT does
logger = logging.getLogger(__name__)
_OUR_KEYS = ("format_version", "history_tokens", "chat", "about", "reverse", "turn_prefix")  # in our config.json alone
_ABOUT_THE_FILE = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path")


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
        read_vocabulary: reads `vocabulary`; see there.
        generation_config: the content of ``generation_config.json``, which conversions carry along and
            `dialogpt.generation_config` reads; empty where there is none.
        history_tokens: how much dialogue the model should be shown, if the checkpoint specifies it.
        chat: settings of `GenerationConfig` that suit it better than those of the chat preset; mostly empty.
        about: one sentence about the speaker, if the checkpoint has one.
        reverse: whether it was trained on reversed dialogues, for MMI; None if the checkpoint does not specify it.
        turn_prefix: what each turn of the user, and each of the bot, begins with, if the checkpoint specifies it.
        path: the folder or file that was opened.
        files: the files that hold the weights.
        name: on the hub, if it comes from there.
        read_sha256: gives `sha256()`.
        heads_assumed: whether the number of attention heads was neither in a file nor given.
        ours: whether it is in this project's own format.
        merged_from: where weights come from that are made of several files, such as a base and an adapter.
        linear: whether the file's matrices are nanoGPT's (out, in).
        usual: whether names, matrices and files are as transformers itself reads them.
        settings: what else ``config.json`` holds: labels, other tokens, notes.
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
    reverse: bool | None = None
    turn_prefix: tuple[str, str] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    heads: tuple[StoredTensor, ...] = ()
    ranking_head: StoredTensor | None = None
    name: str | None = None
    read_sha256: Callable[[], str] = lambda: sha256_of(())
    heads_assumed: bool = False
    usual: bool = False
    linear: bool = False
    merged_from: Origin | None = None

    @property
    def vocabulary(self) -> Vocabulary | None:
        """Its own, GPT-2's where it has none and the size fits, or None.

        Ours was checked when it was converted, and is read when first asked for: a network needs none, and 50,000
        tokens take 20 MB to read.

        Raises:
            CheckpointError: it is damaged, or larger than the embedding.
        """
        vocabulary = self.read_vocabulary()
        if vocabulary is None or self.turn_prefix is None:
            return vocabulary
        return replace(vocabulary, turn_prefix=self.turn_prefix)

    @property
    def tokenizer_files(self) -> list[Path]:
        """The source's own files of its tokenizer, which conversions carry along."""
        folder = self.path if self.path.is_dir() else self.path.parent
        return [folder / name for name in TOKENIZER_FILES if os.path.lexists(folder / name)]

    @property
    def chat_template(self) -> str | None:
        """The template by which its tokenizer joins messages to a prompt, if it has one."""
        files = {path.name: path for path in self.tokenizer_files}
        if "chat_template.jinja" in files:
            return read_text(files["chat_template.jinja"])
        settings = read_json(files["tokenizer_config.json"]) if "tokenizer_config.json" in files else {}
        template = settings.get("chat_template")
        return template if isinstance(template, str) else None

    @property
    def stored(self) -> dict[str, StoredTensor]:
        """All parameters under our names: the network's tensors, and the ranking head if there is one."""
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
        """The number of parameters."""
        return sum(torch.Size(tensor.shape).numel() for tensor in self.stored.values())

    @property
    def run(self) -> Path | None:
        """The folder of the training run that it is a checkpoint of."""
        here = self.path if self.path.is_dir() else self.path.parent
        of_run = STEP.fullmatch(here.name) is not None and (here.parent / RUN).is_file()
        return here.parent.resolve() if of_run else None

    @property
    def shown_name(self) -> str:
        """What it is called: by the hub, by its training run, or by its folder or file."""
        return self.name or (self.run or self.path.resolve()).name

    def origin(self) -> Origin:
        """Where the weights come from: of a converted checkpoint, what was converted; may read all of them."""
        if self.merged_from is not None:
            return self.merged_from
        if self.ours:
            notes = safetensors_metadata(self.files[0])
            return Origin(notes.get("origin", "unknown"), notes.get("origin_sha256", "unknown"))
        return Origin(self.name or os.fsencode(self.path.resolve().name).decode(errors="replace"), self.sha256())

    def sha256(self) -> str:
        """Checksum of the weight files, one after the other; reads them all, once."""
        return self.read_sha256()


def open_path(path: Path, *, n_head: int | None = None) -> Checkpoint:
    """Open a folder or a file that exists, and check that its parts fit each other.

    Args:
        path: the folder, or the file that holds the weights or their index.
        n_head: heads of attention, for a file without a ``config.json`` whose heads are not 64 wide.

    Raises:
        CheckpointError: it cannot be used; the message names every problem found.
    """
    folder = path if path.is_dir() else path.parent
    files = weight_files(path)
    values = _read_config(folder)
    ours = "format_version" in values
    if ours:
        _check_format(path, values, files)
    content = read_all(files)
    config, stored, mapped, outside = _mapped(path, values, n_head, content)
    vocabulary = cache(partial(_find_vocabulary, path, config))
    if not ours:
        vocabulary()
    if not values:
        found = vocabulary()
        config = config if found is None else replace(config, eos_token_id=found.eos_id)
        _warn_of_inferred_sizes(path, config, n_head)
    unknown = [key for key in unknown_keys(values) if key not in _OUR_KEYS]
    if unknown:
        logger.warning("%s has settings that are not known here: %s", folder / "config.json", ", ".join(unknown))
    generation = folder / "generation_config.json"
    return Checkpoint(
        config=config,
        tensors=mapped.tensors,
        read_vocabulary=vocabulary,
        generation_config=read_json(generation) if os.path.lexists(generation) else {},
        history_tokens=_history_tokens(values, folder),
        chat=_checked(values, "chat", dict, "settings and their values", folder) or {},
        about=_checked(values, "about", str, "a sentence", folder),
        reverse=_checked(values, "reverse", bool, "true or false", folder),
        turn_prefix=_turn_prefix(values, folder),
        path=path,
        files=files,
        ours=ours,
        settings={key: values[key] for key in values if key in IGNORABLE and key not in _ABOUT_THE_FILE},
        ignored=_ignored(files[0]) if ours else mapped.ignored | content.ignored | outside,
        heads=mapped.heads,
        ranking_head=mapped.ranking_head,
        heads_assumed=not values and n_head is None and not content.settings,
        linear=is_linear(stored),
        usual=not ours and not content.ignored and not outside and is_usual(content.tensors),
        read_sha256=cache(partial(sha256_of, files)),
    )


def _mapped(
    path: Path, values: dict[str, Any], n_head: int | None, content: FileContent
) -> tuple[GPT2Config, dict[str, StoredTensor], Mapped, dict[str, str]]:
    """Read the sizes, and give the tensors our names: sizes, tensors as published, as ours, and those left out.

    Raises:
        CheckpointError: they do not fit each other; the message names the file.
    """
    ours = "format_version" in values
    try:
        stored, outside = (content.tensors, {}) if ours else unwrapped(content.tensors)
        if not ours and is_litgpt(stored):
            stored = from_litgpt(stored, _config(values, n_head, content, stored) if values else None)
        config = _config(values, n_head, content, stored)
        mapped = from_ours(stored, config) if ours else from_published(stored, config)
    except ConfigError as error:
        folder = path if path.is_dir() else path.parent
        raise CheckpointError(f"{folder / 'config.json'} cannot be used: {error}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return replace(config, tie_word_embeddings=mapped.tied), stored, mapped, outside


def _warn_of_inferred_sizes(path: Path, config: GPT2Config, n_head: int | None) -> None:
    heads = f"{config.n_head} heads of {config.head_dim}"
    heads += ", as in every published GPT-2, are assumed (--n-head says otherwise)" if n_head is None else ", as asked"
    sizes = f"{config.n_layer} layers, {config.n_embd} wide"
    logger.warning("%s has no config.json; its tensors' shapes say %s, but not the heads: %s", path, sizes, heads)


def _config(
    values: dict[str, Any], n_head: int | None, content: FileContent, stored: Mapping[str, StoredTensor]
) -> GPT2Config:
    """The sizes in a ``config.json``, which the flags must not contradict; without one, those that the tensors have."""
    if not values and content.settings and n_head is None:
        return config_of_nanogpt(content.settings, stored)
    if not values:
        return infer_config(stored, n_head)
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


def _read_config(folder: Path) -> dict[str, Any]:
    """The content of ``config.json``; empty if there is none, as with Microsoft's own files."""
    path = folder / "config.json"
    if not os.path.lexists(path):
        return {}
    values = read_json(path)
    with path.open("rb") as file:
        if file.read(3) == codecs.BOM_UTF8:
            raise CheckpointError(
                f"{path} begins with a byte order mark, with which transformers and others cannot read it; save it as "
                f"UTF-8 without one"
            )
    return values


def _find_vocabulary(path: Path, config: GPT2Config) -> Vocabulary | None:
    """Read the vocabulary, check that the network has a row for each token, and log what a user should know."""
    vocabulary = read_vocabulary(path if path.is_dir() else path.parent)
    if vocabulary is None and GPT2_SIZE <= config.vocab_size <= MAX_GPT2_ROWS:
        vocabulary = gpt2_vocabulary()
        logger.warning("%s has no vocabulary; GPT-2's is used, as its %d tokens fit", path, GPT2_SIZE)
    elif vocabulary is None:
        logger.warning(
            "%s has no vocabulary, and its %d embedding rows are not those of GPT-2's %d tokens: it cannot read or "
            "write text until vocab.json and merges.txt lie beside it",
            path,
            config.vocab_size,
            GPT2_SIZE,
        )
        return None
    vocabulary = vocabulary.limited(config.vocab_size)
    if vocabulary.without_row:
        names = ", ".join(sorted(vocabulary.without_row)[:8])
        logger.warning(
            "%s: tokens without an embedding row are dropped, as nothing was trained for them: %s", path, names
        )
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


def _turn_prefix(values: dict[str, Any], folder: Path) -> tuple[str, str] | None:
    prefix = _checked(values, "turn_prefix", list, "two texts", folder)
    if prefix is None:
        return None
    if len(prefix) != 2 or not all(isinstance(text, str) for text in prefix):
        raise CheckpointError(f"{folder / 'config.json'}: turn_prefix is {str(prefix)[:80]}, expected two texts")
    return (prefix[0], prefix[1]) if any(prefix) else None


def _history_tokens(values: dict[str, Any], folder: Path) -> int | None:
    tokens = values.get("history_tokens")
    if tokens is None or (isinstance(tokens, int) and not isinstance(tokens, bool) and tokens > 0):
        return tokens
    raise CheckpointError(f"{folder / 'config.json'}: history_tokens is {tokens!r}, expected a positive integer")
