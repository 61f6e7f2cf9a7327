"""Whose tensor is whose: one table from the published GPT-2 names to ours, read in both directions.

The published names are those of `GPT2LMHeadModel` in transformers, with or without their `transformer.` prefix. Which
file a tensor lies in is left to `weights.files`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from model import GPT2, GPT2Config
from weights.files import CheckpointError, StoredTensor


@dataclass(frozen=True)
class Rule:
    """One parameter under both names; `{}` stands for the layer."""

    published: str
    ours: str
    transpose: bool = False  # transformers' Conv1D stores (in, out), nn.Linear (out, in)


RULES = (
    Rule("wte.weight", "token_embedding.weight"),
    Rule("wpe.weight", "position_embedding.weight"),
    Rule("h.{}.ln_1.weight", "blocks.{}.attention_norm.weight"),
    Rule("h.{}.ln_1.bias", "blocks.{}.attention_norm.bias"),
    Rule("h.{}.attn.c_attn.weight", "blocks.{}.attention.qkv.weight", transpose=True),
    Rule("h.{}.attn.c_attn.bias", "blocks.{}.attention.qkv.bias"),
    Rule("h.{}.attn.c_proj.weight", "blocks.{}.attention.output.weight", transpose=True),  # square: shapes cannot tell
    Rule("h.{}.attn.c_proj.bias", "blocks.{}.attention.output.bias"),
    Rule("h.{}.ln_2.weight", "blocks.{}.mlp_norm.weight"),
    Rule("h.{}.ln_2.bias", "blocks.{}.mlp_norm.bias"),
    Rule("h.{}.mlp.c_fc.weight", "blocks.{}.mlp.up.weight", transpose=True),
    Rule("h.{}.mlp.c_fc.bias", "blocks.{}.mlp.up.bias"),
    Rule("h.{}.mlp.c_proj.weight", "blocks.{}.mlp.down.weight", transpose=True),
    Rule("h.{}.mlp.c_proj.bias", "blocks.{}.mlp.down.bias"),
    Rule("ln_f.weight", "final_norm.weight"),
    Rule("ln_f.bias", "final_norm.bias"),
)
IGNORED = {  # published tensors that hold nothing learned, and why they are not needed
    "h.{}.attn.bias": "the causal mask, which attention computes",
    "h.{}.attn.masked_bias": "the value of masked scores, which attention computes",
    "lm_head.weight": "the output head, tied to the token embedding (compared with it when loaded)",
}
HEAD = "lm_head.weight"
PREFIX = "transformer."
_LAYER = re.compile(r"^(h|blocks)\.(0|[1-9][0-9]{0,5})\.")
_SHOWN = 4  # names of one kind in an error; a wrong file would list hundreds


@dataclass(frozen=True)
class Mapped:
    """A published file's tensors under our names.

    Attributes:
        tensors: all that the network needs, each once.
        ignored: published name -> why it is not needed.
        head: the published file's own copy of the output head, to be compared with the token embedding.
    """

    tensors: dict[str, StoredTensor]
    ignored: dict[str, str]
    head: StoredTensor | None


def from_published(stored: Mapping[str, StoredTensor], config: GPT2Config) -> Mapped:
    """Give a published file's tensors our names, and our orientation.

    Raises:
        CheckpointError: tensors are missing, unknown, there twice, or of the wrong shape or dtype; all are named.
    """
    rules = {rule.published: rule for rule in RULES}
    tensors: dict[str, StoredTensor] = {}
    ignored: dict[str, str] = {}
    head: StoredTensor | None = None
    unknown, twice = [], []
    for published, tensor in stored.items():
        template, layer = _split(published.removeprefix(PREFIX))
        if template in IGNORED:
            ignored[published] = IGNORED[template]
            head = tensor if template == HEAD else head
        elif template not in rules:
            unknown.append(published)
        elif (name := rules[template].ours.format(layer)) in tensors:
            twice.append(published)
        else:
            tensors[name] = _transposed(tensor) if rules[template].transpose else tensor
    problems = [_listed("unknown tensors", unknown), _listed("tensors that are there twice", twice)]
    _check(tensors, config, problems)
    return Mapped(tensors, ignored, head)


def check_ours(stored: Mapping[str, StoredTensor], config: GPT2Config) -> None:
    """Check that a file under our own names holds the network of `config`, all of it and nothing else.

    Raises:
        CheckpointError: as `from_published`.
    """
    ours = {rule.ours for rule in RULES}
    unknown = [name for name in stored if _split(name)[0] not in ours]
    _check({n: t for n, t in stored.items() if n not in unknown}, config, [_listed("unknown tensors", unknown)])


def to_published(tensors: Mapping[str, StoredTensor]) -> list[StoredTensor]:
    """Give our tensors the names and the orientation that `GPT2LMHeadModel.from_pretrained` reads."""
    rules = {rule.ours: rule for rule in RULES}
    published = []
    for name, tensor in tensors.items():
        template, layer = _split(name)
        rule = rules[template]
        turned = _transposed(tensor) if rule.transpose else tensor
        published.append(replace(turned, name=PREFIX + rule.published.format(layer)))
    return published


def _split(name: str) -> tuple[str, int]:
    """Take the layer out of a name: "h.3.ln_1.bias" -> ("h.{}.ln_1.bias", 3)."""
    match = _LAYER.match(name)
    return (f"{match[1]}.{{}}.{name[match.end() :]}", int(match[2])) if match else (name, 0)


def _transposed(tensor: StoredTensor) -> StoredTensor:
    return replace(tensor, shape=tensor.shape[::-1], read=lambda: tensor.read().t())


def _check(tensors: Mapping[str, StoredTensor], config: GPT2Config, problems: list[str]) -> None:
    """Compare tensors under our names with the network that `config` describes; raise all problems at once."""
    layers = max((_split(name)[1] + 1 for name in tensors if name.startswith("blocks.")), default=0)
    if layers != config.n_layer:  # said once, rather than once a tensor; and no network of a declared size is built
        problems.append(f"the config says n_layer {config.n_layer}, the tensors have {layers} layers")
    else:
        with torch.device("meta"):
            expected = {name: tuple(parameter.shape) for name, parameter in GPT2(config).named_parameters()}
        problems.append(_listed("missing tensors", [name for name in expected if name not in tensors]))
        wrong = [
            f"{tensor.name} is {_stored_shape(tensor.shape, name, tensor)} and the config asks for "
            f"{_stored_shape(expected[name], name, tensor)}"
            for name, tensor in tensors.items()
            if name in expected and tensor.shape != expected[name]
        ]
        problems.append(_listed("wrong shapes", wrong))
    strange = [tensor.name for tensor in tensors.values() if tensor.dtype is None]
    problems.append(_listed("tensors that are not float64, float32, bfloat16 or float16", strange))
    found = [problem for problem in problems if problem]
    if found:
        raise CheckpointError(
            f"the tensors are not those of a GPT-2 with this config: {'; '.join(found)}. "
            f"Check that config.json and the weights belong together"
        )


def _stored_shape(shape: tuple[int, ...], name: str, tensor: StoredTensor) -> list[int]:
    """Turn a shape in our orientation into that of the file, which is what its owner can look up."""
    turned = tensor.name != name and any(rule.ours == _split(name)[0] and rule.transpose for rule in RULES)
    return list(shape[::-1] if turned else shape)


def _listed(kind: str, names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{kind}: {', '.join(names[:_SHOWN])}{more}" if names else ""
