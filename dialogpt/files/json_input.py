"""Parse JSON that comes from outside: bounded in what it makes of memory, without NaN, Infinity or numbers beyond them.

Small values take up to a hundred times their bytes in memory: 60 MB of brackets become 1.5 GB, in ten seconds.
"""

from __future__ import annotations

import json
import math
from typing import Any

MAX_VALUES = 600_000  # characters that begin one more value or line; GPT-2's tokenizer.json has 250,000


def require_bounded(text: str) -> None:
    """Refuse a text that holds too many values, before it is parsed.

    Raises:
        ValueError: it does.
    """
    if sum(map(text.count, "\n,[{")) > MAX_VALUES:
        raise ValueError(f"it holds more than {MAX_VALUES:,} values")


def parse(text: str, *, unique_keys: bool = False) -> Any:
    """The value that a JSON text holds.

    Args:
        text: what came.
        unique_keys: whether a duplicate key is an error; parsers differ in which value they keep.

    Raises:
        ValueError: it is not JSON, too large, nested too deeply, or has a number that JSON cannot give back.
    """
    require_bounded(text)
    try:
        return json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_unique if unique_keys else None,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large for a number")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {key!r} is duplicate")
        made[key] = value
    return made
