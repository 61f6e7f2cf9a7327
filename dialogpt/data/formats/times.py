"""Times as exports write them: ISO 8601, or seconds or milliseconds since 1970."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Any

MILLISECONDS = 1e11  # from here on a number counts milliseconds: as seconds it would be the year 5138


def seconds_of_iso(text: Any) -> float | None:
    """A time as ISO 8601 has it, or a number of seconds or milliseconds; None where it is neither."""
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        number = abs(text)
        return None if not number < 1000 * MILLISECONDS else text / 1000 if number >= MILLISECONDS else float(text)
    if not isinstance(text, str):
        return None
    if re.fullmatch(r"\d{1,14}(?:\.\d{1,9})?", text.strip()):
        return seconds_of_iso(float(text))
    try:  # Python 3.10 knows neither "Z" nor other than 3 or 6 digits of a second
        fixed = re.sub(r"\.(\d+)", lambda match: f".{match[1][:6]:0<6}", text.strip().replace("Z", "+00:00"))
        moment = datetime.fromisoformat(fixed)
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return None
