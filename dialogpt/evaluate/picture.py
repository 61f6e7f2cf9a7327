"""Pictures of an evaluation as PNG: bars with intervals, and calibration. matplotlib is needed (extra `evaluate`)."""

from __future__ import annotations

import io
from collections.abc import Mapping

from dialogpt.evaluate.comparison import Comparison
from dialogpt.evaluate.metrics import METRICS, metric_of
from dialogpt.evaluate.overlap import Floats

COLUMNS = 4
COLOURS = ("#1f4e8c", "#c8553d", "#4f8a5b", "#8c6bb1", "#b58900", "#586e75")


def bars(comparison: Comparison) -> bytes:
    """Draw each figure of the table as bars, one for each system, with 95 % intervals."""
    from matplotlib.figure import Figure

    found = {key for figures in comparison.values() for key in figures}
    keys = [key for key, metric in METRICS.items() if key in found and metric.in_table]
    keys += sorted(found - METRICS.keys())
    rows = -(-len(keys) // COLUMNS)
    figure = Figure(figsize=(3 * COLUMNS, 2.1 * rows + 0.4), layout="constrained")
    names = list(comparison)
    for place, key in enumerate(keys, 1):
        axes = figure.add_subplot(rows, COLUMNS, place)
        scale = 100 if metric_of(key).percent else 1
        for row, name in enumerate(names):
            each = comparison[name].get(key)
            if each is None:
                continue
            error = None
            if each.interval is not None:
                low, high = each.value - each.interval.low, each.interval.high - each.value
                error = [[max(0.0, low) * scale], [max(0.0, high) * scale]]
            axes.barh(row, each.value * scale, xerr=error, color=COLOURS[row % len(COLOURS)], capsize=2)
        axes.set_yticks(range(len(names)), names if place % COLUMNS == 1 else [""] * len(names))
        axes.invert_yaxis()
        axes.set_title(metric_of(key).label, fontsize=10)
    return _png(figure)


def calibration(bins: Mapping[str, Floats]) -> bytes:
    """Draw how often the likeliest token was right, over the probability that it had.

    Args:
        bins: of each system, (15, 3), see `dialogpt.evaluate.likelihood.Prediction`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--", label="calibrated")
    for (name, each), colour in zip(bins.items(), COLOURS * (1 + len(bins) // len(COLOURS)), strict=False):
        held = each[each[:, 0] > 0]
        axes.plot(held[:, 1] / held[:, 0], held[:, 2] / held[:, 0], "o-", color=colour, markersize=4, label=name)
    axes.set_xlabel("probability of the likeliest token")
    axes.set_ylabel("share of tokens that it was")
    axes.grid(alpha=0.3)
    axes.legend()
    return _png(figure)


def _png(figure: object) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)  # type: ignore[attr-defined]
    return buffer.getvalue()
