"""Whose tensor is whose: one table from the published GPT-2 names to ours, read in both directions.

The published names are those of `GPT2LMHeadModel` in transformers. `published.py` reads the table from left to right,
and knows what else a published file may hold; `to_published` below reads it from right to left. Reading bytes is left
to `dialogpt.weights.formats`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from dialogpt.errors import first_names
from dialogpt.model import GPT2Config
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
# A fine-tune's whose head was trained apart from the embedding (tie_word_embeddings false).
OUTPUT_HEAD = Rule("lm_head.weight", "output_head.weight", "V C")
# DialogRPT's: one number from the last token's state, how good a reply is. GPT2ForSequenceClassification calls it so.
RANKING_HEAD = Rule("score.weight", "ranking_head.weight", "1 C")
HEADS, EMBEDDING = ("lm_head.weight", "lm_head.decoder.weight"), "token_embedding.weight"  # the second is Microsoft's
PREFIX = "transformer."
_LAYER = re.compile(r"(h|blocks)\.(0|[1-9][0-9]{0,5})\.")


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


def from_ours(stored: Mapping[str, StoredTensor], config: GPT2Config) -> Mapped:
    """Check that a file under our own names holds the network of `config`, all of it and nothing else.

    Raises:
        CheckpointError: tensors are missing, unknown, or of the wrong shape or dtype; all are named.
    """
    rules = RULES if config.tie_word_embeddings else (*RULES, OUTPUT_HEAD)
    ours = {rule.ours for rule in rules}
    known = {name: tensor for name, tensor in stored.items() if split_layer(name)[0] in ours}
    ranking_head = stored.get(RANKING_HEAD.ours)
    unknown = [name for name in stored if name not in known and name != RANKING_HEAD.ours]
    wrong = [] if ranking_head is None else ranking_problems(ranking_head, config)
    problems = [listed("unknown tensors", unknown), *mismatches(known, config, published=False)]
    refuse([*problems, listed("wrong shapes", wrong)])
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


def mismatches(
    tensors: Mapping[str, StoredTensor], config: GPT2Config, *, published: bool, linear: bool = False
) -> list[str]:
    """Compare tensors under our names with what `config` asks for, in words of the file that they came from."""
    letters = sizes(config)
    layers = {split_layer(name)[1] for name in tensors if name.startswith("blocks.")}
    problems = []
    counted = range(config.n_layer)
    if len(layers) != config.n_layer:  # reported once, not for each tensor of a declared million layers
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
    problems += [listed("missing tensors", missing), listed("wrong shapes", wrong)]
    return [*problems, listed("tensors that are not float64, float32, bfloat16 or float16", strange)]


def ranking_problems(head: StoredTensor, config: GPT2Config) -> list[str]:
    """Return what is wrong with a ranking head."""
    if head.shape == (1, config.n_embd) and head.dtype is not None:
        return []
    return [f"{head.name} is {list(head.shape)} and a ranking head is [1, {config.n_embd}]"]


def refuse(problems: Iterable[str]) -> None:
    """Report all problems in one error; empty ones are none.

    Raises:
        CheckpointError: there are some.
    """
    found = "; ".join(problem for problem in problems if problem)
    if found:
        raise CheckpointError(
            f"the tensors are not those of a GPT-2 with this config: {found}. Check that config.json and the weights "
            f"belong together; without a config.json, sizes are taken from published tensors"
        )


def listed(kind: str, names: Iterable[str]) -> str:
    """Return a problem that several tensors share; empty where there is none."""
    names = list(names)
    return f"{kind}: {first_names(names)}" if names else ""
