"""How varied replies are: entropy and distinct n-grams of all of them together, and what each repeats.

Entropy follows Zhang et al., "Generating Informative and Diverse Conversational Responses via Adversarial Information
Maximization" (2018), distinct n-grams Li et al., "A Diversity-Promoting Objective Function" (2016), both as
microsoft/DialoGPT, dstc/metrics.py. They depend on how many words there are: compare files of the same length only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dialogpt.evaluate.overlap import MAX_ORDER, Floats, Trie, Words

REPEATED = 4  # words in a row


@dataclass(frozen=True)
class NgramTable:
    """All n-grams of some replies, one order after the other.

    Attributes:
        ids: of each order, which n-gram stands at each place; from 0 on without gaps.
        replies: of each order, in which reply that is.
        size: how many replies there are.
    """

    ids: list[NDArray[np.int64]]
    replies: list[NDArray[np.int64]]
    size: int

    @classmethod
    def of(cls, replies: Sequence[Words]) -> NgramTable:
        """Count the n-grams of replies, which are given as words."""
        trie = Trie()
        ids: list[list[int]] = [[] for _ in range(MAX_ORDER)]
        owners: list[list[int]] = [[] for _ in range(MAX_ORDER)]
        for row, reply in enumerate(replies):
            for order, nodes in enumerate(trie.add(reply)):
                ids[order] += nodes
                owners[order] += [row] * len(nodes)
        dense = [np.unique(np.array(nodes, np.int64), return_inverse=True)[1] for nodes in ids]
        return cls(dense, [np.array(rows, np.int64) for rows in owners], len(replies))

    def counts(self, order: int, weights: Floats | None = None) -> Floats:
        """How often each n-gram of an order occurs, where reply k is there ``weights[k]`` times."""
        chosen = None if weights is None else weights[self.replies[order - 1]]
        return np.bincount(self.ids[order - 1], weights=chosen).astype(float)


def entropy(counts: Floats) -> float:
    """Entropy of n-grams that occur so often, in nats; 0 where there are none."""
    counts = counts[counts > 0]
    if not counts.size:
        return 0.0
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum()) + 0.0  # of one n-gram it would be -0.0


def distinct(counts: Floats) -> float:
    """How many of the n-grams are different ones, from 0 to 1; 0 where there are none."""
    total = counts.sum()
    return float((counts > 0).sum() / total) if total else 0.0


def repeats_own_words(reply: Words, own_turns: Sequence[Words]) -> bool:
    """Whether a reply has four words in a row that the same speaker has said in an earlier turn."""
    said = {gram for turn in own_turns for gram in _grams(turn)}
    return any(gram in said for gram in _grams(reply))


def _grams(words: Words) -> list[tuple[str, ...]]:
    return [tuple(words[place : place + REPEATED]) for place in range(len(words) - REPEATED + 1)]


def is_shared(replies: Sequence[str]) -> list[bool]:
    """Of each reply, whether another dialogue got the very same one; blank replies are counted elsewhere."""
    counts = Counter(replies)
    return [bool(reply.strip()) and counts[reply] > 1 for reply in replies]
