"""All figures by name, and the statistics from which each system's are computed, whole or resampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol as Structural

import numpy as np

from dialogpt.evaluate import likelihood, meteor, overlap
from dialogpt.evaluate.dialogues import Dialogue
from dialogpt.evaluate.diversity import NgramTable, distinct, entropy, is_shared, repeats_own_words
from dialogpt.evaluate.overlap import Floats
from dialogpt.evaluate.protocols import Protocol

Values = dict[str, float]


@dataclass(frozen=True)
class Metric:
    """A figure.

    Attributes:
        key: its name in JSON.
        label: its heading.
        about: what it is, in a sentence.
        percent: whether it is shown times 100.
        in_table: whether the table shows it; JSON and the report have all.
    """

    key: str
    label: str
    about: str
    percent: bool = False
    in_table: bool = True

    def shown(self, value: float) -> str:
        """The figure for people."""
        return f"{value * 100:.2f}" if self.percent else f"{value:.3g}" if abs(value) >= 1000 else f"{value:.2f}"


def _metrics() -> list[Metric]:
    orders = range(1, 5)
    return [
        *(Metric(f"nist-{n}", f"NIST-{n}", f"NIST of orders 1 to {n}, bits", in_table=n in (2, 4)) for n in orders),
        *(Metric(f"bleu-{n}", f"BLEU-{n}", f"BLEU of orders 1 to {n}, %", True, n in (2, 4)) for n in orders),
        Metric("meteor", "METEOR", "METEOR 1.5, %", True),
        *(
            Metric(f"entropy-{n}", f"ENT-{n}", f"entropy of all {n}-grams together, nats", in_table=n == 4)
            for n in orders
        ),
        *(Metric(f"distinct-{n}", f"DIST-{n}", f"different {n}-grams among all, %, 0 to 100", True) for n in (1, 2)),
        Metric("length", "length", "mean words of a reply"),
        Metric("self-bleu", "self-BLEU", "mean BLEU-4 of a reply with all others as references, %", True),
        Metric("repeats", "repeats", "replies that repeat four words of an earlier own turn, %", True),
        Metric("identical", "identical", "replies that another dialogue got too, %", True),
        Metric("empty", "empty", "replies without a word, %", True),
        Metric("perplexity", "perplexity", "of a token"),
        Metric("bits-per-byte", "bits/byte", "bits for a byte of text, which compares vocabularies"),
        Metric("nats-per-turn", "nats/turn", "nats for a turn", in_table=False),
        Metric("accuracy", "accuracy", "tokens that were the likeliest, %", True),
        Metric("calibration-error", "ECE", "expected calibration error of the next token, %", True),
    ]


METRICS = {metric.key: metric for metric in _metrics()}


def metric_of(key: str) -> Metric:
    """A figure by its key; those of DialogRPT's heads and FED's qualities have a prefix."""
    if key in METRICS:
        return METRICS[key]
    kind, _, name = key.partition(":")
    return Metric(key, f"{kind} {name}", f"{name}, mean over replies")


class Sample(Structural):
    """What a system did on a set of dialogues.

    Attributes:
        size: how many dialogues there are.
    """

    size: int

    def values(self, weights: Floats | None = None) -> Values:
        """The figures, of a set that holds dialogue k ``weights[k]`` times; None is each once."""
        ...


class TextSample:
    """Replies as text, by a protocol.

    Attributes:
        size: see `Sample`.
        quality: (size,) how good each reply is beside its references, to find the best and the worst.
        meteor_statistics: see `dialogpt.evaluate.meteor.statistics`; None leaves METEOR out.
    """

    def __init__(
        self,
        protocol: Protocol,
        dialogues: Sequence[Dialogue],
        replies: Sequence[str],
        means: dict[str, Sequence[float]] | None = None,
    ) -> None:
        """Compute the statistics.

        Args:
            protocol: how text becomes words.
            dialogues: with references.
            replies: one for each.
            means: further figures, one for each reply, by the key of their mean.
        """
        self.size = len(replies)
        cleaned = [protocol.clean(reply) for reply in replies]
        words = [protocol.words(text) for text in cleaned]
        chosen = (protocol.choose(dialogue.references) for dialogue in dialogues)
        references = [[protocol.words(protocol.clean(text)) for text in own] for own in chosen]
        statistics = overlap.overlap(words, references)
        diversity = [protocol.diversity_words(text) for text in cleaned]
        self.quality = overlap.sentence_bleu(statistics)
        self._zero = protocol.zero_without_matches
        self._overlap = statistics.columns
        self.meteor_statistics: Floats | None = None
        self._ngrams = NgramTable.of(diversity)
        own_turns = [[protocol.words(protocol.clean(turn)) for turn in each.own_turns] for each in dialogues]
        self._means: dict[str, Floats] = {
            "length": np.array([len(each) for each in diversity], float),
            "self-bleu": overlap.self_bleu(words) if self.size > 1 else np.zeros(self.size),
            "repeats": np.array(
                [repeats_own_words(reply, own) for reply, own in zip(words, own_turns, strict=True)], float
            ),
            "identical": np.array(is_shared(cleaned), float),
            "empty": np.array([not reply.strip() for reply in replies], float),
            **{key: np.array(values, float) for key, values in (means or {}).items()},
        }

    def values(self, weights: Floats | None = None) -> Values:
        """See `Sample`."""
        chosen = np.ones(self.size) if weights is None else weights
        sums = chosen @ self._overlap
        found = {f"nist-{n}": score for n, score in enumerate(overlap.nist(sums), 1)}
        bleu = overlap.bleu(sums, zero_without_matches=self._zero)
        found |= {f"bleu-{n}": score for n, score in enumerate(bleu, 1)}
        if self.meteor_statistics is not None:
            found["meteor"] = meteor.score(chosen @ self.meteor_statistics)
        for order in range(1, overlap.MAX_ORDER + 1):
            counts = self._ngrams.counts(order, weights)
            found[f"entropy-{order}"] = entropy(counts)
            if order <= 2:
                found[f"distinct-{order}"] = distinct(counts)
        return found | {key: float(chosen @ each / chosen.sum()) for key, each in self._means.items()}


class LikelihoodSample:
    """A network's predictions of dialogues.

    Attributes:
        size: see `Sample`.
        bins: (15, 3) see `dialogpt.evaluate.likelihood.Prediction`, of all dialogues.
    """

    def __init__(self, predictions: Sequence[likelihood.Prediction]) -> None:
        """Keep the statistics of each dialogue."""
        self.size = len(predictions)
        self._columns = likelihood.columns(predictions)
        self.bins = self._columns[:, 5:].sum(axis=0).reshape(likelihood.BINS, 3)

    def values(self, weights: Floats | None = None) -> Values:
        """See `Sample`; without a counted token there are none."""
        sums = self._columns.sum(axis=0) if weights is None else weights @ self._columns
        return {key: value for key, value in likelihood.figures(sums).items() if np.isfinite(value)}
