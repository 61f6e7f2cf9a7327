"""One HTML file that needs nothing else: the table, the pictures, and replies to read: the best, the worst, and any."""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping, Sequence
from html import escape

from dialogpt.evaluate.comparison import Comparison, Figure
from dialogpt.evaluate.dialogues import Dialogue
from dialogpt.evaluate.metrics import METRICS, metric_of
from dialogpt.evaluate.overlap import Floats
from dialogpt.evaluate.protocols import Protocol

SHOWN = 10  # replies of each kind
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .7rem; border-bottom: 1px solid #8885; vertical-align: top; }
td.same { opacity: .6; } small { opacity: .7; } img { max-width: 100%; background: white; }
li { margin-bottom: .8rem; } p.turn { margin: 0; opacity: .7; }
"""


def html(
    comparison: Comparison,
    protocol: Protocol,
    notes: Sequence[str],
    pictures: Mapping[str, bytes],
    dialogues: Sequence[Dialogue],
    replies: Mapping[str, Sequence[str]],
    quality: Mapping[str, Floats],
    *,
    seed: int = 1,
) -> str:
    """Write the report.

    Args:
        comparison: all figures.
        protocol: how they were computed.
        notes: sentences about the run.
        pictures: PNG by its caption.
        dialogues: what was answered.
        replies: of each system, one to each dialogue.
        quality: of each system, (N,), by which the best and the worst are chosen.
        seed: of the replies that are shown without a choice.
    """
    parts = [f"<h1>Evaluation</h1><p>{escape(protocol.name)}: {escape(protocol.about)}.</p>"]
    parts.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>")
    parts.append(_table(comparison, protocol))
    for caption, png in pictures.items():
        data = base64.b64encode(png).decode()
        parts.append(f'<h2>{escape(caption)}</h2><img alt="{escape(caption)}" src="data:image/png;base64,{data}">')
    for name, given in replies.items():
        order = [int(place) for place in quality[name].argsort(kind="stable")]
        some = random.Random(seed).sample(range(len(given)), min(SHOWN, len(given)))
        for caption, places in (
            ("closest to their references", order[::-1][:SHOWN]),
            ("farthest from them", order[:SHOWN]),
            ("any", some),
        ):
            parts.append(f"<h2>{escape(name)}: {caption}</h2>{_replies(places, dialogues, given)}")
    head = f'<meta charset="utf-8"><title>Evaluation</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _table(comparison: Comparison, protocol: Protocol) -> str:
    keys = [key for key in METRICS if any(key in found for found in comparison.values())]
    keys += sorted({key for found in comparison.values() for key in found if key not in METRICS})
    head = "".join(f"<th>{escape(name)}</th>" for name in (*comparison, *(f"paper: {n}" for n in protocol.published)))
    rows = []
    for key in keys:
        metric = metric_of(key)
        cells = "".join(_cell(key, found.get(key)) for found in comparison.values())
        cells += "".join(
            f"<td>{metric.shown(row[key]) if key in row else ''}</td>" for row in protocol.published.values()
        )
        rows.append(f'<tr><th title="{escape(metric.about)}">{escape(metric.label)}</th>{cells}</tr>')
    return (
        f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"
        "<p><small>In brackets the 95 % interval over dialogues (paired bootstrap). A pale figure does not differ from "
        "the first system's.</small></p>"
    )


def _cell(key: str, figure: Figure | None) -> str:
    if figure is None:
        return "<td>-</td>"
    shown = metric_of(key).shown
    around = figure.interval and f" <small>[{shown(figure.interval.low)}, {shown(figure.interval.high)}]</small>"
    return f"<td{'' if figure.differs else ' class=same'}>{shown(figure.value)}{around or ''}</td>"


def _replies(places: Sequence[int], dialogues: Sequence[Dialogue], replies: Sequence[str]) -> str:
    entries = []
    for place in places:
        turns = "".join(f"<p class=turn>{escape(turn)}</p>" for turn in dialogues[place].turns)
        references = " / ".join(dialogues[place].references[:3])
        entries.append(
            f"<li>{turns}<b>{escape(replies[place]) or '(empty)'}</b><br>"
            f"<small>reference: {escape(references)}</small></li>"
        )
    return f"<ol>{''.join(entries)}</ol>"
