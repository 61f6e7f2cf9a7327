"""Byte pair merging, step by step: slower than tiktoken, to check a vocabulary and to show readers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dialogpt.weights import CheckpointError, Vocabulary
from dialogpt.weights.vocabulary import byte_letters, gpt2_merges

MAX_CHECK = 6_000_000  # bytes squared, summed over tokens: about a second; 50,000 ordinary merges have 2,500,000


@dataclass(frozen=True)
class Piece:
    """One piece of a text on its way to ids.

    Attributes:
        text: as it was typed.
        letters: its bytes as GPT-2 spells them.
        steps: the parts before the first merge, and after each.
        ids: of the parts that remain.
    """

    text: str
    letters: str
    steps: list[list[str]]
    ids: list[int]


def merge_steps(data: bytes, ranks: Mapping[bytes, int], limit: int | None = None) -> Iterator[list[bytes]]:
    """Merge the neighbours whose union has the lowest rank, the leftmost first, until none has a rank.

    Args:
        data: one piece of text.
        ranks: token to its place in the order of merges.
        limit: only merges of a lower rank are made.

    Yields:
        The parts after each merge.
    """
    parts = [bytes([byte]) for byte in data]
    while len(parts) > 1:
        unions = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        best = min(unions)
        if best >= (len(ranks) if limit is None else limit):
            return
        place = unions.index(best)
        parts = [*parts[:place], parts[place] + parts[place + 1], *parts[place + 2 :]]
        yield parts


def explained(text: str, ranks: Mapping[bytes, int], ids: Sequence[int]) -> Piece:
    """Merge one piece of a text and keep every step; `ids` are the ids of the ranks."""
    letters, data = byte_letters(), text.encode()
    steps = [[bytes([byte]) for byte in data], *merge_steps(data, ranks)]
    return Piece(
        text=text,
        letters="".join(letters[byte] for byte in data),
        steps=[["".join(letters[byte] for byte in part) for part in step] for step in steps],
        ids=[ids[ranks[part]] for part in steps[-1]],
    )


def check_order(spelled: list[bytes], vocabulary: Vocabulary, ranks: Mapping[bytes, int]) -> None:
    """Check that merging a token by lower ranks ends in exactly the two parts of its own merge.

    Raises:
        CheckpointError: a merge cannot be reached; GPT-2's own merges need no check.
    """
    if vocabulary.merges == gpt2_merges()[: len(vocabulary.merges)]:
        return
    if sum(len(token) ** 2 for token in spelled) > MAX_CHECK:  # 16 merges that double reach 65,536 bytes
        raise CheckpointError(
            f"the merges of {vocabulary.origin} make tokens of up to {max(map(len, spelled)):,} bytes, too long to be "
            f"checked; GPT-2's longest has 128"
        )
    for merge, token in zip(vocabulary.merges, spelled[256:], strict=True):
        *_, parts = [[bytes([byte]) for byte in token], *merge_steps(token, ranks, ranks[token])]
        if len(parts) != 2 or len(parts[0]) != merge.index(" "):  # a letter of the merge is a byte of the token
            raise CheckpointError(
                f"the merges of {vocabulary.origin} are out of order: merge {ranks[token] - 255} ({merge!r}) cannot be "
                f"reached by the merges before it"
            )
