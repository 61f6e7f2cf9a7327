"""Read the names of litgpt, and of networks that were written after it, as the published ones.

litgpt's own networks have rotary positions, so none of them is a GPT-2; a file of its that holds a table of positions
comes from somebody's GPT-2 under its names. Matrices are (out, in). Older versions call the attention matrix
``attn.attn`` and keep query, key and value of each head together; later ones call it ``attn.qkv`` and keep all queries
first, as GPT-2 does (litgpt, scripts/convert_hf_checkpoint.py, ``qkv_reassemble``). The mapping to our names is left to
`names.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch import Tensor

from dialogpt.model import GPT2Config
from dialogpt.weights.formats import CheckpointError, StoredTensor
from dialogpt.weights.names import PREFIX, split_layer
from dialogpt.weights.published import bare_name

_INTERLEAVED = "attn.attn"
_MODULES = {  # litgpt's -> the published name, of a layer
    "norm_1": "ln_1",
    "norm_2": "ln_2",
    "attn.qkv": "attn.c_attn",
    _INTERLEAVED: "attn.c_attn",
    "attn.proj": "attn.c_proj",
    "mlp.fc": "mlp.c_fc",
    "mlp.proj": "mlp.c_proj",
}
_OF_LITGPT = ("h.{}.attn.qkv.weight", "h.{}.attn.attn.weight", "h.{}.norm_1.weight")
_POSITIONS = "wpe.weight"


def is_litgpt(stored: Mapping[str, StoredTensor]) -> bool:
    """Whether a file has litgpt's names."""
    return any(split_layer(bare_name(name))[0] in _OF_LITGPT for name in stored)


def from_litgpt(stored: Mapping[str, StoredTensor], config: GPT2Config | None) -> dict[str, StoredTensor]:
    """Give tensors the published names; what has no counterpart keeps its own, for `names.py` to report.

    Args:
        stored: under litgpt's names.
        config: of the ``config.json`` beside them; None where there is none.

    Raises:
        CheckpointError: it is no GPT-2, or nothing says how it is computed.
    """
    if not any(bare_name(name) == _POSITIONS for name in stored):
        raise CheckpointError(
            f"its names are litgpt's and it has no table of positions ({PREFIX}{_POSITIONS}): litgpt's networks have "
            f"rotary positions and are no GPT-2. Run it with litgpt, or fetch the GPT-2 that it was meant to be"
        )
    if config is None:
        raise CheckpointError(
            "its names are litgpt's, whose files do not say which activation the network has, how many heads, or "
            "whether attention and MLP are parallel; put the config.json of the GPT-2 beside it"
        )
    renamed = {}
    for name, tensor in stored.items():
        template, layer = split_layer(bare_name(name))
        module, _, kind = template.removeprefix("h.{}.").rpartition(".")
        published = name
        if template.startswith("h.{}.") and module in _MODULES:
            published = f"{PREFIX}h.{layer}.{_MODULES[module]}.{kind}"
            if module == _INTERLEAVED:
                tensor = replace(tensor, read=partial(_heads_apart, tensor, config.n_head))
        if published in renamed:
            raise CheckpointError(f"it holds {published} twice, under two of litgpt's names")
        renamed[published] = tensor
    return renamed


def _heads_apart(tensor: StoredTensor, n_head: int) -> Tensor:
    """Query, key and value of head after head -> all queries, all keys, all values."""
    values = tensor.read()  # (3C, C) or (3C,)
    if len(values) % (3 * n_head):
        return values  # of a wrong shape, which is reported where shapes are checked
    parts = values.reshape(n_head, 3, -1, *values.shape[1:])  # (H, 3, D, ...)
    return parts.transpose(0, 1).reshape(values.shape)  # (3C, ...)
