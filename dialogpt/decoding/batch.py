"""The running batch: sequences whose prompts are prefilled, and the cache that holds one row for each."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from dialogpt.decoding.prefill import Prefilled
from dialogpt.decoding.sequence import TokenSequence
from dialogpt.model import GPT2, KVCache
from dialogpt.model.cache import SLOTS_PER_GROWTH
from dialogpt.model.cache_rows import add_rows, copied, joined, part_of, select_rows


class RunningBatch:
    """Sequences that are decoded together.

    A chat decodes one, in its own cache; what is about several rows is for the server, batches and candidates.

    Attributes:
        sequences: in the order of the cache's rows.
        cache: None while there is no sequence.
    """

    def __init__(self, model: GPT2) -> None:
        """Begin empty."""
        self.sequences: list[TokenSequence] = []
        self.cache: KVCache | None = None
        self._model = model
        self._borrowed = False  # see `Prefilled.borrowed`

    def retain(self, kept: Collection[TokenSequence]) -> None:
        """Evict all other sequences."""
        if self.cache is None or all(sequence in kept for sequence in self.sequences):
            return
        rows = fill_gaps([sequence in kept for sequence in self.sequences])
        self.sequences = [self.sequences[row] for row in rows]
        if not rows:
            self.cache = None  # a borrowed one, which has one row, lives on with its caller, and holds the reply
            return
        select_rows(self.cache, rows)
        longest = max(len(sequence.ids) for sequence in self.sequences)
        if self.cache.capacity > 2 * (longest + SLOTS_PER_GROWTH):
            self.cache = copied(self.cache)  # shrinks it, as a far longer sequence was evicted

    def last_hidden(self) -> Tensor | None:
        """Compute the last token of every sequence: its hidden states, (B, C); None for an empty batch."""
        if self.cache is None:
            return None
        # Usually a row holds all but the last token. One that holds more has it already, after a step that failed, or
        # has tokens of a blank attempt, after `TokenSequence.restart`.
        for row, sequence in enumerate(self.sequences):
            self.cache.crop(row, len(sequence.ids) - 1)
        last = torch.tensor([sequence.ids[-1:] for sequence in self.sequences], device=self._model.device)  # (B, 1)
        return self._model.hidden(last, self.cache)[:, -1]  # (B, C)

    def admit(self, prefilled: Prefilled) -> None:
        """Append sequences and their cache."""
        if self.cache is None:
            self.cache, self._borrowed = prefilled.cache, prefilled.borrowed
        elif self._borrowed:
            self.cache, self._borrowed = joined([self.cache, prefilled.cache]), False
        else:
            add_rows(self.cache, prefilled.cache)
        self.sequences = [*self.sequences, *prefilled.sequences]

    def reorder(self, choices: Sequence[tuple[TokenSequence, TokenSequence, int]]) -> None:
        """Replace each sequence by a copy of its parent with one more token.

        Args:
            choices: sequence, parent and token, for all sequences.
        """
        assert self.cache is not None
        row_of = {sequence: row for row, sequence in enumerate(self.sequences)}
        select_rows(self.cache, [row_of[parent] for _, parent, _ in choices])
        self.sequences = [sequence for sequence, _, _ in choices]
        extended = [[*parent.ids, token] for _, parent, token in choices]
        for sequence, ids in zip(self.sequences, extended, strict=True):
            sequence.ids = ids

    def cache_of(self, sequence: TokenSequence) -> KVCache | None:
        """Return a copy of the cache row of a sequence; None if it has none."""
        if self.cache is None or sequence not in self.sequences:
            return None
        row = self.sequences.index(sequence)
        return copied(part_of(self.cache, row, row + 1))


def fill_gaps(kept: Sequence[bool]) -> list[int]:
    """Return the kept indices, the last of them moved into the gaps, so that few rows of a cache move.

    Example: of 5 rows, of which row 1 is not kept, 0 4 2 3.
    """
    indices = [index for index, stays in enumerate(kept) if stays]
    count = len(indices)
    moved = [index for index in indices if index >= count]
    return [index if kept[index] else moved.pop() for index in range(count)]
