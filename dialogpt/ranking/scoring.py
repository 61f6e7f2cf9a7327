"""How likely a text is: log-probabilities of given tokens, which rerankers, evaluation and readers use.

The network reads what is given and says nothing; drawing is left to `dialogpt.decoding.loop`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dialogpt.decoding.loop import Stop, Stopped
from dialogpt.errors import DialogueError
from dialogpt.model import GPT2

MICRO_BATCH = 8  # sequences read at once: of 64 tokens and GPT-2's vocabulary, their logits take 100 MB


@dataclass(frozen=True)
class Score:
    """How likely some tokens are, each after all before it.

    Attributes:
        ids: the tokens that were scored.
        log_probabilities: of each of them, natural logarithms.
    """

    ids: list[int]
    log_probabilities: list[float]

    @property
    def total(self) -> float:
        """The log-probability of all of them together."""
        return math.fsum(self.log_probabilities)

    @property
    def perplexity(self) -> float:
        """How many equally likely tokens the network hesitated between, in the geometric mean; NaN without tokens."""
        nats = -self.total / len(self.ids) if self.ids else math.nan
        return math.exp(nats) if not nats > 700 else math.inf  # where floats end


def score(
    model: GPT2,
    sequences: Sequence[Sequence[int]],
    begins: Sequence[int] | None = None,
    *,
    micro_batch: int = MICRO_BATCH,
    stop: Stop | None = None,
) -> list[Score]:
    """Score given sequences.

    Args:
        model: the network.
        sequences: each of at least two tokens, and no more than the network has positions.
        begins: for each, the place of the first token that is scored, from 1 on; None scores all but the first, which
            nothing precedes.
        micro_batch: how many are read at once; memory grows with it and not with their number.
        stop: asked before every pass; true ends it all.

    Raises:
        DialogueError: a sequence cannot be scored.
        Stopped: `stop` said so.
    """
    if micro_batch < 1:
        raise DialogueError(f"micro_batch is {micro_batch}, expected a whole number from 1 on")
    starts = [1] * len(sequences) if begins is None else list(begins)
    limits = model.config
    for ids, start in zip(sequences, starts, strict=True):
        if not 1 <= start < len(ids) + 1 or len(ids) < 2:
            raise DialogueError(
                f"a sequence of {len(ids)} tokens cannot be scored from place {start} on; expected 2 or more"
            )
        if len(ids) > limits.n_positions:
            raise DialogueError(
                f"a sequence of {len(ids)} tokens is longer than the network's {limits.n_positions} positions"
            )
        if not all(0 <= token < limits.vocab_size for token in ids):
            raise DialogueError(f"a sequence holds ids outside the vocabulary of {limits.vocab_size:,} tokens")
    scores: dict[int, Score] = {}
    by_length = sorted(range(len(sequences)), key=lambda place: len(sequences[place]))  # little padding
    for first in range(0, len(by_length), micro_batch):
        if stop is not None and stop():
            raise Stopped
        places = by_length[first : first + micro_batch]
        found = _score(model, [list(sequences[place]) for place in places], [starts[place] for place in places])
        scores |= zip(places, found, strict=True)
    return [scores[place] for place in range(len(sequences))]


@torch.inference_mode()
def _score(model: GPT2, sequences: list[list[int]], starts: list[int]) -> list[Score]:
    """Score a few sequences together; logits are computed only where a token is scored."""
    longest = max(map(len, sequences))
    device = model.device
    padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in sequences], device=device)  # (B, T)
    hidden = model.hidden(padded, lengths=torch.tensor([len(ids) for ids in sequences]))  # (B, T, C)
    found = []
    for row, (ids, start) in enumerate(zip(sequences, starts, strict=True)):
        scored = ids[start:]
        logits: Tensor = model.logits(hidden[row, start - 1 : len(ids) - 1]).float()  # (scored, V)
        chosen = logits.gather(1, torch.tensor(scored, dtype=torch.long, device=device)[:, None])[:, 0]
        found.append(Score(scored, (chosen - logits.logsumexp(dim=-1)).tolist()))
    return found
