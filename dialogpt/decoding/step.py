"""One generated token, and the logits that it is chosen by."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dialogpt.decoding.sampling import require_finite
from dialogpt.decoding.sequence import TokenSequence
from dialogpt.model import GPT2


@dataclass(frozen=True)
class Step:
    """One generated token of one sequence; a step of the decoder returns one for each that takes part.

    Attributes:
        sequence: the sequence that it was appended to.
        id: the token.
        compute_logits: returns `logits`. Where only those that matter were computed (`dialogpt.decoding.screened`), it
            computes all; else they are there.
    """

    sequence: TokenSequence
    id: int
    compute_logits: Callable[[], Tensor]

    @functools.cached_property
    @torch.inference_mode()
    def logits(self) -> Tensor:
        """(V,) in float32, before any processor."""
        return self.compute_logits()

    @property
    def log_probability(self) -> float:
        """The network's log-probability of the token, before any processor."""
        return float(self.logits[self.id] - self.logits.logsumexp(dim=-1))


def all_logits(model: GPT2, hidden: Tensor, active: Sequence[TokenSequence]) -> Tensor:
    """Compute the logits of sequences from their hidden states: (B, C) -> (B, V), in float32.

    Raises:
        NotFinite: there are NaN or infinity among them, in a sequence without `remove_invalid_values`.
    """
    logits = model.logits(hidden).float()
    require_finite(logits, active)
    return logits
