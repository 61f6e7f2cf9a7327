"""Paired bootstrap: how much a figure would move with other dialogues, and whether two systems differ.

The same resampled sets of dialogues are used for all systems (Koehn, "Statistical Significance Tests for Machine
Translation Evaluation", 2004). A set that holds a dialogue twice has fewer different words, so resampled entropies and
shares of distinct n-grams lie below the figure itself; intervals are therefore those of the resampled figures around
their own mean, laid around the figure, and differences are tested around their mean in the same way (as sacrebleu does,
after Riezler and Maxwell, 2005).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dialogpt.evaluate.overlap import Floats

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """Where a figure would lie in 95 of 100 repetitions with other dialogues."""

    low: float
    high: float


def resampled(size: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield sets of dialogues drawn with replacement: how often each of `size` is in the set, (size,)."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(generator.integers(0, size, size), minlength=size).astype(float)


def interval(value: float, samples: Floats) -> Interval:
    """The interval of a figure, from its values on resampled sets, (resamples,)."""
    low, high = np.quantile(samples - samples.mean(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value + float(low), value + float(high))


def p_value(difference: float, samples: Floats) -> float:
    """How likely a difference this large is between equal systems, two-sided.

    Args:
        difference: between the two figures.
        samples: (resamples,) the difference on each resampled set.
    """
    extreme = np.abs(samples - samples.mean()) >= abs(difference) - 1e-12
    return float((extreme.sum() + 1) / (len(samples) + 1))
