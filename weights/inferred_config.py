"""The sizes of a network whose file comes without a ``config.json``, from the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dialogpt.model import ConfigError, GPT2Config
from dialogpt.weights.formats import CheckpointError, StoredTensor
from dialogpt.weights.names import HEADS, PREFIX, split_layer
from dialogpt.weights.published import bare_name

HEAD_DIM = 64  # of every published GPT-2


def infer_config(stored: Mapping[str, StoredTensor], n_head: int | None) -> GPT2Config:
    """The sizes of a published file that comes without a ``config.json``, from the shapes of its tensors alone.

    Args:
        stored: the file's tensors.
        n_head: attention heads, which no shape shows; None assumes heads of width 64, as in every published GPT-2.

    Raises:
        CheckpointError: the tensors are not a GPT-2's, or their width is no multiple of a head's.
    """
    shapes = {split_layer(bare_name(name)): tensor.shape for name, tensor in stored.items()}
    for head in HEADS:  # a tied tensor may be stored under the head's name alone
        shapes.setdefault(("wte.weight", 0), shapes.get((head, 0), ()))
    if not shapes["wte.weight", 0]:
        del shapes["wte.weight", 0]
    V, C = _matrix(shapes, "wte.weight")
    P, _ = _matrix(shapes, "wpe.weight")
    inner = next((n for n in _matrix(shapes, "h.{}.mlp.c_fc.weight") if n != C), C)  # (in, out), or nanoGPT's (out, in)
    if n_head is None and C % HEAD_DIM:
        raise CheckpointError(
            f"there is no config.json, and the width {C} is not a multiple of {HEAD_DIM}, the width of a head in every "
            f"published GPT-2; pass the number of heads (--n-head)"
        )
    heads = C // HEAD_DIM if n_head is None else n_head
    try:
        return GPT2Config(
            vocab_size=V,
            n_positions=P,
            n_embd=C,
            n_layer=len({layer for name, layer in shapes if name.startswith("h.")}),
            n_head=heads,
            n_inner=None if inner == 4 * C else inner,
            eos_token_id=V - 1,
        )
    except ConfigError as error:
        raise CheckpointError(f"there is no config.json, and the tensors' shapes make none: {error}") from None


def config_of_nanogpt(settings: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> GPT2Config:
    """The config of a file that nanoGPT wrote, from the ``model_args`` in it.

    Its MLP has the exact GELU, even where it was fine-tuned from GPT-2's weights (karpathy/nanoGPT, model.py, ``MLP``).

    Raises:
        CheckpointError: the settings and the tensors are not a GPT-2's.
    """
    heads = settings.get("n_head")
    inferred = infer_config(stored, heads if type(heads) is int and 0 < heads < 1 << 20 else None)
    return replace(inferred, activation_function="gelu", embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)


def _matrix(shapes: Mapping[tuple[str, int], tuple[int, ...]], name: str) -> tuple[int, int]:
    """The shape of a matrix in the first layer, from which a size is inferred."""
    shape = shapes.get((name, 0), ())
    if len(shape) != 2:
        found = "is missing" if (name, 0) not in shapes else f"is {list(shape)}, and a matrix was expected"
        raise CheckpointError(
            f"there is no config.json, and the tensors are not those of a GPT-2: {PREFIX}{name.format(0)} {found}"
        )
    return shape[0], shape[1]
