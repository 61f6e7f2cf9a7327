"""The page's panels as one PNG, by matplotlib: for papers and slides."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogpt.errors import DialogueError, install_hint
from dialogpt.files.disk import write_atomically
from dialogpt.inspect.data import Inspection
from dialogpt.inspect.text import shown, speaker

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_TOKENS = 24  # of the reply that are drawn; more would not be legible
INCHES, DOTS_PER_INCH = (13.0, 14.0), 110


def draw_picture(inspection: Inspection, path: Path) -> None:
    """Draw the reply: surprise, the logit lens, attention by turn, contributions by part, and what each turn is worth.

    Args:
        inspection: see `inspect_reply`.
        path: of the PNG; what is there is replaced.

    Raises:
        DialogueError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise DialogueError(f"--png needs matplotlib, which is not installed; {install_hint('inspect')}") from None
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(5, 1, height_ratios=[1.2, 2.4, 1.8, 2.4, 1.6])
    for axes, draw in zip(panels, (_surprise, _lens, _attention, _contributions, _ablation), strict=True):
        draw(axes, inspection)
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that its font has not is drawn as a box
        figure.savefig(data, format="png")
    write_atomically(path, data.getvalue())


def _reply(inspection: Inspection) -> list[Any]:
    """The tokens of the reply that are drawn."""
    return [*inspection["tokens"][inspection["reply"]["first"] :]][:MAX_TOKENS]


def _label_tokens(axes: Axes, tokens: list[Any]) -> None:
    axes.set_xticks(range(len(tokens)), [shown(token) for token in tokens], parse_math=False)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=11, parse_math=False)


def _surprise(axes: Axes, inspection: Inspection) -> None:
    tokens = _reply(inspection)
    axes.bar(range(len(tokens)), [token["bits"] for token in tokens], color="#f0954f")
    axes.set_xlim(-0.5, len(tokens) - 0.5)
    axes.set_ylabel("bits")
    _label_tokens(axes, tokens)
    _title(axes, f"Surprise of each token of the reply ({inspection['model']['name'] or 'GPT-2'})")


def _lens(axes: Axes, inspection: Inspection) -> None:
    tokens = _reply(inspection)
    layers = inspection["model"]["layers"]
    chances = [[token["lens"][layer]["top"][0]["probability"] for token in tokens] for layer in range(layers + 1)]
    axes.imshow(chances, aspect="auto", cmap="Blues", vmin=0, vmax=1, origin="lower")
    for x, token in enumerate(tokens):
        for layer in range(layers + 1):
            guess = token["lens"][layer]["top"][0]
            axes.text(
                x, layer, shown(guess)[:10], ha="center", va="center", fontsize=7, parse_math=False,
                color="white" if guess["probability"] > 0.6 else "black",
                fontweight="bold" if guess["id"] == token["id"] else "normal",
            )  # fmt: skip
    axes.set_yticks(range(layers + 1), ["in", *map(str, range(1, layers + 1))])
    axes.set_ylabel("layer")
    _label_tokens(axes, tokens)
    _title(axes, "Logit lens: what each layer would say (bold: what came)")


def _attention(axes: Axes, inspection: Inspection) -> None:
    tokens = _reply(inspection)
    shown_turns = [turn for turn in inspection["turns"] if turn["start"] is not None]
    layers = inspection["model"]["layers"]
    means = [
        [sum(layer[k] for layer in token["attention"]["turns"]) / layers for token in tokens]
        for k in range(len(shown_turns))
    ]
    axes.imshow(means, aspect="auto", cmap="Purples", vmin=0, vmax=1)
    hidden = len(inspection["turns"]) - len(shown_turns)
    names = [f"{hidden + k + 1} {speaker(turn)}: {turn['text'][:28]}" for k, turn in enumerate(shown_turns)]
    axes.set_yticks(range(len(names)), [" ".join(name.split()) for name in names], parse_math=False)
    _label_tokens(axes, tokens)
    _title(axes, "Attention on each turn (average over layers and heads)")


def _contributions(axes: Axes, inspection: Inspection) -> None:
    tokens = _reply(inspection)
    parts = [[token["contributions"]["parts"][k] for token in tokens] for k in range(len(inspection["parts"]))]
    most = max(abs(value) for row in parts for value in row) or 1.0
    axes.imshow(parts, aspect="auto", cmap="RdBu", vmin=-most, vmax=most, origin="lower")
    names = [
        part["kind"] if part["layer"] is None else f"{part['kind']} {part['layer'] + 1}" for part in inspection["parts"]
    ]
    axes.set_yticks(range(len(names)), names, fontsize=7)
    _label_tokens(axes, tokens)
    _title(axes, f"What each part adds to the logit of the token that came (blue: up to {most:.1f})")


def _ablation(axes: Axes, inspection: Inspection) -> None:
    changes = [entry["log_probability"] - inspection["reply"]["log_probability"] for entry in inspection["ablation"]]
    names = [f"without {', '.join(str(k + 1) for k in entry['removed'])}" for entry in inspection["ablation"]]
    axes.barh(range(len(changes)), changes, color=["#e8843c" if change < 0 else "#4c8fd6" for change in changes])
    axes.axvline(0, color="#565d6d", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("change of the reply's log-probability (nats)")
    _title(axes, "The reply without a turn")
