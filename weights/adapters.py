"""Merge a PEFT adapter into its base: LoRA (Hu et al., 2021), W + scaling * B A, tensor by tensor as they are read.

The folder is what PEFT's `save_pretrained` writes: ``adapter_config.json`` and ``adapter_model.safetensors`` (or
``.bin``). The merged weights equal those of peft's `merge_and_unload`. Training an adapter is left to `dialogpt.train`.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from dialogpt.weights.checkpoint import Checkpoint, Origin
from dialogpt.weights.formats import CheckpointError, StoredTensor, dtype_name, read_json, read_tensors, sha256_of
from dialogpt.weights.names import EMBEDDING, OUTPUT_HEAD, RULES, split_layer, transposed
from dialogpt.weights.published import bare_name

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_LORA = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(?:embedding_)?([AB])(?:\.default)?(?:\.weight)?")
_SAVED = re.compile(r"(?:base_model\.model\.)?(.+?)(?:\.modules_to_save(?:\.default)?)?\.(weight|bias)")
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
}


@dataclass(frozen=True)
class Delta:
    """What LoRA adds to one weight: scaling * B A, in the orientation of the adapter's file.

    Attributes:
        A: (rank, in); of an embedding (rank, V).
        B: (out, rank); of an embedding (C, rank).
        scaling: lora_alpha / rank, or with rslora lora_alpha / sqrt(rank).
        turned: whether B A is the transpose of our weight: only an embedding's is.
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
    for key in ("r", "lora_alpha"):
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1 << 31:
            raise CheckpointError(f"{path / CONFIG}: {key} is {str(value)[:40]!r}, expected a positive number")
    return config


def _scaling(config: Mapping[str, Any], module: str, rank: int, path: Path) -> float:
    """What B A is multiplied by: of the module, where a pattern names it as peft matches them."""
    alpha = config["lora_alpha"]
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{path / CONFIG}: alpha_pattern is not a map from modules to numbers")
    for pattern, value in patterns.items():
        if module == pattern or module.endswith(f".{pattern}"):
            alpha = value
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise CheckpointError(f"{path / CONFIG}: alpha_pattern has {str(alpha)[:40]!r}, expected a number")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


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
        elif match := _SAVED.fullmatch(name):
            _place_saved(f"{match[1]}.{match[2]}", tensor, checkpoint, saved, problems)
        else:
            problems.append(f"{name} is unknown")
    deltas: dict[str, Delta] = {}
    for module, pair in halves.items():
        ours, _ = _ours(f"{module}.weight")
        target = checkpoint.tensors.get(ours)
        if target is None or set(pair) != {"A", "B"}:
            problems.append(f"{module} is not a weight of the base" if target is None else f"{module} has half a pair")
            continue
        A, B, turned = pair["A"], pair["B"], ours == EMBEDDING
        shape = (B.shape[0], A.shape[1]) if len(A.shape) == len(B.shape) == 2 else ()
        if (
            shape != (target.shape[::-1] if turned else target.shape)
            or A.shape[0] != B.shape[1]
            or None in (A.dtype, B.dtype)
        ):
            problems.append(f"{module} adds {list(A.shape)} and {list(B.shape)} to a weight of {list(target.shape)}")
            continue
        deltas[ours] = Delta(A, B, _scaling(config, module, A.shape[0], path), turned)
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(
            f"the adapter {path} does not fit {checkpoint.name or checkpoint.path}: {'; '.join(problems[:4])}{more}. "
            f"Check that it was trained on this base ({str(config.get('base_model_name_or_path'))[:80]})"
        )
    if not deltas and not saved:
        raise CheckpointError(f"the adapter {path} is empty; save it again with save_pretrained")
    return deltas, saved


def _place_saved(
    name: str, tensor: StoredTensor, checkpoint: Checkpoint, saved: dict[str, StoredTensor], problems: list[str]
) -> None:
    """Sort a tensor that takes the place of a weight."""
    ours, is_transposed = _ours(name)
    own = transposed(tensor) if is_transposed else tensor
    target = checkpoint.tensors.get(EMBEDDING if ours == OUTPUT_HEAD.ours else ours)
    if target is None:
        problems.append(f"{name} is not a weight of the base")
    elif own.shape != target.shape or own.dtype is None:
        found = "no numbers of ours" if own.dtype is None else f"{list(own.shape)}, {dtype_name(own.dtype)}"
        problems.append(f"{name} is {found} and the base has {list(target.shape)}")
    else:
        saved[ours] = own


def _ours(published: str) -> tuple[str, bool]:
    """Our name of a published weight, and whether it is stored transposed; an empty name for one that is unknown."""
    template, layer = split_layer(bare_name(published))
    for rule in (*RULES, OUTPUT_HEAD):
        if rule.published == template:
            return rule.ours.format(layer), rule.transpose
    return "", False
