"""The rows of a cache that many sequences share: they join, leave, change places and are copied."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dialogpt.model.cache import KVCache, outside_inference_mode, shared_prefix, widened


@outside_inference_mode
def joined(caches: Sequence[KVCache]) -> KVCache:
    """A new cache with copies of the rows of several, at least one, and no more slots than they need."""
    capacity = caches[0].capacity_for(max(len(row) for cache in caches for row in cache.ids))
    parts = [widened(cache.buffer[:, :, :, :, :capacity], capacity) for cache in caches]
    together = KVCache(torch.cat(parts, dim=2), caches[0].max_length)
    together.ids = [list(ids) for cache in caches for ids in cache.ids]
    return together


def copied(cache: KVCache) -> KVCache:
    """A cache of the same rows, in memory of its own."""
    return joined([cache])


@outside_inference_mode
def add_rows(cache: KVCache, other: KVCache) -> None:
    """Append copies of another cache's rows.

    The memory doubles when it is full, so that rows which join one by one are copied only a few times.
    """
    first, rows = len(cache.ids), len(cache.ids) + len(other.ids)
    longest = max(map(len, other.ids), default=0)
    cache.make_room(longest)
    if rows > cache.memory.size(2):
        L, two, _, H, capacity, D = cache.memory.shape
        larger = cache.memory.new_empty(L, two, max(rows, 2 * first), H, capacity, D)
        larger[:, :, :first] = cache.buffer
        cache.memory = larger
    cache.buffer = cache.memory[:, :, :rows]
    cache.buffer[:, :, first:, :, :longest] = other.buffer[:, :, :, :, :longest]
    cache.buffer[:, :, first:, :, longest:] = 0  # the memory may be that of rows that left
    cache.ids += [list(ids) for ids in other.ids]


def part_of(cache: KVCache, start: int, stop: int) -> KVCache:
    """Make a cache of some of the rows that shares this cache's memory.

    The caller makes room before (`make_room`), as a part that grows gets memory of its own, and records afterwards
    what was read into the part: ``cache.ids[start:stop] = rows.ids``.
    """
    rows = KVCache(cache.buffer[:, :, start:stop], cache.max_length)
    rows.ids = [list(ids) for ids in cache.ids[start:stop]]
    return rows


@outside_inference_mode
def select_rows(cache: KVCache, rows: Sequence[int]) -> None:
    """Keep these rows, in this order: reorders, drops, and (a row named twice) copies."""
    if list(rows) == list(range(len(cache.ids))):
        return
    index = torch.tensor(rows, dtype=torch.long, device=cache.buffer.device)
    if len(rows) == len(cache.ids):  # beams: only the slots after the prefix that all share differ
        end = max(map(len, cache.ids))
        start = min(shared_prefix(ids, cache.ids[row]) for ids, row in zip(cache.ids, rows, strict=True))
        differing = cache.buffer[:, :, :, :, start:end]
        differing.copy_(differing.index_select(2, index))
    elif all(row == index or row >= len(rows) for index, row in enumerate(rows)) and len({*rows}) == len(rows):
        for new_row, row in enumerate(rows):  # as `fill_gaps` asks: the last rows replace those that finished
            if row != new_row:
                cache.buffer[:, :, new_row] = cache.buffer[:, :, row]
        cache.buffer = cache.buffer[:, :, : len(rows)]
    else:
        cache.buffer = cache.memory = cache.buffer.index_select(2, index)
    cache.ids = [list(cache.ids[row]) for row in rows]
