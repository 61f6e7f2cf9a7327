"""The source that a misspelt one may mean: a checkpoint that many use, or one on this disk; asks no network."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from dialogpt.weights.folders import WEIGHT_SUFFIXES

PUBLISHED = (
    *(f"microsoft/DialoGPT-{size}" for size in ("small", "medium", "large")),
    *(f"microsoft/DialogRPT-{kind}" for kind in ("updown", "width", "depth", "human-vs-rand", "human-vs-machine")),
    *("openai-community/gpt2", "openai-community/gpt2-medium", "openai-community/gpt2-large"),
    *("openai-community/gpt2-xl", "distilbert/distilgpt2"),
)
MAX_BESIDE = 1000  # names of a folder that are looked at


def missing(name: str) -> str:
    """Return the beginning of a sentence about a source that is not there, with what may be meant."""
    meant = _meant(name.partition("@")[0])
    return f"there is no folder or file {name!r}{f' (did you mean {meant}?)' if meant else ''}"


def _meant(name: str) -> str | None:
    """Return the nearest source, whatever its letters' case; a published one is found without its owner, too."""
    sources = {published.lower(): published for published in PUBLISHED}
    sources |= {published.partition("/")[2].lower(): published for published in PUBLISHED} | {"tiny": "tiny"}
    if (local := _nearest_path(Path(name))) is not None:
        sources[str(local).lower()] = str(local)
    near = get_close_matches(str(Path(name)).lower(), list(sources), 1)
    return sources[near[0]] if near and sources[near[0]] != name else None


def _nearest_path(path: Path) -> Path | None:
    """Return a path that exists and differs in misspelt parts only; None if there is none."""
    found = Path(path.anchor)
    for part in path.parts[1 if path.anchor else 0 :]:
        try:
            if (found / part).exists():
                found /= part
                continue
            near = get_close_matches(part, list(_sources_in(found)), 1)
        except (OSError, ValueError):  # it cannot be read; a name that is too long, or holds a NUL
            return None
        if not near:
            return None
        found /= near[0]
    return found


def _sources_in(folder: Path) -> Iterator[str]:
    for entry in islice(folder.iterdir(), MAX_BESIDE):
        if entry.suffix in WEIGHT_SUFFIXES or entry.is_dir():
            yield entry.name
