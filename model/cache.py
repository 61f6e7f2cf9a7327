"""The key-value cache: what attention has computed for tokens that it has already read.

One class for every loop that decodes. It knows which token ids it holds, and so its lengths; the network only appends
to it. Adding, removing and reordering rows is left to `dialogpt.model.cache_rows`; which sequence a row belongs to, and
when it is cropped, to the decoder.

A row's slots are its positions: the token at position p has its key in slot p, and padding is never stored. Slots
beyond a row's length are zero, but for those of a forward pass that has not reached `advance`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dialogpt.model.gpt2 import GPT2

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
SLOTS_PER_GROWTH = 64  # 4.7 MB a row for GPT-2 small in float32, and one growth per 64 tokens


def outside_inference_mode(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Run outside inference mode: a tensor made in that mode cannot be written outside it, and a cache is."""
    return torch.inference_mode(False)(torch.no_grad()(function))


class CacheFull(ValueError):
    """More tokens than the network has positions; the cache is left as it was."""


class KVCache:
    """Keys and values of the tokens read so far, in rows of different lengths.

    Example: two rows holding 3 and 1 tokens; after ``reserve([2, 2])``, an ``append`` per layer, and
    ``advance([[7, 8], [9, 7]])`` they hold 5 and 3.

    Attributes:
        buffer: keys and values, (L, 2, B, H, capacity, D).
        memory: the allocation that `buffer` is a view of; it may be larger once `cache_rows` has added or dropped rows.
        ids: the token ids held, row by row.
        max_length: the most tokens a row can hold, the network's `n_positions`.
    """

    def __init__(self, buffer: Tensor, max_length: int) -> None:
        """Wrap a buffer: an empty one, or one whose `ids` are set next; `reserve` prepares each pass for `append`."""
        self.buffer = self.memory = buffer
        self.max_length = max_length
        self.ids: list[list[int]] = [[] for _ in range(buffer.size(2))]

    @classmethod
    @outside_inference_mode
    def for_model(cls, model: GPT2, rows: int = 1) -> KVCache:
        """An empty cache that fits `model`, with its dtype and on its device."""
        config = model.config
        shape = (config.n_layer, 2, rows, config.n_head, 0, config.head_dim)  # (L, 2, B, H, capacity, D)
        return cls(torch.zeros(shape, dtype=model.dtype, device=model.device), config.n_positions)

    @property
    def capacity(self) -> int:
        """How many tokens a row can hold before the buffer grows."""
        return self.buffer.size(4)

    @property
    def lengths(self) -> Tensor:
        """Tokens held by each row: (B,), on the CPU."""
        return torch.tensor([len(row) for row in self.ids])

    # ---- called by the network in a pass: `reserve`, `append` for each layer, `advance` (or `clear_unread`) ----

    def reserve(self, num_new: Sequence[int]) -> None:
        """Make room for so many new tokens per row and plan their slots.

        Raises:
            CacheFull: a row would hold more than `max_length` tokens.
        """
        lengths = [len(row) for row in self.ids]
        end = max(length + n for length, n in zip(lengths, num_new, strict=True))
        for row, (length, n) in enumerate(zip(lengths, num_new, strict=True)):
            if length + n > self.max_length:
                raise CacheFull(
                    f"the cache is full: row {row} holds {length} tokens and {n} more were asked for, but the network "
                    f"has {self.max_length} positions; drop the oldest turns or generate fewer tokens"
                )
        self.make_room(end)
        # Views are made once for all layers: keys and values that each layer holds, and the slots of the new ones.
        stored = self.buffer[..., :end, :].flatten(0, 1).unbind()  # 2L: keys, values of layer 0, ...; (B, H, S, D)
        self._stored = list(zip(stored[::2], stored[1::2], strict=True))
        self._aligned = len(set(lengths)) == 1 and len(set(num_new)) == 1
        if self._aligned:
            self._new = self.buffer[..., lengths[0] : end, :].unbind()  # L times (2, B, H, T, D)
        else:  # of each new token: its row b, its index t among the row's new ones, its slot (lengths[b] + t)
            device = self.buffer.device
            self._rows = torch.tensor([b for b, n in enumerate(num_new) for _ in range(n)], device=device)
            self._steps = torch.tensor([t for n in num_new for t in range(n)], device=device)
            self._slots = torch.tensor(lengths, device=device)[self._rows] + self._steps

    def append(self, layer: int, keys_values: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values, and return all that the layer holds.

        Args:
            layer: index of the block.
            keys_values: of the new tokens, (2, B, H, T, D), right-padded; padded steps are not stored.

        Returns:
            Keys and values, (B, H, S, D), S the longest row after this pass. Attention masks the slots beyond a row's
            length; they are zero, as `crop` clears what it removes.
        """
        keys_values = keys_values.detach()  # no gradient flows into what is cached
        if self._aligned:
            new = self._new[layer]
            new.copy_(keys_values if keys_values.size(3) == new.size(3) else keys_values[:, :, :, : new.size(3)])
        else:
            # Indexing at two places puts the indexed dimension first: (all new tokens, 2, H, D).
            self.buffer[layer][:, self._rows, :, self._slots] = keys_values[:, self._rows, :, self._steps]
        return self._stored[layer]

    def advance(self, ids: Sequence[Sequence[int]]) -> None:
        """Record the ids that were read, one list a row: from here on the cache holds them."""
        self.ids = [row + list(new_ids) for row, new_ids in zip(self.ids, ids, strict=True)]

    def clear_unread(self) -> None:
        """Zero the slots beyond each row's length: a pass that failed may have written some."""
        for row, ids in enumerate(self.ids):
            self.buffer[:, :, row, :, len(ids) :] = 0

    # ---- called between passes; the first two by `reserve`, too ----

    @outside_inference_mode
    def make_room(self, length: int) -> None:
        """Grow the buffer, where it is smaller, so that every row can hold `length` tokens."""
        if length > self.capacity:
            self.buffer = self.memory = widened(self.buffer, self.capacity_for(length))

    def capacity_for(self, length: int) -> int:
        """The capacity for rows of `length` tokens: rounded up to whole steps of growth, at most `max_length`."""
        return min(-(-length // SLOTS_PER_GROWTH) * SLOTS_PER_GROWTH, self.max_length)

    def crop(self, row: int, length: int) -> None:
        """Forget all but the first `length` tokens of a row.

        The slots of the others become zero: if they held NaN, no mask would keep it out, as 0 times NaN is NaN.
        """
        end = len(self.ids[row])
        if not 0 <= length <= end:
            raise ValueError(f"row {row} holds {end} tokens and cannot be cropped to {length}")
        if length == end:
            return
        self.ids[row] = self.ids[row][:length]
        self.buffer[:, :, row, :, length:end] = 0


def shared_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the length of the longest common prefix of two sequences."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(left), len(right)))


def widened(buffer: Tensor, capacity: int) -> Tensor:
    """The same with more slots; new ones are zero, as a NaN in a masked slot would be a NaN in the result."""
    *rest, old, D = buffer.shape
    if old == capacity:
        return buffer
    wide = buffer.new_empty(*rest, capacity, D)
    wide[..., :old, :] = buffer
    wide[..., old:, :] = 0
    return wide
