"""Plot the loss curves of a run. This needs matplotlib (the extra `train`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SMOOTHED = 50  # steps in the moving average


def draw(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot training and validation loss over steps; the file is replaced only when it is complete.

    Args:
        metrics: the lines of metrics.jsonl.
        path: a .png file.
    """
    from matplotlib.figure import Figure

    steps = [line for line in metrics if "loss" in line]
    valid = [line for line in metrics if "valid_loss" in line]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    numbers, losses = [line["step"] for line in steps], [line["loss"] for line in steps]
    axes.plot(numbers, losses, color="#9db8d9", linewidth=0.6, label="each step")
    axes.plot(numbers, smoothed(losses), color="#1f4e8c", linewidth=1.5, label=f"mean of {SMOOTHED} steps around")
    if valid:
        valid_losses = [line["valid_loss"] for line in valid]
        axes.plot(
            [line["step"] for line in valid], valid_losses, "o-", color="#c8553d", markersize=3, label="validation"
        )
    axes.set_xlabel("steps")
    axes.set_ylabel("loss, nats a token")
    axes.grid(alpha=0.3)
    axes.legend()
    temporary = path.with_name(f".{path.name}.partial")
    figure.savefig(temporary, format="png", dpi=110)
    temporary.replace(path)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return a centred moving average, whose window shrinks at both ends.

    A trailing average would lag behind a falling loss: by one nat in the first third of a short run.
    """
    half = SMOOTHED // 2
    means = []
    for n in range(len(losses)):
        reach = min(half, n, len(losses) - 1 - n)
        around = losses[n - reach : n + reach + 1]
        means.append(sum(around) / len(around))
    return means
