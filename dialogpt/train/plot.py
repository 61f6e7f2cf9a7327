"""The loss curves of a run as a picture. matplotlib is needed for it (the extra `train`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SMOOTHED = 50  # steps whose mean is the bold line


def draw(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw training and validation loss over the learned tokens; the file appears when it is whole.

    Args:
        metrics: the lines of metrics.jsonl.
        path: a .png file.
    """
    from matplotlib.figure import Figure

    steps = [line for line in metrics if "loss" in line]
    valid = [line for line in metrics if "valid_loss" in line]
    tokens, seen = {0: 0.0}, 0
    for line in steps:
        seen += line["learned"]
        tokens[line["step"]] = seen / 1e6
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    places, losses = [tokens[line["step"]] for line in steps], [line["loss"] for line in steps]
    means = [sum(losses[max(0, n - SMOOTHED) : n]) / min(n, SMOOTHED) for n in range(1, len(losses) + 1)]
    axes.plot(places, losses, color="#9db8d9", linewidth=0.6, label="each step")
    axes.plot(places, means, color="#1f4e8c", linewidth=1.5, label=f"mean of {SMOOTHED} steps")
    if valid:
        judged = [line["valid_loss"] for line in valid]
        places = [tokens[line["step"]] for line in valid]
        axes.plot(places, judged, "o-", color="#c8553d", markersize=3, label="validation")
    axes.set_xlabel("million tokens learned")
    axes.set_ylabel("loss, nats a token")
    axes.grid(alpha=0.3)
    axes.legend()
    temporary = path.with_name(f".{path.name}.partial")
    figure.savefig(temporary, format="png", dpi=110)
    temporary.replace(path)
