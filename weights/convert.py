"""Checkpoints on the disk: from published to ours, `convert`; back, `export`; and from a network in memory, `save`.

All stream: one tensor at a time is read, checked and written, and a folder takes its final name only when all of it is
on the disk. Opening a source is left to `sources.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dialogpt.model import GPT2Config
from dialogpt.weights.card import write_card
from dialogpt.weights.checkpoint import FORMAT_VERSION, Checkpoint, Origin
from dialogpt.weights.formats import (
    CheckpointError,
    Progress,
    StoredTensor,
    count_non_finite,
    dtype_name,
    new_folder,
    non_finite,
    read_json,
    refuse,
    write_json,
    write_safetensors,
)
from dialogpt.weights.load import dtype_of
from dialogpt.weights.names import to_published
from dialogpt.weights.vocabulary import END_OF_TEXT, Vocabulary, chat_template


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        source, destination: folders.
        tensors, parameters: how many were written.
        dtype: of the written weights.
        sha256: checksum of the weight files that were read.
        ignored: tensors that were left out, with the reason.
    """

    source: Path
    destination: Path
    tensors: int
    parameters: int
    dtype: str
    sha256: str
    ignored: dict[str, str]


def write_ours(
    checkpoint: Checkpoint,
    destination: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Write a checkpoint in this project's own format.

    Args:
        checkpoint: of any form.
        destination: a new folder.
        dtype: a name in `DTYPES`; None keeps the source's.
        progress: called before each tensor is written.

    Raises:
        CheckpointError: the weights hold NaN or infinity, or the destination exists or cannot be written.
    """
    target = checkpoint.dtype if dtype is None else dtype_of(dtype)
    damage: list[str] = []
    tensors = [replace(tensor, name=name) for name, tensor in _cast(checkpoint, target, damage).items()]
    notes = _notes(checkpoint.origin(), target, checkpoint.ignored)
    with new_folder(Path(destination)) as folder:
        _write(folder, checkpoint, tensors, notes, _our_config(checkpoint), progress)
        refuse(checkpoint.path, sorted(damage))
    return make_report(checkpoint, Path(destination), dtype_name(tensors[0].dtype or checkpoint.dtype))


def save(folder: Path, like: Checkpoint, tensors: Mapping[str, Tensor], origin: Origin) -> None:
    """Write trained weights in this project's own format.

    Args:
        folder: an empty one, such as `new_folder` gives.
        like: provides everything but the weights: sizes, vocabulary, settings.
        tensors: the weights by name.
        origin: where they come from.
    """
    stored = {name: StoredTensor(name, tuple(t.shape), t.dtype, partial(_on_cpu, t)) for name, t in tensors.items()}
    checkpoint = replace(like, tensors=stored, ranking_head=None)
    _write(folder, checkpoint, [*stored.values()], _notes(origin, checkpoint.dtype, {}), _our_config(checkpoint), None)


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()


def _notes(origin: Origin, dtype: torch.dtype, ignored: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata of a weight file in our format."""
    return {
        "format": "pt",
        "format_version": str(FORMAT_VERSION),
        "origin": origin.name,
        "origin_sha256": origin.sha256,
        "dtype": dtype_name(dtype),
        **({"ignored": json.dumps(ignored)} if ignored else {}),
    }


def write_published(
    checkpoint: Checkpoint, destination: str | os.PathLike[str], *, progress: Progress | None = None
) -> Report:
    """Write a checkpoint as transformers' `save_pretrained` does: every tensor equal to the bit.

    Args:
        checkpoint: of any form.
        destination: a new folder, which transformers and the tools that read its folders load.
        progress: called before each tensor is written.

    Raises:
        CheckpointError: as `write_ours`.
    """
    damage: list[str] = []
    tensors = to_published(_cast(checkpoint, checkpoint.dtype, damage))
    config = {**_architecture(checkpoint), **_config(checkpoint), "dtype": dtype_name(checkpoint.dtype)}
    with new_folder(Path(destination)) as folder:
        _write(folder, checkpoint, tensors, {"format": "pt"}, config, progress)
        refuse(checkpoint.path, sorted(damage))
        if checkpoint.vocabulary is not None:
            _complete_tokenizer(folder, checkpoint, checkpoint.vocabulary)
        write_card(folder, checkpoint)
    return make_report(checkpoint, Path(destination), dtype_name(tensors[0].dtype or checkpoint.dtype))


def _architecture(checkpoint: Checkpoint) -> dict[str, Any]:
    """Which of transformers' networks an exported checkpoint is."""
    if checkpoint.ranking_head is None:
        return {"architectures": ["GPT2LMHeadModel"]}
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}  # one number; transformers' default is two
    return {"architectures": ["GPT2ForSequenceClassification"], **labels}


def published_config(config: GPT2Config) -> dict[str, Any]:
    """A config's content under transformers' names, with the choices that this network has made."""
    return {"model_type": "gpt2", **asdict(config)}


def _our_config(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION, **_config(checkpoint)}


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The content of a ``config.json``: the sizes, and what else the source's held."""
    names = ("history_tokens", "chat", "about", "reverse", "turn_prefix")
    own = {name: getattr(checkpoint, name) for name in names}
    return {
        **published_config(checkpoint.config),
        **checkpoint.settings,
        **{key: value for key, value in own.items() if value or value is False},
    }


def _cast(checkpoint: Checkpoint, target: torch.dtype, damage: list[str]) -> dict[str, StoredTensor]:
    """The network's tensors in another dtype, each checked when it is read to be written: weights are read once.

    Args:
        checkpoint: where they are.
        target: the dtype.
        damage: receives a sentence for each tensor that holds NaN or infinity.
    """

    def read(stored: StoredTensor) -> Tensor:
        values = stored.read()
        found = non_finite(stored, values)
        damage.extend(found)
        tensor = values.to(target)
        if not found and tensor.dtype != stored.dtype and (count := count_non_finite(tensor)):
            raise CheckpointError(  # float16 ends at 65,504
                f"{stored.name} has {count:,} values too large for {dtype_name(target)}; keep {stored.dtype}"
            )
        return tensor

    return {
        name: replace(stored, dtype=target, read=partial(read, stored)) for name, stored in checkpoint.stored.items()
    }


def _complete_tokenizer(folder: Path, checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
    """Write what transformers needs beyond the source's own files: a tokenizer_config and a chat template."""
    if not (folder / "tokenizer_config.json").exists():
        named = read_json(folder / "special_tokens_map.json") if (folder / "special_tokens_map.json").exists() else {}
        # transformers takes a token's description here only with its own mark; its text always
        named = {
            name: token.get("content", token) if isinstance(token, dict) else token for name, token in named.items()
        }
        write_json(folder / "tokenizer_config.json", {**_tokenizer_config(vocabulary, checkpoint.config), **named})
    if checkpoint.chat_template is None:
        (folder / "chat_template.jinja").write_text(chat_template(checkpoint.turn_prefix), encoding="utf-8")


def _tokenizer_config(vocabulary: Vocabulary, config: GPT2Config) -> dict[str, Any]:
    """What transformers needs to know of the tokenizer beyond ``vocab.json`` and ``merges.txt``."""
    added = {token: n for token, n in vocabulary.ids.items() if token in vocabulary.special | vocabulary.added.keys()}
    other = END_OF_TEXT if END_OF_TEXT in vocabulary.ids else vocabulary.eos_token
    return {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": config.n_positions,
        "bos_token": other,
        "eos_token": vocabulary.eos_token,
        "unk_token": other,
        "added_tokens_decoder": {
            str(n): {
                "content": token,
                "special": token not in vocabulary.added,
                **dict.fromkeys(vocabulary.flags.get(token, ()), True),
            }
            for token, n in added.items()
        },
    }


def _write(
    folder: Path,
    checkpoint: Checkpoint,
    tensors: list[StoredTensor],
    notes: Mapping[str, str],
    config: dict[str, Any],
    progress: Progress | None,
) -> None:
    """Fill a folder: config first, the weights last."""
    write_json(folder / "config.json", config)
    if checkpoint.generation_config:
        write_json(folder / "generation_config.json", checkpoint.generation_config)
    if checkpoint.vocabulary is not None:
        checkpoint.vocabulary.write(folder, checkpoint.tokenizer_files)
    write_safetensors(folder / "model.safetensors", tensors, notes, progress)


def make_report(checkpoint: Checkpoint, destination: Path, dtype: str) -> Report:
    """Return the report of a conversion."""
    return Report(
        source=checkpoint.path,
        destination=destination,
        tensors=len(checkpoint.stored),
        parameters=checkpoint.parameters,
        dtype=dtype,
        sha256=checkpoint.sha256(),
        ignored=checkpoint.ignored,
    )
