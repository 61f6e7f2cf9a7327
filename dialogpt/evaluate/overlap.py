"""NIST and BLEU of replies against references, as mteval computes them, from statistics of each reply.

NIST follows Doddington, "Automatic Evaluation of Machine Translation Quality Using N-gram Co-Occurrence Statistics"
(2002), BLEU Papineni et al. (2002); where they leave a choice, this does what mteval-v14.pl does (Moses,
scripts/generic), which DialoGPT's table was computed with. Text is split into words elsewhere
(`dialogpt.evaluate.protocols`). All statistics are sums over replies, so that a resampled set costs a product of
matrices (`dialogpt.evaluate.bootstrap`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_ORDER = 4
Words = Sequence[str]
Floats = NDArray[np.float64]
_ROOT = 0
_NODE_BITS = 32  # a trie's edge is one integer: node, then word
_NIST_BETA = -math.log(0.5) / math.log(1.5) ** 2  # half the score for two thirds of the length
_EPSILON = 0.1  # what replaces a count of 0 in self-BLEU (Chen and Cherry 2014, method 1)


@dataclass(frozen=True)
class Overlap:
    """What of each reply is found in its references; N replies, orders 1 to 4.

    Attributes:
        matches: (N, 4) n-grams of the reply that a reference holds, each at most as often as the reference with most.
        totals: (N, 4) n-grams of the reply.
        information: (N, 4) bits of the matching n-grams, NIST's weights.
        closest: (N,) words of the reference closest in length, the shorter of two as close; BLEU's.
        average: (N,) mean words of the references; NIST's.
    """

    matches: Floats
    totals: Floats
    information: Floats
    closest: Floats
    average: Floats

    @property
    def columns(self) -> Floats:
        """All statistics side by side: (N, 14)."""
        lengths = np.stack([self.closest, self.average], axis=1)  # (N, 2)
        return np.concatenate([self.matches, self.totals, self.information, lengths], axis=1)  # (N, 14)


class Trie:
    """The n-grams of some texts as a tree of words; a node is an integer."""

    def __init__(self) -> None:
        self.words: dict[str, int] = {}
        self.edges: dict[int, int] = {}

    def add(self, text: Words) -> list[list[int]]:
        """Add a text; returns its n-grams' nodes, of each order a list."""
        words = [self.words.setdefault(word, len(self.words)) for word in text]
        found: list[list[int]] = [[] for _ in range(MAX_ORDER)]
        edges = self.edges
        for place in range(len(words)):
            node = _ROOT
            for order, word in enumerate(words[place : place + MAX_ORDER]):
                node = edges.setdefault(node << _NODE_BITS | word, len(edges) + 1)
                found[order].append(node)
        return found

    def find(self, text: Words) -> list[int]:
        """The nodes of the n-grams of a text that the tree holds, of all orders."""
        known, edges = self.words, self.edges
        words = [known.get(word, -1) for word in text]
        found = []
        for place in range(len(words)):
            node: int | None = _ROOT
            for word in words[place : place + MAX_ORDER]:
                node = edges.get(node << _NODE_BITS | word) if word >= 0 and node is not None else None
                if node is None:
                    break
                found.append(node)
        return found


def overlap(replies: Sequence[Words], references: Sequence[Sequence[Words]]) -> Overlap:
    """Compare replies with their references.

    Only n-grams that some reply holds are counted, so memory grows with the replies and not with the references.

    Args:
        replies: words of each.
        references: of each reply, at least one; a repeated one counts twice for NIST and changes no BLEU.
    """
    trie = Trie()
    grams = [trie.add(reply) for reply in replies]
    limits: list[dict[int, int]] = []  # of each reply: how often an n-gram may match
    counts: Counter[int] = Counter()
    total_words = 0
    for own, given in zip(grams, references, strict=True):
        held = {node for nodes in own for node in nodes}
        most: dict[int, int] = {}
        for reference in given:
            total_words += len(reference)
            found = Counter(trie.find(reference))
            counts.update(found)
            for node in held & found.keys():
                most[node] = max(most.get(node, 0), found[node])
        limits.append(most)
    bits = _information(trie, counts, total_words)
    shape = (len(grams), MAX_ORDER)
    matches, totals, information = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for row, (own, most) in enumerate(zip(grams, limits, strict=True)):
        for order, nodes in enumerate(own):
            totals[row, order] = len(nodes)
            for node, count in Counter(nodes).items():
                if node in most:
                    matched = min(count, most[node])
                    matches[row, order] += matched
                    information[row, order] += matched * bits[node]
    lengths = [[len(reference) for reference in given] for given in references]
    closest = [min((abs(n - len(reply)), n) for n in own)[1] for own, reply in zip(lengths, replies, strict=True)]
    average = [sum(own) / len(own) for own in lengths]
    return Overlap(matches, totals, information, np.array(closest, float), np.array(average, float))


def _information(trie: Trie, counts: Counter[int], total_words: int) -> dict[int, float]:
    """Bits of each n-gram that references hold: log2 of how often its words but the last occur, over how often it does.

    mteval writes n-grams as text, and for Perl the text "0" is false: an n-gram that continues the word 0 is weighed as
    if it were a single word.
    """
    zero = trie.edges.get(_ROOT << _NODE_BITS | trie.words["0"]) if "0" in trie.words else None
    bits = {}
    for edge, node in trie.edges.items():
        if node in counts:
            parent = edge >> _NODE_BITS
            context = total_words if parent in (_ROOT, zero) else counts[parent]
            bits[node] = math.log2(context / counts[node])
    return bits


def bleu(sums: Floats, *, zero_without_matches: bool = False) -> list[float]:
    """Cumulative BLEU of orders 1 to 4, from 0 to 1.

    Args:
        sums: (14,) the sums of `Overlap.columns`.
        zero_without_matches: sacrebleu's rule, by which an order without any n-gram, or replies without any match,
            make 0; mteval leaves such an order out, and smooths.
    """
    matches, totals, closest = sums[:4], sums[4:8], sums[12]
    if totals[0] == 0 or (zero_without_matches and not matches.any()):
        return [0.0] * MAX_ORDER
    brevity = math.exp(min(0.0, 1 - closest / totals[0]))
    smoothing, logs, found = 1.0, 0.0, []
    for order in range(MAX_ORDER):
        if totals[order] == 0 and zero_without_matches:
            logs = -math.inf
        elif totals[order] and matches[order]:
            logs += math.log(matches[order] / totals[order])
        elif totals[order]:  # 1/2, 1/4, ... of a match
            smoothing *= 2
            logs += math.log(1 / (smoothing * totals[order]))
        found.append(brevity * math.exp(logs / (order + 1)))
    return found


def nist(sums: Floats) -> list[float]:
    """Cumulative NIST of orders 1 to 4, in bits.

    Args:
        sums: (14,) the sums of `Overlap.columns`.
    """
    totals, information, average = sums[4:8], sums[8:12], sums[13]
    ratio = totals[0] / average if average else 1.0
    penalty = 0.0 if ratio <= 0 else math.exp(-_NIST_BETA * math.log(min(ratio, 1.0)) ** 2)
    return [float(score) * penalty for score in np.cumsum(information / np.maximum(totals, 1))]


def sentence_bleu(statistics: Overlap) -> Floats:
    """BLEU-4 of each reply alone, smoothed: (N,); to find the best and the worst, not to be averaged."""
    return np.array([bleu(row)[-1] for row in statistics.columns])


def self_bleu(replies: Sequence[Words]) -> Floats:
    """BLEU-4 of each reply with all others as its references: (N,); high where replies resemble each other.

    Zhu et al., "Texygen" (2018), which takes nltk's sentence_bleu with the smoothing of Chen and Cherry's method 1. Of
    each n-gram the two replies with most of it are kept, so that the cost grows with the words and not with their
    square.
    """
    trie = Trie()
    counted = [[Counter(nodes) for nodes in trie.add(reply)] for reply in replies]
    first: dict[int, tuple[int, int]] = {}  # of each n-gram: the largest count, and whose it is
    second: dict[int, int] = {}
    for row, orders in enumerate(counted):
        for counts in orders:
            for node, count in counts.items():
                most, _ = first.get(node, (0, -1))
                if count > most:
                    second[node], first[node] = most, (count, row)
                else:
                    second[node] = max(second.get(node, 0), count)
    lengths = sorted(map(len, replies))
    found = []
    for row, (reply, orders) in enumerate(zip(replies, counted, strict=True)):
        logs = 0.0
        for order, counts in enumerate(orders):
            matched = sum(
                min(count, second[node] if first[node][1] == row else first[node][0]) for node, count in counts.items()
            )
            if not matched and not order:
                break
            logs += math.log((matched or _EPSILON) / max(1, counts.total()))
        else:
            brevity = math.exp(min(0.0, 1 - _closest_other(lengths, len(reply)) / len(reply)))
            found.append(brevity * math.exp(logs / MAX_ORDER))
            continue
        found.append(0.0)
    return np.array(found)


def _closest_other(lengths: Sequence[int], own: int) -> int:
    """Of sorted lengths, which hold a reply's own once more, the closest to it; the shorter of two as close."""
    place = bisect_left(lengths, own)
    others = [lengths[n] for n in (place - 1, place + 1) if 0 <= n < len(lengths)]
    return min(others, key=lambda length: (abs(length - own), length))
