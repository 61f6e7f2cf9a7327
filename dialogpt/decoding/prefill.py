"""Prefilling: compute the tokens of a prompt that the cache does not hold.

A cache row is cropped to the prefix that it shares with the prompt, and the rest is computed; every decoder does that
here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dialogpt.decoding.sequence import TokenSequence
from dialogpt.model import GPT2, KVCache, shared_prefix

MICRO_BATCH = 8  # prompts of similar length, so that there is little padding; 8 of 50 tokens keep a processor busy


def cached_tokens(cache: KVCache, ids: Sequence[int], num_scored: int = 1, row: int = 0) -> int:
    """Return how many tokens need not be computed: the shared prefix, but for the last `num_scored` tokens."""
    return min(shared_prefix(cache.ids[row], ids), len(ids) - num_scored)


def crop_to_prefix(cache: KVCache, ids: Sequence[int], num_scored: int = 1, row: int = 0) -> list[int]:
    """Crop a row of a cache to the prefix that it shares with `ids`, and return the tokens that are missing."""
    cache.crop(row, cached_tokens(cache, ids, num_scored, row))
    return list(ids[len(cache.ids[row]) :])


@torch.inference_mode()
def prefill(model: GPT2, ids: Sequence[int], cache: KVCache, num_scored: int = 0) -> Tensor:
    """Make a cache of one row hold `ids`, computing what is missing.

    Args:
        model: the network.
        ids: what the cache holds afterwards.
        cache: of one row.
        num_scored: how many of the last tokens are computed in any case.

    Returns:
        The hidden states of the computed tokens, (1, T, C); T is 0 if none was missing.
    """
    missing = crop_to_prefix(cache, ids, num_scored)
    if not missing:
        return torch.empty(1, 0, model.config.n_embd)
    return model.hidden(torch.tensor([missing], device=model.device), cache)  # (1, T, C)


def logits_after(model: GPT2, ids: Sequence[int], cache: KVCache, num_scored: int) -> Tensor:
    """Prefill `ids` and return the logits after each of the last tokens: (num_scored, V) in float32."""
    return model.logits(prefill(model, ids, cache, num_scored)[0, -num_scored:]).float()


@dataclass(frozen=True)
class Prefilled:
    """Sequences whose prompts are in a cache.

    Attributes:
        sequences: in the order of the cache's rows.
        cache: of their prompts.
        hidden: the hidden state of each prompt's last token, (B, C).
        is_callers: whether the cache is one that the caller of a decoder passed in.
    """

    sequences: list[TokenSequence]
    cache: KVCache
    hidden: Tensor
    is_callers: bool


def prefill_sequences(
    model: GPT2, waiting: Sequence[TokenSequence], caches: Mapping[TokenSequence, KVCache]
) -> Prefilled:
    """Prefill the prompts of waiting sequences, in microbatches of similar length.

    Args:
        model: the network.
        waiting: at least one sequence. Equal prompts are computed once.
        caches: of one row each, which may hold a prefix of the sequence's prompt. A single sequence is prefilled in its
            own cache, several in copies.
    """
    source: dict[tuple[int, ...], tuple[int, KVCache]] = {}  # of each distinct prompt: cached tokens, cache
    for sequence in waiting:
        prompt, cache = tuple(sequence.ids), caches.get(sequence) or KVCache.for_model(model)
        cached = cached_tokens(cache, prompt)
        if prompt not in source or cached >= source[prompt][0]:
            source[prompt] = cached, cache
    prompts = sorted(source, key=len)
    own = [source[prompt][1] for prompt in prompts]
    cache = own[0] if len(waiting) == 1 else KVCache.joined(own)
    missing = [crop_to_prefix(cache, prompt, row=row) for row, prompt in enumerate(prompts)]
    cache.make_room(len(prompts[-1]))
    hidden = []
    for start in range(0, len(prompts), MICRO_BATCH):
        rows = slice(start, min(start + MICRO_BATCH, len(prompts)))
        microbatch = cache.part(rows.start, rows.stop)
        hidden.append(_last_hidden(model, missing[rows], microbatch))
        cache.ids[rows] = microbatch.ids
    row_of = {prompt: row for row, prompt in enumerate(prompts)}
    sequences = sorted(waiting, key=lambda sequence: row_of[tuple(sequence.ids)])
    rows_of_sequences = [row_of[tuple(sequence.ids)] for sequence in sequences]
    cache.select(rows_of_sequences)  # equal prompts get a row each
    return Prefilled(sequences, cache, torch.cat(hidden)[rows_of_sequences], is_callers=len(waiting) == 1)


def prefill_chunk(
    model: GPT2,
    unfinished: Sequence[TokenSequence],
    running: Collection[TokenSequence],
    caches: dict[TokenSequence, KVCache],
    prompt_tokens: int,
) -> list[TokenSequence]:
    """Return the sequences that take part in a step which computes at most so many tokens of prompts.

    The first sequence whose prompt needs more than is left prefills a chunk of it, and waits for the next step.

    Args:
        model: the network.
        unfinished: all sequences, the longest waiting first.
        running: those whose prompt is prefilled.
        caches: of waiting sequences; a chunk is prefilled into them.
        prompt_tokens: the budget of this step.
    """
    scheduled, prompts, budget = [], set(), prompt_tokens
    for sequence in unfinished:
        ids = tuple(sequence.ids)
        if sequence in running or ids in prompts:
            scheduled.append(sequence)
            continue
        cache = caches.get(sequence)
        cached = 0 if cache is None else cached_tokens(cache, ids)
        if budget and len(ids) - cached > budget:
            cache = caches.setdefault(sequence, KVCache.for_model(model))
            prefill(model, ids[: cached + budget], cache)
            budget = 0
        elif budget:
            scheduled.append(sequence)
            prompts.add(ids)
            budget -= len(ids) - cached
    return scheduled


def _last_hidden(model: GPT2, missing: list[list[int]], cache: KVCache) -> Tensor:
    """Compute the missing tokens of several prompts, padded to the longest: the last hidden states (B, C)."""
    lengths = torch.tensor([len(ids) for ids in missing])
    longest = int(lengths.max())
    padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in missing], device=model.device)  # (B, T)
    hidden = model.hidden(padded, cache, lengths)  # (B, T, C)
    return hidden[torch.arange(len(missing)), lengths - 1]  # (B, C)
