"""Whose tensor is whose: one table from the published GPT-2 names to ours, read in both directions.

The published names are those of `GPT2LMHeadModel` in transformers, with or without their `transformer.` prefix, and
behind the `module.` that training on several GPUs leaves. Reading files is left to `dialogpt.weights.formats`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from dialogpt.model import ConfigError, GPT2Config
from dialogpt.weights.formats import CheckpointError, StoredTensor


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
# DialogRPT's: one number from the last token's state, how good a reply is. GPT2ForSequenceClassification calls it so.
RANKING_HEAD = Rule("score.weight", "ranking_head.weight", "1 C")
_TIED = "the output head, tied to the token embedding (compared with it when loaded)"
IGNORED = {  # published tensors that hold nothing learned, and why they are not needed
    "h.{}.attn.bias": "the causal mask, which attention computes",
    "h.{}.attn.masked_bias": "the value of masked scores, which attention computes",
    "lm_head.weight": _TIED,
    "lm_head.decoder.weight": _TIED,  # Microsoft's own files call it so
}
HEADS, EMBEDDING = ("lm_head.weight", "lm_head.decoder.weight"), "token_embedding.weight"
PREFIX, PARALLEL_PREFIX = "transformer.", "module."
HEAD_DIM = 64  # of every published GPT-2
_LAYER = re.compile(r"(h|blocks)\.(0|[1-9][0-9]{0,5})\.")
_SHOWN = 4  # names of one kind in an error; a wrong file would list hundreds


def sizes(config: GPT2Config) -> dict[str, int]:
    """What the letters of the rules' shapes stand for: the legend's V and C, P positions and I the MLP's width."""
    C = config.n_embd
    return {"V": config.vocab_size, "P": config.n_positions, "C": C, "3C": 3 * C, "I": config.inner_dim, "1": 1}


@dataclass(frozen=True)
class Mapped:
    """A file's tensors under our names.

    Attributes:
        tensors: all that the network needs, each once.
        ignored: name in the file -> why it is not needed.
        heads: the published file's own copies of the output head, to be compared with the token embedding.
        ranking_head: DialogRPT's, for judging replies.
    """

    tensors: dict[str, StoredTensor]
    ignored: dict[str, str] = field(default_factory=dict)
    heads: tuple[StoredTensor, ...] = ()
    ranking_head: StoredTensor | None = None


def infer_config(stored: Mapping[str, StoredTensor], n_head: int | None) -> GPT2Config:
    """The sizes of a published file that comes without a ``config.json``, from the shapes of its tensors alone.

    Args:
        stored: the file's tensors.
        n_head: heads of attention, which no shape tells; None takes heads of 64, as every published GPT-2 has.

    Raises:
        CheckpointError: the tensors are not a GPT-2's, or their width is no multiple of a head's.
    """
    shapes = {_split(bare_name(name)): tensor.shape for name, tensor in stored.items()}
    V, C = _matrix(shapes, "wte.weight")
    P, _ = _matrix(shapes, "wpe.weight")
    _, inner = _matrix(shapes, "h.{}.mlp.c_fc.weight")  # (in, out)
    if n_head is None and C % HEAD_DIM:
        raise CheckpointError(
            f"there is no config.json, and the width {C} is not a multiple of {HEAD_DIM}, the width of a head in every "
            f"published GPT-2; say how many heads there are (--n-head)"
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


def _matrix(shapes: Mapping[tuple[str, int], tuple[int, ...]], name: str) -> tuple[int, int]:
    """The shape of a tensor that says a size, in the first layer."""
    shape = shapes.get((name, 0), ())
    if len(shape) != 2:
        found = "is missing" if (name, 0) not in shapes else f"is {list(shape)}, and a matrix was expected"
        raise CheckpointError(
            f"there is no config.json, and the tensors are not those of a GPT-2: {PREFIX}{name.format(0)} {found}"
        )
    return shape[0], shape[1]


def from_published(stored: Mapping[str, StoredTensor], config: GPT2Config) -> Mapped:
    """Give a published file's tensors our names, and our orientation.

    Raises:
        CheckpointError: tensors are missing, unknown, there twice, or of the wrong shape or dtype; all are named.
    """
    rules = {rule.published: rule for rule in RULES}
    tensors: dict[str, StoredTensor] = {}
    ignored: dict[str, str] = {}
    heads: list[StoredTensor] = []
    ranking_heads: list[StoredTensor] = []
    unknown, twice = [], []
    for published, tensor in stored.items():
        template, layer = _split(bare_name(published))
        if template in IGNORED:
            ignored[published] = IGNORED[template]
            heads += [tensor] if template in HEADS else []
        elif template == RANKING_HEAD.published:
            ranking_heads.append(tensor)
            twice += [published] if len(ranking_heads) > 1 else []
        elif template not in rules:
            unknown.append(published)
        elif (name := rules[template].ours.format(layer)) in tensors:
            twice.append(published)
        else:
            tensors[name] = _transposed(tensor) if rules[template].transpose else tensor
    problems = [_listed("unknown tensors", unknown), _listed("tensors that are there twice", twice)]
    problems += _problems(tensors, config, published=True)
    problems += [
        f"{head.name} is {list(head.shape)}, not a copy of the token embedding"
        for head in heads
        if head.dtype is None or head.shape != (config.vocab_size, config.n_embd)
    ]
    problems += [_listed("wrong shapes", _ranking_problems(head, config)) for head in ranking_heads]
    _raise(problems)
    return Mapped(tensors, ignored, tuple(heads), ranking_heads[0] if ranking_heads else None)


def bare_name(published: str) -> str:
    """A published name without the prefixes that files may have; only a leading one is meant."""
    return published.removeprefix(PARALLEL_PREFIX).removeprefix(PREFIX)


def _ranking_problems(head: StoredTensor, config: GPT2Config) -> list[str]:
    if head.shape == (1, config.n_embd) and head.dtype is not None:
        return []
    return [f"{head.name} is {list(head.shape)} and a ranking head is [1, {config.n_embd}]"]


def from_ours(stored: Mapping[str, StoredTensor], config: GPT2Config) -> Mapped:
    """Check that a file under our own names holds the network of `config`, all of it and nothing else.

    Raises:
        CheckpointError: as `from_published`.
    """
    ours = {rule.ours for rule in RULES}
    known = {name: tensor for name, tensor in stored.items() if _split(name)[0] in ours}
    ranking_head = stored.get(RANKING_HEAD.ours)
    unknown = [name for name in stored if name not in known and name != RANKING_HEAD.ours]
    wrong = [] if ranking_head is None else _ranking_problems(ranking_head, config)
    problems = [_listed("unknown tensors", unknown), *_problems(known, config, published=False)]
    _raise([*problems, _listed("wrong shapes", wrong)])
    return Mapped(known, ranking_head=ranking_head)


def to_published(tensors: Mapping[str, StoredTensor]) -> list[StoredTensor]:
    """Give our tensors the names and the orientation that `GPT2LMHeadModel.from_pretrained` reads."""
    rules = {rule.ours: rule for rule in (*RULES, RANKING_HEAD)}
    published = []
    for name, tensor in tensors.items():
        template, layer = _split(name)
        rule = rules[template]
        turned = _transposed(tensor) if rule.transpose else tensor
        prefix = "" if rule is RANKING_HEAD else PREFIX
        published.append(replace(turned, name=prefix + rule.published.format(layer)))
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
            f"belong together; without a config.json, sizes are taken from published tensors"
        )


def _listed(kind: str, names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{kind}: {', '.join(names[:_SHOWN])}{more}" if names else ""
