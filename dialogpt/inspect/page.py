"""An inspection as one self-contained HTML page: no script, style or picture from elsewhere, and none is let in.

The page's own script and style stand beside this file, in `static/`. The data are JSON in the page, in which no text
can end the element that holds it; the script makes text nodes of all texts; and a content security policy names the two
by their hashes, so that nothing else would run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from importlib.resources import files
from typing import Any

from dialogpt.inspect.data import Inspection

DIGITS = 5  # significant ones, of numbers in the page
PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


def render_page(inspection: Inspection) -> str:
    """The page, as a text to be written to a file or sent to a browser."""
    style, script = _static("page.css"), _static("page.js")
    script_source, style_source = page_sources()
    parts = {
        "policy": f"default-src 'none'; img-src data:; script-src {script_source}; style-src {style_source}; "
        "base-uri 'none'; form-action 'none'",
        "title": html.escape(f"Inside a reply: {' '.join(inspection['reply']['text'].split())[:60]}"),
        "style": style,
        "script": script,
        "data": page_data(inspection),
    }
    return PLACEHOLDER.sub(lambda place: parts[place[1]], _static("page.html"))


def page_sources() -> tuple[str, str]:
    """The page's own script and style, as the sources of a content security policy that allows nothing else."""
    return policy_source(_static("page.js")), policy_source(_static("page.css"))


def policy_source(text: str) -> str:
    """A script or a style inside a page, as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def page_data(inspection: Inspection) -> str:
    """The data as the page's script takes them: JSON without ``<``, rounded, and the heads' weights as bytes."""
    compact: dict[str, Any] = {**inspection, "tokens": [_with_bytes(dict(token)) for token in inspection["tokens"]]}
    text = json.dumps(_rounded(compact), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _with_bytes(token: dict[str, Any]) -> dict[str, Any]:
    """A token whose weights of every head are base64 of bytes, 255 for a weight of 1; layer, head, position."""
    attention = token["attention"]
    if attention is None or attention["heads"] is None:
        return token
    weights = bytes(round(255 * weight) for layer in attention["heads"] for head in layer for weight in head)
    return {**token, "attention": {**attention, "heads": base64.b64encode(weights).decode()}}


def _rounded(value: Any) -> Any:
    """Numbers with a few significant digits; a page of full ones is three times as large."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(entry) for entry in value]
    return value


def _static(name: str) -> str:
    return (files("dialogpt.inspect") / "static" / name).read_text(encoding="utf-8")
