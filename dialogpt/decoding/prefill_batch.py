"""Prefilling several prompts: together in microbatches, or a chunk at a time beside sequences that are running."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from dialogpt.decoding.prefill import Prefilled, cached_tokens, crop_to_prefix, prefill
from dialogpt.decoding.sequence import TokenSequence
from dialogpt.model import GPT2, KVCache
from dialogpt.model.cache_rows import joined, part_of, select_rows

MICRO_BATCH = 8  # prompts of similar length, so that there is little padding; 8 of 50 tokens keep a processor busy


def prefill_sequences(
    model: GPT2, waiting: Sequence[TokenSequence], caches: Mapping[TokenSequence, KVCache]
) -> Prefilled:
    """Prefill the prompts of several sequences, in microbatches of similar length.

    Args:
        model: the network.
        waiting: the sequences. Equal prompts are computed once.
        caches: of one row each, which may hold a prefix of the sequence's prompt; they are copied.
    """
    source: dict[tuple[int, ...], tuple[int, KVCache]] = {}  # of each distinct prompt: cached tokens, cache
    for sequence in waiting:
        prompt, cache = tuple(sequence.ids), caches.get(sequence) or KVCache.for_model(model)
        cached = cached_tokens(cache, prompt)
        if prompt not in source or cached >= source[prompt][0]:
            source[prompt] = cached, cache
    prompts = sorted(source, key=len)
    cache = joined([source[prompt][1] for prompt in prompts])
    missing = [crop_to_prefix(cache, prompt, row=row) for row, prompt in enumerate(prompts)]
    cache.make_room(len(prompts[-1]))
    hidden = []
    for start in range(0, len(prompts), MICRO_BATCH):
        rows = slice(start, min(start + MICRO_BATCH, len(prompts)))
        microbatch = part_of(cache, rows.start, rows.stop)
        hidden.append(_last_hidden(model, missing[rows], microbatch))
        cache.ids[rows] = microbatch.ids
    row_of = {prompt: row for row, prompt in enumerate(prompts)}
    sequences = sorted(waiting, key=lambda sequence: row_of[tuple(sequence.ids)])
    rows_of_sequences = [row_of[tuple(sequence.ids)] for sequence in sequences]
    select_rows(cache, rows_of_sequences)  # equal prompts get a row each
    return Prefilled(sequences, cache, torch.cat(hidden)[rows_of_sequences], borrowed=False)


def prefill_chunk(
    model: GPT2,
    unfinished: Sequence[TokenSequence],
    running: Collection[TokenSequence],
    caches: dict[TokenSequence, KVCache],
    prefill_budget: int,
) -> list[TokenSequence]:
    """Return the sequences that take part in a step which computes at most `prefill_budget` tokens of prompts.

    The first sequence whose prompt needs more than is left prefills a chunk of it, and waits for the next step.

    Args:
        model: the network.
        unfinished: all sequences, the longest waiting first.
        running: those whose prompt is prefilled.
        caches: of waiting sequences; a chunk is prefilled into them.
        prefill_budget: of this step, in tokens.
    """
    scheduled, prompts, budget = [], set(), prefill_budget
    for sequence in unfinished:
        ids = tuple(sequence.ids)
        if sequence in running or ids in prompts:
            scheduled.append(sequence)
            continue
        cache = caches.get(sequence)
        cached = 0 if cache is None else cached_tokens(cache, ids)
        if budget and len(ids) - cached > budget:
            cache = caches.setdefault(sequence, KVCache.for_model(model))
            prefill(model, ids[: cached + budget], cache, num_scored=0)
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
