"""Rerankers of candidate replies: what they have in common. `mmi.py` and `dialogrpt.py` are two.

Sampling the candidates is left to `dialogpt.replies`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from dialogpt.decoding.stop import Stop
from dialogpt.generation import Reply
from dialogpt.model import GPT2
from dialogpt.networks import require_same_vocabulary
from dialogpt.tokenizer import Tokenizer
from dialogpt.weights import Source, load, open_checkpoint


class Reranker(Protocol):
    """Scores candidate replies to one dialogue."""

    def scores(
        self, turns: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], stop: Stop | None = None
    ) -> list[float]:
        """Return a score for each reply, the best highest.

        Args:
            turns: the dialogue, oldest first, without end tokens; its last turn is answered.
            replies: candidates, without end tokens.
            stop: asked before every pass; true cancels.

        Raises:
            Stopped: `stop` returned true.
        """
        ...


def ranked(
    reranker: Reranker, turns: Sequence[Sequence[int]], replies: Sequence[Reply], stop: Stop | None = None
) -> list[Reply]:
    """Return the replies with their ranks, the best first; equal ones keep their order.

    Raises:
        Stopped: `stop` returned true.
    """
    ranks = reranker.scores(turns, [reply.ids for reply in replies], stop)
    order = sorted(range(len(ranks)), key=lambda index: -ranks[index])
    return [replace(replies[index], rank=ranks[index]) for index in order]


def load_helper(source: Source, tokenizer: Tokenizer) -> GPT2:
    """Load a network that scores replies; it must have their vocabulary.

    Raises:
        CheckpointError: it cannot be used.
        DialogueError: its vocabulary is another one.
    """
    checkpoint = open_checkpoint(source)
    require_same_vocabulary(tokenizer, checkpoint)
    return load(checkpoint)
