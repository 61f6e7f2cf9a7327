"""Published files under our names: what training frameworks, wrappers and other programs make of GPT-2's tensors.

A name may stand behind whatever wrappers training leaves: `module.` of several GPUs, `_orig_mod.` of torch.compile. A
file may hold tensors that a reply does not need, an output head of its own, or nanoGPT's (out, in) matrices. The table
of names is in `names.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch

from dialogpt.model import GPT2Config
from dialogpt.weights import names
from dialogpt.weights.formats import StoredTensor, same_values
from dialogpt.weights.names import (
    EMBEDDING,
    HEADS,
    OUTPUT_HEAD,
    PREFIX,
    RANKING_HEAD,
    Mapped,
    listed,
    mismatches,
    ranking_problems,
    refuse,
    sizes,
    split_layer,
    transposed,
)

TIED = "the output head, equal to the token embedding"
IGNORED = {  # published tensors that a reply does not need, and why
    "h.{}.attn.bias": "the causal mask, which attention computes",
    "h.{}.attn.masked_bias": "the value of masked scores, which attention computes",
    "lm_head.bias": "a bias of the output head, which GPT2LMHeadModel has not and transformers leaves out too",
    "score.bias": "a constant of each label's score, which no reply and no order of replies depends on",
}
IGNORED_HEADS = {  # what a name begins with
    "v_head.": "the value head of TRL's reinforcement learning, which no reply needs",
    "multiple_choice_head.": "the multiple-choice head of GPT2DoubleHeadsModel, which no reply needs",
    "classifier.": "a classifier, which no reply needs",
}
CLASSIFIER = "a classifier of several labels, which no reply needs"
WRAPPERS = ("module.", "_module.", "model.", "pretrained_model.", PREFIX)  # leading: DDP's, Opacus', Lightning's, TRL's
_INNER = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def from_published(stored: Mapping[str, StoredTensor], config: GPT2Config) -> Mapped:
    """Give a published file's tensors our names, and our orientation.

    Raises:
        CheckpointError: tensors are missing, unknown, duplicate, or of the wrong shape or dtype; all are named.
    """
    rules = {rule.published: rule for rule in names.RULES}
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
            found.ignored[published] = CLASSIFIER
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
    problems = [listed("unknown tensors", found.unknown), listed("duplicate tensors", found.twice)]
    problems += found.problems + mismatches(found.tensors, config, published=True, linear=linear)
    problems += [listed("wrong shapes", ranking_problems(head, config)) for head in found.ranking_heads]
    refuse(problems)
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

    The attention matrix, which is three times wider than high, shows it for all; square ones could not.
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

    Equal copies are one tensor, whatever the config claims. Copies that differ are not tied, as in transformers 5.
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
    norm_and_matrix = [rule for rule in names.RULES if rule.ours.endswith(".bias")]
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
