"""Merge a PEFT adapter into its base: LoRA (Hu et al., 2021), W + scaling * B A, tensor by tensor as they are read.

The folder is what PEFT's `save_pretrained` writes: ``adapter_config.json`` and ``adapter_model.safetensors`` (or
``.bin``). The merged weights equal those of peft's `merge_and_unload`. Training an adapter is left to `dialogpt.train`.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dialogpt.weights.checkpoint import Checkpoint, Origin
from dialogpt.weights.formats import CheckpointError, StoredTensor, dtype_name, read_json, read_tensors, sha256_of
from dialogpt.weights.names import EMBEDDING, OUTPUT_HEAD, RULES, split_layer, transposed
from dialogpt.weights.published import bare_name

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_LORA = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(?:embedding_)?([AB])(?:\.default)?(?:\.weight)?")
_SAVED = re.compile(r"(?:base_model\.model\.)?(.+?)(?:\.modules_to_save(?:\.default)?)?\.(weight|bias)")
_FROZEN = re.compile(r"(?:base_model\.model\.)?(.+)\.base_layer\.(weight|bias)")  # the base's own, beside a pair
_EMBEDDINGS = (EMBEDDING, "position_embedding.weight")
# Settings of LoRA that change what is computed, and the only values of them that this file merges.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "layer_replication": (None,),
    "megatron_config": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "use_bdlora": (None, False),
}
# Initialisations that take a part of the base away, so that the adapter is meant for what is left of it.
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_SECONDS = 1.0  # for all patterns: a hostile one may take forever


@dataclass(frozen=True)
class Delta:
    """What LoRA adds to one weight: scaling * B A, in the orientation of the adapter's file.

    Attributes:
        A: (rank, in); of an embedding (rank, V), of positions (rank, n_positions).
        B: (out, rank); of both (C, rank).
        scaling: lora_alpha / rank, or with rslora lora_alpha / sqrt(rank).
        turned: whether B A is the transpose of our weight: only those of the two embeddings are.
    """

    A: StoredTensor
    B: StoredTensor
    scaling: float
    turned: bool

    def values(self, like: Tensor) -> Tensor:
        """The sum to add, in the dtype of a weight (float32 at least, as peft computes it on a CPU)."""
        wide = like.dtype if like.dtype.itemsize > 2 else self.A.read().float().dtype
        product = (self.B.read().to(wide) @ self.A.read().to(wide)) * self.scaling
        return product.t() if self.turned else product


def merge_adapter(checkpoint: Checkpoint, folder: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint with an adapter merged into its weights; nothing is computed before a weight is read.

    Args:
        checkpoint: the base that the adapter was trained on.
        folder: as PEFT's `save_pretrained` writes it.

    Raises:
        CheckpointError: there is no adapter, it is of a kind that is not LoRA, or it does not fit the base.
    """
    path = Path(folder)
    config = _read_config(path)
    file = next((path / name for name in WEIGHTS if os.path.lexists(path / name)), None)
    if file is None:
        raise CheckpointError(f"{path} has no weights of an adapter; expected {' or '.join(WEIGHTS)} next to {CONFIG}")
    deltas, saved = _sort(path, read_tensors(file).tensors, config, checkpoint)
    tensors = dict(checkpoint.tensors)
    if checkpoint.config.tie_word_embeddings and not saved.keys().isdisjoint((OUTPUT_HEAD.ours, EMBEDDING)):
        tensors[OUTPUT_HEAD.ours] = tensors[EMBEDDING]  # peft copies what it saves, and leaves the other as it was
        checkpoint = replace(checkpoint, config=replace(checkpoint.config, tie_word_embeddings=False))
    for name, stored in saved.items():
        tensors[name] = stored
    for name, delta in deltas.items():
        tensors[name] = replace(tensors[name], read=partial(_merged, tensors[name], delta))
    origin = checkpoint.origin()
    digest = hashlib.sha256(f"{origin.sha256} {sha256_of([file])}".encode()).hexdigest()
    name = f"{origin.name} + {path.resolve().name}"
    return replace(
        checkpoint,
        tensors=tensors,
        ours=False,
        usual=False,
        merged_from=Origin(name, digest),
        read_sha256=lambda: digest,
    )


def _merged(stored: StoredTensor, delta: Delta) -> Tensor:
    weight = stored.read()
    return (weight + delta.values(weight)).to(weight.dtype)


def _read_config(path: Path) -> dict[str, Any]:
    """The settings of an adapter that can be merged."""
    if not os.path.lexists(path / CONFIG):
        raise CheckpointError(
            f"{path} is no PEFT adapter: it has no {CONFIG}; pass the folder that save_pretrained wrote"
        )
    config = read_json(path / CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{path} is an adapter of the kind {str(kind)[:40]}, and only LORA can be merged here")
    odd = [key for key, values in _NEUTRAL.items() if config.get(key) not in values]
    if odd:
        raise CheckpointError(
            f"{path} sets {', '.join(odd)}, which is not implemented; merge it with peft's merge_and_unload"
        )
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(_CHANGE_THE_BASE):
        raise CheckpointError(
            f"{path} began with {start[:40]} (init_lora_weights), which changes the base's own weights too; merge it "
            f"with peft's merge_and_unload"
        )
    for key in ("r", "lora_alpha"):
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1 << 31:
            raise CheckpointError(f"{path / CONFIG}: {key} is {str(value)[:40]!r}, expected a positive number")
    return config


def _scaling(config: Mapping[str, Any], module: str, rank: int, path: Path, until: float) -> float:
    """What B A is multiplied by: of the module, by the first pattern that its name ends with (peft, get_pattern_key).

    Args:
        config: of the adapter.
        module: its published name.
        rank: of its pair.
        path: of the adapter.
        until: when `time.monotonic` ends the search for patterns.

    Raises:
        CheckpointError: a pattern or its value is none.
    """
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{path / CONFIG}: alpha_pattern is not a map from modules to numbers")
    alpha = next((value for pattern, value in patterns.items() if _ends_with(module, pattern, path, until)), None)
    alpha = config["lora_alpha"] if alpha is None else alpha
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise CheckpointError(f"{path / CONFIG}: alpha_pattern has {str(alpha)[:40]!r}, expected a number")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _ends_with(module: str, pattern: str, path: Path, until: float) -> bool:
    """Whether a module's name is a regular expression's, whatever modules it is inside of."""
    import regex  # whose matching has a time limit; tiktoken installs it

    seconds = max(until - time.monotonic(), 1e-3)
    try:
        return regex.fullmatch(rf"(.*\.)?({pattern})", module, timeout=seconds) is not None
    except (regex.error, TimeoutError, RecursionError, OverflowError):
        raise CheckpointError(
            f"{path / CONFIG}: alpha_pattern has {pattern[:40]!r}, expected a regular expression for names of modules"
        ) from None


def _sort(
    path: Path, stored: Mapping[str, StoredTensor], config: Mapping[str, Any], checkpoint: Checkpoint
) -> tuple[dict[str, Delta], dict[str, StoredTensor]]:
    """An adapter's tensors by our names: what is added to weights, and what takes their place (modules_to_save)."""
    halves: dict[str, dict[str, StoredTensor]] = {}
    saved: dict[str, StoredTensor] = {}
    problems: list[str] = []
    for name, tensor in stored.items():
        if match := _LORA.fullmatch(name):
            halves.setdefault(match[1], {})[match[2]] = tensor
        elif match := _FROZEN.fullmatch(name):
            problems += _differs(f"{match[1]}.{match[2]}", tensor, checkpoint)
        elif match := _SAVED.fullmatch(name):
            _place_saved(f"{match[1]}.{match[2]}", tensor, checkpoint, saved, problems)
        else:
            problems.append(f"{name} is unknown")
    deltas = _deltas(path, halves, config, checkpoint, problems)
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(
            f"the adapter {path} does not fit {checkpoint.name or checkpoint.path}: {'; '.join(problems[:4])}{more}. "
            f"Check that it was trained on this base ({str(config.get('base_model_name_or_path'))[:80]})"
        )
    if not deltas and not saved:
        raise CheckpointError(f"the adapter {path} is empty; save it again with save_pretrained")
    return deltas, saved


def _deltas(
    path: Path,
    halves: Mapping[str, Mapping[str, StoredTensor]],
    config: Mapping[str, Any],
    checkpoint: Checkpoint,
    problems: list[str],
) -> dict[str, Delta]:
    """What is added to each weight, by our names; of a tied head to the embedding, as it is one tensor in peft too."""
    until = time.monotonic() + _SECONDS
    deltas: dict[str, Delta] = {}
    for module, pair in halves.items():
        named, _ = _ours(f"{module}.weight")
        ours = EMBEDDING if named == OUTPUT_HEAD.ours and checkpoint.config.tie_word_embeddings else named
        target = checkpoint.tensors.get(ours)
        if target is None or set(pair) != {"A", "B"}:
            problems.append(f"{module} is not a weight of the base" if target is None else f"{module} has half a pair")
            continue
        A, B, turned = pair["A"], pair["B"], named in _EMBEDDINGS
        shape = (B.shape[0], A.shape[1]) if len(A.shape) == len(B.shape) == 2 else ()
        if (
            shape != (target.shape[::-1] if turned else target.shape)
            or A.shape[0] != B.shape[1]
            or None in (A.dtype, B.dtype)
        ):
            problems.append(f"{module} adds {list(A.shape)} and {list(B.shape)} to a weight of {list(target.shape)}")
        elif ours in deltas:
            problems.append(f"{module} and the embedding, which are one tensor, both have a pair")
        else:
            deltas[ours] = Delta(A, B, _scaling(config, module, A.shape[0], path, until), turned)
    return deltas


def _place_saved(
    name: str, tensor: StoredTensor, checkpoint: Checkpoint, saved: dict[str, StoredTensor], problems: list[str]
) -> None:
    """Sort a tensor that takes the place of a weight."""
    ours, is_transposed = _ours(name)
    own = transposed(tensor) if is_transposed else tensor
    target = _target(ours, checkpoint)
    if target is None:
        problems.append(f"{name} is not a weight of the base")
    elif own.shape != target.shape or own.dtype is None:
        found = "no numbers of ours" if own.dtype is None else f"{list(own.shape)}, {dtype_name(own.dtype)}"
        problems.append(f"{name} is {found} and the base has {list(target.shape)}")
    else:
        saved[ours] = own


def _differs(name: str, tensor: StoredTensor, checkpoint: Checkpoint) -> list[str]:
    """What is wrong with a copy of one of the base's weights, as peft keeps of an embedding or a head with a pair."""
    ours, is_transposed = _ours(name)
    target = _target(ours, checkpoint)
    own = transposed(tensor) if is_transposed else tensor
    if target is None or own.dtype is None or own.shape != target.shape:
        return [f"{name} is {list(tensor.shape)} and the base has {'none' if target is None else list(target.shape)}"]
    same = torch.equal(own.read().to(target.read().dtype), target.read())
    return [] if same else [f"{name} has other values than the base"]


def _target(ours: str, checkpoint: Checkpoint) -> StoredTensor | None:
    """The base's weight under a name; the embedding for the head of a base that has none of its own."""
    head = ours == OUTPUT_HEAD.ours and ours not in checkpoint.tensors
    return checkpoint.tensors.get(EMBEDDING if head else ours)


def _ours(published: str) -> tuple[str, bool]:
    """Our name of a published weight, and whether it is stored transposed; an empty name for one that is unknown."""
    template, layer = split_layer(bare_name(published))
    for rule in (*RULES, OUTPUT_HEAD):
        if rule.published == template:
            return rule.ours.format(layer), rule.transpose
    return "", False
