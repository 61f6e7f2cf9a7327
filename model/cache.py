"""The key-value cache: what attention has computed for tokens that it has already read.

One class for every loop that decodes: one chat, ragged batches, rows that finish, candidates of one prompt, requests
that join. It knows which token ids it holds, and so its lengths; the network only appends to it. Whose rows these are
and when to cut them is left to the decoder.

A row's slots are its positions: the token at position p has its key in slot p, so no slot is ever padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from model.gpt2 import GPT2

BLOCK = 64  # slots the buffers grow by: 4.7 MB a row for GPT-2 small in float32, one growth per 64 tokens


class CacheFull(ValueError):
    """More tokens than the network has positions; the cache is left as it was."""


class KVCache:
    """Keys and values of the tokens read so far, in rows of different lengths.

    Example: two rows holding 3 and 1 tokens; after ``reserve([2, 2])``, an ``append`` per layer, and
    ``advance([[7, 8], [9, 7]])`` they hold 5 and 3.

    Attributes:
        ids: the token ids held, row by row.
        max_length: the most tokens a row can hold, the network's `n_positions`.
    """

    def __init__(self, keys: Tensor, values: Tensor, max_length: int) -> None:
        """Wrap empty buffers, both (L, B, H, capacity, D); `for_model` makes them."""
        self.keys = keys
        self.values = values
        self.max_length = max_length
        self.ids: list[list[int]] = [[] for _ in range(keys.size(1))]

    @classmethod
    def for_model(cls, model: GPT2, rows: int = 1) -> KVCache:
        """An empty cache that fits `model`, with its dtype and on its device."""
        config = model.config
        shape = (config.n_layer, rows, config.n_head, 0, config.head_dim)  # (L, B, H, capacity, D)
        keys, values = (torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in range(2))
        return cls(keys, values, config.n_positions)

    @classmethod
    def joined(cls, caches: Sequence[KVCache], rows: Sequence[tuple[int, int]] | None = None) -> KVCache:
        """A new cache with copies of rows of several.

        Args:
            caches: at least one.
            rows: which rows, as (cache, row of it); None is all of them in their order.
        """
        if rows is None:
            rows = [(place, row) for place, cache in enumerate(caches) for row in range(len(cache.ids))]
        L, _, H, _, D = caches[0].keys.shape
        capacity = max(cache.keys.size(3) for cache in caches)
        keys, values = (caches[0].keys.new_zeros(L, len(rows), H, capacity, D) for _ in range(2))
        for place, cache in enumerate(caches):
            chosen = [(new, row) for new, (source, row) in enumerate(rows) if source == place]
            into = torch.tensor([new for new, _ in chosen], dtype=torch.long, device=keys.device)
            own = torch.tensor([row for _, row in chosen], dtype=torch.long, device=keys.device)
            held = cache.keys.size(3)
            keys[:, into, :, :held] = cache.keys[:, own]
            values[:, into, :, :held] = cache.values[:, own]
        joined = cls(keys, values, caches[0].max_length)
        joined.ids = [list(caches[place].ids[row]) for place, row in rows]
        return joined

    def copy(self) -> KVCache:
        """A cache of the same rows, in memory of its own."""
        return KVCache.joined([self])

    @property
    def lengths(self) -> Tensor:
        """Tokens held by each row: (B,), on the CPU."""
        return torch.tensor([len(row) for row in self.ids])

    # ---- called by the network, in this order, once per forward pass ----

    def reserve(self, new: Sequence[int]) -> None:
        """Make room for `new` further tokens per row and plan their slots.

        Raises:
            CacheFull: a row would hold more than `max_length` tokens.
        """
        held = [len(row) for row in self.ids]
        end = max(h + n for h, n in zip(held, new, strict=True))
        for row, (h, n) in enumerate(zip(held, new, strict=True)):
            if h + n > self.max_length:
                raise CacheFull(
                    f"the cache is full: row {row} holds {h} tokens and {n} more were asked for, but the network has "
                    f"{self.max_length} positions; drop the oldest turns or generate fewer tokens"
                )
        self.make_room(end)
        self._start, self._end = held[0], end
        self._aligned = len(set(held)) == 1 and len(set(new)) == 1
        if not self._aligned:  # the k-th new token of all rows together: its row, its step and its slot
            self._rows = torch.tensor([b for b, n in enumerate(new) for _ in range(n)], device=self.keys.device)
            self._steps = torch.tensor([t for n in new for t in range(n)], device=self.keys.device)
            self._slots = torch.tensor(held, device=self.keys.device)[self._rows] + self._steps

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values, and return all that the layer holds.

        Args:
            layer: index of the block.
            keys: (B, H, T, D), right-padded; padded steps are not stored.
            values: likewise.

        Returns:
            Keys and values, (B, H, S, D), S the longest row after this pass. Slots beyond a row's length hold zeros
            or what was cut off; attention masks them.
        """
        for buffer, new in ((self.keys[layer], keys), (self.values[layer], values)):
            if self._aligned:
                buffer[:, :, self._start : self._end] = new[:, :, : self._end - self._start]
            else:
                buffer[self._rows, :, self._slots] = new[self._rows, :, self._steps]  # (sum of new, H, D)
        return self.keys[layer, :, :, : self._end], self.values[layer, :, :, : self._end]  # (B, H, S, D)

    def advance(self, ids: Sequence[Sequence[int]]) -> None:
        """Record the ids that were read, one list a row: from here on the cache holds them."""
        self.ids = [held + list(new) for held, new in zip(self.ids, ids, strict=True)]

    # ---- called by the decoder ----

    def make_room(self, length: int) -> None:
        """Let every row be able to hold `length` tokens without growing."""
        if length > self.keys.size(3):
            capacity = min(-(-length // BLOCK) * BLOCK, self.max_length)
            self.keys, self.values = (_widen(buffer, capacity) for buffer in (self.keys, self.values))

    def part(self, start: int, stop: int) -> KVCache:
        """Some of the rows, in this cache's own memory: what is read into them must not need more room.

        What they hold afterwards is made known by ``cache.ids[start:stop] = part.ids``.
        """
        part = KVCache(self.keys[:, start:stop], self.values[:, start:stop], self.max_length)
        part.ids = [list(ids) for ids in self.ids[start:stop]]
        return part

    def crop(self, row: int, length: int) -> None:
        """Forget all but the first `length` tokens of a row.

        Their slots become zero again, as they were: what is masked must at least be finite.
        """
        held = len(self.ids[row])
        if not 0 <= length <= held:
            raise ValueError(f"row {row} holds {held} tokens and cannot be cut to {length}")
        if length == held:
            return
        self.ids[row] = self.ids[row][:length]
        self.keys[:, row, :, length:held] = 0
        self.values[:, row, :, length:held] = 0

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order: reorders, drops, and (a row named twice) copies."""
        if list(rows) == list(range(len(self.ids))):
            return
        index = torch.tensor(rows, dtype=torch.long, device=self.keys.device)
        if len(rows) == len(self.ids):  # beams share their beginning, which need not be copied
            end = max(map(len, self.ids))
            start = min(shared_prefix(ids, self.ids[row]) for ids, row in zip(self.ids, rows, strict=True))
            for buffer in (self.keys, self.values):
                buffer[:, :, :, start:end] = buffer[:, :, :, start:end].index_select(1, index)
        elif all(row == place or row >= len(rows) for place, row in enumerate(rows)) and len({*rows}) == len(rows):
            for place, row in enumerate(rows):  # rows from the end fill the places of those that leave
                if row != place:
                    self.keys[:, place], self.values[:, place] = self.keys[:, row], self.values[:, row]
            self.keys, self.values = self.keys[:, : len(rows)], self.values[:, : len(rows)]
        else:
            self.keys, self.values = self.keys.index_select(1, index), self.values.index_select(1, index)
        self.ids = [list(self.ids[row]) for row in rows]


def shared_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(left), len(right)))


def _widen(buffer: Tensor, capacity: int) -> Tensor:
    """Give a buffer more slots; new ones are zero, as a NaN in a masked slot would be a NaN in the result."""
    L, B, H, held, D = buffer.shape
    wide = buffer.new_empty(L, B, H, capacity, D)
    wide[:, :, :, :held] = buffer
    wide[:, :, :, held:] = 0
    return wide
