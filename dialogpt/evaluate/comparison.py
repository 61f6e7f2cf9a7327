"""Compare systems on the same dialogues: figures, intervals, and which differences are more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dialogpt.decoding.stop import Stop, Stopped
from dialogpt.evaluate.bootstrap import LEVEL, Interval, interval, p_value, resampled
from dialogpt.evaluate.metrics import METRICS, Sample, metric_of
from dialogpt.evaluate.protocols import Protocol


@dataclass(frozen=True)
class Figure:
    """One figure of one system.

    Attributes:
        value: the figure.
        interval: of 95 %; None without resampling.
        p_value: of its difference to the first system; None for the first.
    """

    value: float
    interval: Interval | None = None
    p_value: float | None = None

    @property
    def differs(self) -> bool:
        """Whether it is another than the first system's, or is the first system's."""
        return self.p_value is None or self.p_value < 1 - LEVEL


Comparison = dict[str, dict[str, Figure]]  # of each system, by the figure's key


def compare(
    samples: Mapping[str, Sample], *, resamples: int = 1000, seed: int = 1, stop: Stop | None = None
) -> Comparison:
    """Compute all figures of systems, each compared with the first of them.

    Args:
        samples: of each system; all of the same dialogues.
        resamples: how many sets are drawn; 0 leaves intervals out.
        seed: of these sets.
        stop: asked before each set; true ends it all.

    Raises:
        Stopped: `stop` returned true.
    """
    values = {name: sample.values() for name, sample in samples.items()}
    drawn: dict[str, dict[str, list[float]]] = {name: {key: [] for key in found} for name, found in values.items()}
    size = next(iter(samples.values())).size
    for weights in resampled(size, resamples, seed):
        if stop is not None and stop():
            raise Stopped
        for name, sample in samples.items():
            found = sample.values(weights)
            for key, kept in drawn[name].items():
                kept.append(found.get(key, values[name][key]))
    first = next(iter(samples))
    return {
        name: {
            key: _figure(values, drawn, name, key, None if name == first or key not in values[first] else first)
            for key in found
        }
        for name, found in values.items()
    }


def _figure(
    values: Mapping[str, Mapping[str, float]],
    drawn: Mapping[str, Mapping[str, Sequence[float]]],
    name: str,
    key: str,
    first: str | None,
) -> Figure:
    """One figure, compared with the first system's if that is another."""
    value, samples = values[name][key], np.array(drawn[name][key])
    if not samples.size:
        return Figure(value)
    if first is None:
        return Figure(value, interval(value, samples))
    difference = value - values[first][key]
    return Figure(value, interval(value, samples), p_value(difference, samples - np.array(drawn[first][key])))


def table(comparison: Comparison, protocol: Protocol | None = None) -> str:
    """The table for people, in Markdown: a column for each system, then the published ones of the same protocol.

    A figure has half the width of its interval beside it, and "=" where it does not differ from the first column's.
    """
    shown = {key for found in comparison.values() for key in found}
    keys = [key for key, metric in METRICS.items() if key in shown and metric.in_table]
    keys += sorted(key for key in shown if key not in METRICS)
    published = {} if protocol is None else protocol.published
    lines = [["", *comparison, *(f"paper: {name}" for name in published)]]
    for key in keys:
        cells = [_cell(key, found.get(key)) for found in comparison.values()]
        cells += [metric_of(key).shown(row[key]) if key in row else "-" for row in published.values()]
        lines.append([metric_of(key).label, *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([texts[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *texts[1:]])


def _cell(key: str, figure: Figure | None) -> str:
    if figure is None:
        return "-"
    metric, text = metric_of(key), metric_of(key).shown(figure.value)
    if figure.interval is not None:
        text += f" ±{metric.shown((figure.interval.high - figure.interval.low) / 2)}"
    return text if figure.differs else f"{text} ="


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The figures for programs."""
    return {
        name: {
            key: {
                "value": figure.value,
                **({} if figure.interval is None else {"low": figure.interval.low, "high": figure.interval.high}),
                **({} if figure.p_value is None else {"p_value": figure.p_value}),
            }
            for key, figure in found.items()
        }
        for name, found in comparison.items()
    }
