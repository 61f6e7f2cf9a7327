"""Whose tensor is whose: one table from the published GPT-2 names to ours, read in both directions.

The published names are those of `GPT2LMHeadModel` in transformers, with or without their `transformer.` prefix, and
behind whatever wrappers training leaves: `module.` of several GPUs, `_orig_mod.` of torch.compile.
Reading files is left to `dialogpt.weights.formats`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from dialogpt.model import ConfigError, GPT2Config
from dialogpt.weights.formats import CheckpointError, StoredTensor, same_values


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
# A fine-tune's whose head was trained apart from the embedding (tie_word_embeddings false).
OUTPUT_HEAD = Rule("lm_head.weight", "output_head.weight", "V C")
# DialogRPT's: one number from the last token's state, how good a reply is. GPT2ForSequenceClassification calls it so.
RANKING_HEAD = Rule("score.weight", "ranking_head.weight", "1 C")
TIED = "the output head, equal to the token embedding"
IGNORED = {  # published tensors that a reply does not need, and why
    "h.{}.attn.bias": "the causal mask, which attention computes",
    "h.{}.attn.masked_bias": "the value of masked scores, which attention computes",
    "lm_head.bias": "a bias of the output head, which GPT2LMHeadModel has not and transformers leaves out too",
    "score.bias": "a constant that all scores share, which no order of replies depends on",
}
IGNORED_HEADS = {  # what a name begins with
    "v_head.": "the value head of TRL's reinforcement learning, which no reply needs",
    "multiple_choice_head.": "the multiple-choice head of GPT2DoubleHeadsModel, which no reply needs",
    "classifier.": "a classifier, which no reply needs",
}
_CLASSIFIER = "a classifier of several labels, which no reply needs"
HEADS, EMBEDDING = ("lm_head.weight", "lm_head.decoder.weight"), "token_embedding.weight"  # the second is Microsoft's
PREFIX = "transformer."
WRAPPERS = ("module.", "_module.", "model.", "pretrained_model.", PREFIX)  # leading: DDP's, Opacus', Lightning's, TRL's
_INNER = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
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
        heads: the published file's own copies of the output head, which equal the token embedding.
        ranking_head: DialogRPT's, for scoring replies.
        tied: whether the output head is the token embedding.
    """

    tensors: dict[str, StoredTensor]
    ignored: dict[str, str] = field(default_factory=dict)
    heads: tuple[StoredTensor, ...] = ()
    ranking_head: StoredTensor | None = None
    tied: bool = True


def infer_config(stored: Mapping[str, StoredTensor], n_head: int | None) -> GPT2Config:
    """The sizes of a published file that comes without a ``config.json``, from the shapes of its tensors alone.

    Args:
        stored: the file's tensors.
        n_head: heads of attention, which no shape tells; None takes heads of 64, as every published GPT-2 has.

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
    linear = is_linear(stored)
    found = _Found()
    for published, tensor in stored.items():
        template, layer = split_layer(bare_name(published))
        reason = IGNORED.get(template) or next(
            (why for head, why in IGNORED_HEADS.items() if template.startswith(head)), ""
        )
        if template in HEADS:
            found.heads.append(tensor)
        elif template == RANKING_HEAD.published and len(tensor.shape) == 2 and tensor.shape[0] != 1:
            found.ignored[published] = _CLASSIFIER
        elif template == RANKING_HEAD.published:
            found.ranking_heads.append(tensor)
            found.twice += [published] if len(found.ranking_heads) > 1 else []
        elif reason:
            found.ignored[published] = reason
        elif template not in rules:
            found.unknown.append(published)
        elif (name := rules[template].ours.format(layer)) in found.tensors:
            found.twice.append(published)
        else:
            found.tensors[name] = transposed(tensor) if rules[template].transpose and not linear else tensor
    _tie(found, config)
    if linear:
        _add_zero_biases(found.tensors, config)
    problems = [_listed("unknown tensors", found.unknown), _listed("tensors that are there twice", found.twice)]
    problems += found.problems + _problems(found.tensors, config, published=True, linear=linear)
    problems += [_listed("wrong shapes", _ranking_problems(head, config)) for head in found.ranking_heads]
    _raise(problems)
    ranking_head = found.ranking_heads[0] if found.ranking_heads else None
    return Mapped(found.tensors, found.ignored, tuple(found.heads), ranking_head, OUTPUT_HEAD.ours not in found.tensors)


@dataclass
class _Found:
    """What of a published file has been sorted so far."""

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    heads: list[StoredTensor] = field(default_factory=list)
    ranking_heads: list[StoredTensor] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def is_linear(stored: Mapping[str, StoredTensor]) -> bool:
    """Whether a file's matrices are nn.Linear's (out, in), as nanoGPT writes them, and not Conv1D's (in, out).

    The three times wider attention matrix tells, for all matrices of the file; the square ones could not.
    """
    for name, tensor in stored.items():
        if split_layer(bare_name(name))[0] == "h.{}.attn.c_attn.weight" and len(tensor.shape) == 2:
            return tensor.shape[0] == 3 * tensor.shape[1]
    return False


def is_usual(stored: Mapping[str, StoredTensor]) -> bool:
    """Whether names and matrices are as transformers writes them."""
    return not is_linear(stored) and all(name.removeprefix(PREFIX) == bare_name(name) for name in stored)


def _tie(found: _Found, config: GPT2Config) -> None:
    """Decide what the output head is: the embedding, which a file may hold under either name, or one of its own.

    Equal copies are one tensor, whatever the config says. Copies that differ are not tied, as in transformers 5.
    """
    shape = (config.vocab_size, config.n_embd)
    fitting = [head for head in found.heads if head.shape == shape and head.dtype is not None]
    wrong = [head for head in found.heads if head not in fitting]
    if wrong:
        found.problems += [f"{head.name} is {list(head.shape)}, and an output head is {list(shape)}" for head in wrong]
        return
    embedding = found.tensors.get(EMBEDDING)
    if embedding is None and found.heads:
        found.tensors[EMBEDDING] = found.heads.pop(0)
    elif embedding is not None and embedding.shape == shape and embedding.dtype is not None:
        own = [head for head in found.heads if not same_values(head, embedding)]
        if len(own) > 1 and not all(same_values(head, own[0]) for head in own[1:]):
            found.twice += [head.name for head in own]
        elif own:
            found.tensors[OUTPUT_HEAD.ours] = own[0]
        found.heads = [head for head in found.heads if head not in own]
    found.ignored |= {head.name: TIED for head in found.heads}


def _add_zero_biases(tensors: dict[str, StoredTensor], config: GPT2Config) -> None:
    """Fill in the biases that nanoGPT leaves out with ``bias=False``; it has all of them or none."""
    letters = sizes(config)
    norm_and_matrix = [rule for rule in RULES if rule.ours.endswith(".bias")]
    if any(rule.ours.format(0) in tensors for rule in norm_and_matrix) or config.n_layer > len(tensors):
        return
    dtype = next((tensor.dtype for tensor in tensors.values() if tensor.dtype is not None), torch.float32)
    for rule in norm_and_matrix:
        for layer in range(config.n_layer) if "{" in rule.ours else (0,):
            name, shape = rule.ours.format(layer), (letters[rule.shape],)
            tensors[name] = StoredTensor(name, shape, dtype, partial(torch.zeros, shape, dtype=dtype))


def bare_name(published: str) -> str:
    """A published name without the prefixes that training leaves, in any order; a name in the middle is part of it."""
    name = _INNER.sub("", published)
    while name.startswith(WRAPPERS):
        prefix = next(wrapper for wrapper in WRAPPERS if name.startswith(wrapper))
        name = _INNER.sub("", name.removeprefix(prefix))
    return name


def _ranking_problems(head: StoredTensor, config: GPT2Config) -> list[str]:
    if head.shape == (1, config.n_embd) and head.dtype is not None:
        return []
    return [f"{head.name} is {list(head.shape)} and a ranking head is [1, {config.n_embd}]"]


def from_ours(stored: Mapping[str, StoredTensor], config: GPT2Config) -> Mapped:
    """Check that a file under our own names holds the network of `config`, all of it and nothing else.

    Raises:
        CheckpointError: as `from_published`.
    """
    rules = RULES if config.tie_word_embeddings else (*RULES, OUTPUT_HEAD)
    ours = {rule.ours for rule in rules}
    known = {name: tensor for name, tensor in stored.items() if split_layer(name)[0] in ours}
    ranking_head = stored.get(RANKING_HEAD.ours)
    unknown = [name for name in stored if name not in known and name != RANKING_HEAD.ours]
    wrong = [] if ranking_head is None else _ranking_problems(ranking_head, config)
    problems = [_listed("unknown tensors", unknown), *_problems(known, config, published=False)]
    _raise([*problems, _listed("wrong shapes", wrong)])
    return Mapped(known, ranking_head=ranking_head, tied=config.tie_word_embeddings)


def to_published(tensors: Mapping[str, StoredTensor]) -> list[StoredTensor]:
    """Give our tensors the names and the orientation that `GPT2LMHeadModel.from_pretrained` reads."""
    rules = {rule.ours: rule for rule in (*RULES, OUTPUT_HEAD, RANKING_HEAD)}
    published = []
    for name, tensor in tensors.items():
        template, layer = split_layer(name)
        rule = rules[template]
        turned = transposed(tensor) if rule.transpose else tensor
        prefix = "" if rule in (RANKING_HEAD, OUTPUT_HEAD) else PREFIX
        published.append(replace(turned, name=prefix + rule.published.format(layer)))
    return published


def split_layer(name: str) -> tuple[str, int]:
    """Take the layer out of a name: "h.3.ln_1.bias" -> ("h.{}.ln_1.bias", 3).

    A name that holds braces itself, as no published one does, becomes one that no rule knows.
    """
    match = _LAYER.match(name)
    if "{" in name or match is None:
        return name.replace("{", "?"), 0
    return f"{match[1]}.{{}}.{name[match.end() :]}", int(match[2])


def transposed(tensor: StoredTensor) -> StoredTensor:
    """The same matrix, turned when it is read."""
    return replace(tensor, shape=tensor.shape[::-1], read=lambda: tensor.read().t())


def _problems(
    tensors: Mapping[str, StoredTensor], config: GPT2Config, *, published: bool, linear: bool = False
) -> list[str]:
    """Compare tensors under our names with what `config` asks for, in words of the file that they came from."""
    letters = sizes(config)
    layers = {split_layer(name)[1] for name in tensors if name.startswith("blocks.")}
    problems = []
    counted = range(config.n_layer)
    if len(layers) != config.n_layer:  # said once, rather than for each tensor of a declared million of layers
        problems.append(f"the config says n_layer {config.n_layer}, the tensors have {len(layers)} layers")
        counted = range(0)
    missing, wrong = [], []
    for rule in RULES if published or config.tie_word_embeddings else (*RULES, OUTPUT_HEAD):
        shape = tuple(letters[letter] for letter in rule.shape.split())
        for layer in counted if "{" in rule.ours else (0,):
            tensor = tensors.get(rule.ours.format(layer))
            turned = published and rule.transpose and not linear
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
