"""Whose tensor is whose: one table from the published GPT-2 names to ours, read in both directions.

The published names are those of `GPT2LMHeadModel` in transformers, with or without their `transformer.` prefix. Which
file a tensor lies in is left to `weights.files`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from model import GPT2Config
from weights.files import CheckpointError, StoredTensor


@dataclass(frozen=True)
class Rule:
    """One parameter under both names.

    Attributes:
        published: transformers' name; `{}` stands for the layer.
        ours: this project's.
        shape: ours, in the letters of `sizes`.
        transpose: transformers' Conv1D stores (in, out), nn.Linear (out, in).
    """

    published: str
    ours: str
    shape: str
    transpose: bool = False


RULES = (
    Rule("wte.weight", "token_embedding.weight", "V C"),
    Rule("wpe.weight", "position_embedding.weight", "P C"),
    Rule("h.{}.ln_1.weight", "blocks.{}.attention_norm.weight", "C"),
    Rule("h.{}.ln_1.bias", "blocks.{}.attention_norm.bias", "C"),
    Rule("h.{}.attn.c_attn.weight", "blocks.{}.attention.qkv.weight", "3C C", transpose=True),
    Rule("h.{}.attn.c_attn.bias", "blocks.{}.attention.qkv.bias", "3C"),
    Rule("h.{}.attn.c_proj.weight", "blocks.{}.attention.output.weight", "C C", transpose=True),  # no shape can tell
    Rule("h.{}.attn.c_proj.bias", "blocks.{}.attention.output.bias", "C"),
    Rule("h.{}.ln_2.weight", "blocks.{}.mlp_norm.weight", "C"),
    Rule("h.{}.ln_2.bias", "blocks.{}.mlp_norm.bias", "C"),
    Rule("h.{}.mlp.c_fc.weight", "blocks.{}.mlp.up.weight", "I C", transpose=True),
    Rule("h.{}.mlp.c_fc.bias", "blocks.{}.mlp.up.bias", "I"),
    Rule("h.{}.mlp.c_proj.weight", "blocks.{}.mlp.down.weight", "C I", transpose=True),
    Rule("h.{}.mlp.c_proj.bias", "blocks.{}.mlp.down.bias", "C"),
    Rule("ln_f.weight", "final_norm.weight", "C"),
    Rule("ln_f.bias", "final_norm.bias", "C"),
)
IGNORED = {  # published tensors that hold nothing learned, and why they are not needed
    "h.{}.attn.bias": "the causal mask, which attention computes",
    "h.{}.attn.masked_bias": "the value of masked scores, which attention computes",
    "lm_head.weight": "the output head, tied to the token embedding (compared with it when loaded)",
}
HEAD, EMBEDDING = "lm_head.weight", "token_embedding.weight"
PREFIX = "transformer."
_LAYER = re.compile(r"(h|blocks)\.(0|[1-9][0-9]{0,5})\.")
_SHOWN = 4  # names of one kind in an error; a wrong file would list hundreds


def sizes(config: GPT2Config) -> dict[str, int]:
    """What the letters of the rules' shapes stand for: the legend's V and C, P positions and I the MLP's width."""
    C = config.n_embd
    return {"V": config.vocab_size, "P": config.n_positions, "C": C, "3C": 3 * C, "I": config.inner_dim}


@dataclass(frozen=True)
class Mapped:
    """A file's tensors under our names.

    Attributes:
        tensors: all that the network needs, each once.
        ignored: name in the file -> why it is not needed.
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
    problems += _problems(tensors, config, published=True)
    if head is not None and (head.dtype is None or head.shape != (config.vocab_size, config.n_embd)):
        problems.append(f"{HEAD} is {list(head.shape)}, not a copy of the token embedding")
    _raise(problems)
    return Mapped(tensors, ignored, head)


def from_ours(stored: Mapping[str, StoredTensor], config: GPT2Config) -> Mapped:
    """Check that a file under our own names holds the network of `config`, all of it and nothing else.

    Raises:
        CheckpointError: as `from_published`.
    """
    ours = {rule.ours for rule in RULES}
    known = {name: tensor for name, tensor in stored.items() if _split(name)[0] in ours}
    unknown = _listed("unknown tensors", [name for name in stored if name not in known])
    _raise([unknown, *_problems(known, config, published=False)])
    return Mapped(known, {}, None)


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
    """Take the layer out of a name: "h.3.ln_1.bias" -> ("h.{}.ln_1.bias", 3).

    A name that holds braces itself, as no published one does, becomes one that no rule knows.
    """
    match = _LAYER.match(name)
    if "{" in name or match is None:
        return name.replace("{", "?"), 0
    return f"{match[1]}.{{}}.{name[match.end() :]}", int(match[2])


def _transposed(tensor: StoredTensor) -> StoredTensor:
    return replace(tensor, shape=tensor.shape[::-1], read=lambda: tensor.read().t())


def _problems(tensors: Mapping[str, StoredTensor], config: GPT2Config, *, published: bool) -> list[str]:
    """Compare tensors under our names with what `config` asks for, in words of the file that they came from."""
    letters = sizes(config)
    layers = {_split(name)[1] for name in tensors if name.startswith("blocks.")}
    problems = []
    counted = range(config.n_layer)
    if len(layers) != config.n_layer:  # said once, rather than for each tensor of a declared million of layers
        problems.append(f"the config says n_layer {config.n_layer}, the tensors have {len(layers)} layers")
        counted = range(0)
    missing, wrong = [], []
    for rule in RULES:
        shape = tuple(letters[letter] for letter in rule.shape.split())
        for layer in counted if "{" in rule.ours else (0,):
            tensor = tensors.get(rule.ours.format(layer))
            turned = published and rule.transpose
            if tensor is None:
                missing.append((PREFIX + rule.published if published else rule.ours).format(layer))
            elif tensor.shape != shape:
                found, expected = (list(s[::-1] if turned else s) for s in (tensor.shape, shape))
                wrong.append(f"{tensor.name} is {found} and the config asks for {expected}")
    strange = [tensor.name for tensor in tensors.values() if tensor.dtype is None]
    problems += [_listed("missing tensors", missing), _listed("wrong shapes", wrong)]
    return [*problems, _listed("tensors that are not float64, float32, bfloat16 or float16", strange)]


def _raise(problems: Iterable[str]) -> None:
    found = "; ".join(problem for problem in problems if problem)
    if found:
        raise CheckpointError(
            f"the tensors are not those of a GPT-2 with this config: {found}. Check that config.json and the weights "
            f"belong together"
        )


def _listed(kind: str, names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{kind}: {', '.join(names[:_SHOWN])}{more}" if names else ""
