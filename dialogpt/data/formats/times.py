"""Times as exports write them."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Any


def seconds_of_iso(text: Any) -> float | None:
    """A time as ISO 8601 has it, or a number of seconds; None where it is neither."""
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        return float(text) if abs(text) < 1e12 else None
    if not isinstance(text, str):
        return None
    if re.fullmatch(r"\d{1,11}", text):
        return float(text)
    try:  # Python 3.10 knows neither "Z" nor other than 3 or 6 digits of a second
        fixed = re.sub(r"\.(\d+)", lambda match: f".{match[1][:6]:0<6}", text.strip().replace("Z", "+00:00"))
        moment = datetime.fromisoformat(fixed)
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return None
