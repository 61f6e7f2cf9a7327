"""Log-probabilities of given tokens, for rerankers, evaluation and readers. Nothing is generated here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dialogpt.decoding.stop import Stop, Stopped
from dialogpt.errors import DialogueError, Problem, SettingsError
from dialogpt.model import GPT2

MICRO_BATCH = 8  # sequences per pass: of 64 tokens and GPT-2's vocabulary, their logits take 100 MB


@dataclass(frozen=True)
class Score:
    """The log-probabilities of some tokens, each after all before it.

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
        """The exponential of the mean negative log-probability; NaN without tokens."""
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
        begins: for each, the index of the first token that is scored, from 1 on; None scores all but the first token,
            which nothing precedes.
        micro_batch: how many are computed per pass; memory grows with it, and not with their count.
        stop: asked before every pass; true cancels.

    Raises:
        DialogueError: a sequence cannot be scored.
        Stopped: `stop` returned true.
    """
    if micro_batch < 1:
        raise SettingsError([Problem("micro_batch", micro_batch, "a positive integer")])
    starts = [1] * len(sequences) if begins is None else list(begins)
    limits = model.config
    for ids, start in zip(sequences, starts, strict=True):
        if not 1 <= start < len(ids) + 1 or len(ids) < 2:
            raise DialogueError(
                f"a sequence of {len(ids)} tokens cannot be scored from index {start} on; expected 2 or more"
            )
        if len(ids) > limits.n_positions:
            raise DialogueError(
                f"a sequence of {len(ids)} tokens is longer than the network's {limits.n_positions} positions"
            )
        if not all(0 <= token < limits.vocab_size for token in ids):
            raise DialogueError(f"a sequence holds ids outside the vocabulary of {limits.vocab_size:,} tokens")
    scores: dict[int, Score] = {}
    by_length = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))  # little padding
    for first in range(0, len(by_length), micro_batch):
        if stop is not None and stop():
            raise Stopped
        indices = by_length[first : first + micro_batch]
        found = _score(model, [list(sequences[index]) for index in indices], [starts[index] for index in indices])
        scores |= zip(indices, found, strict=True)
    return [scores[index] for index in range(len(sequences))]


def score_turns(
    model: GPT2, turns: Sequence[Sequence[int]], eos_id: int, begins: Sequence[Sequence[int]] | None = None
) -> list[Score]:
    """Score each turn of a dialogue after those before it, with its end token; of the first, all but its first token.

    Args:
        model: the network.
        turns: without end tokens.
        eos_id: the end token.
        begins: the prefix of each, which is read and not scored; None for none.

    Raises:
        DialogueError: there is nothing to score, or the dialogue is longer than the network's positions.
    """
    ids: list[int] = []
    ranges: list[tuple[int, int]] = []
    for before, turn in zip(begins or [()] * len(turns), turns, strict=True):
        ids += before
        begin = max(1, len(ids))
        ids += [*turn, eos_id]
        ranges.append((begin, len(ids)))
    if len(ids) < 2:
        raise DialogueError("there is nothing to score; expected a dialogue of at least one word")
    (whole,) = score(model, [ids])
    return [Score(ids[begin:end], whole.log_probabilities[begin - 1 : end - 1]) for begin, end in ranges]


@torch.inference_mode()
def _score(model: GPT2, sequences: list[list[int]], starts: list[int]) -> list[Score]:
    """Score sequences in one pass; logits are computed only where a token is scored."""
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
