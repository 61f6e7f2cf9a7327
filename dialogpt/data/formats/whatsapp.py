"""WhatsApp's export of a chat as text, in both layouts:

    [20.06.19, 15:58:57] Anna: Hi!        iOS
    6/20/19, 3:58 PM - Anna: Hi!          Android

Whether the day or the month comes first is written nowhere, so the whole file is looked at before it is read: a 20th
month is none, and time does not run back. A line without a time goes on with the message before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timezone

from dialogpt.data.dialogue import Dialogue, Message, grouped
from dialogpt.data.formats.kind import Head, Kind, each
from dialogpt.data.source import LINE_LIMIT, Source, lines_of

_DATE = r"(\d{1,4})[./-](\d{1,2})[./-](\d{1,4})\.?"
_TIME = r"(\d{1,2})[:.](\d{2})(?:[:.](\d{2}))?(?:[\s\u202f\u00a0]*([AaPp])\.?[\s\u00a0]?[Mm]\.?)?"
_HEAD = re.compile(rf"[\u200e\u200f\ufeff]*(?:\[{_DATE},?\s+{_TIME}\]\s?|{_DATE},?\s+{_TIME}\s+[-–]\s)(.*)", re.DOTALL)
_NAMED = re.compile(r"[\u200e\u200f]*([^:\n]{1,80}?): ?(.*)", re.DOTALL)
_MARKS = "\u200e\u200f\u202a\u202c\u2068\u2069"
_EDITED = re.compile(r"[\s\u200e]*<[^<>]*(?:edited|bearbeitet|editado|modifi|modificato)[^<>]*>$")
_MEDIA = re.compile(
    r"<[^<>]{3,60}>|.*\.\w{2,5} \([^()]{5,40}\)|null|(?:image|video|audio|sticker|GIF|document|Contact card) omitted",
    re.IGNORECASE,
)
_DELETED = ("This message was deleted", "You deleted this message")
_BEGINNINGS = frozenset("[0123456789\u200e\u200f\ufeff")  # of a line with a time; most others are told at once
_FIRST_BYTES = frozenset(letter.encode()[:1] for letter in _BEGINNINGS)
MAX_LINES = 10_000  # of one message
YEAR_FIRST, DAY_FIRST, MONTH_FIRST = "year first", "day first", "month first"

Moment = tuple[int, int, int, int, int, int]  # three numbers of the date as they stand, hours of 24, minutes, seconds


def _split(line: str) -> tuple[Moment, str] | None:
    """The numbers of a line's time, and what follows; None where the line goes on with the one before."""
    match = _HEAD.fullmatch(line) if line[:1] in _BEGINNINGS else None
    if match is None:
        return None
    groups = match.groups()
    date = groups[:7] if groups[0] is not None else groups[7:14]
    hour, half = int(date[3]), date[6]
    if half is not None:
        hour = hour % 12 + 12 * (half.lower() == "p")
    return (int(date[0]), int(date[1]), int(date[2]), hour, int(date[4]), int(date[5] or 0)), groups[14]


def _seconds(moment: Moment, order: str) -> float | None:
    """A time in an order of its date; None where it is none."""
    a, b, c, hour, minute, second = moment
    year, month, day = {YEAR_FIRST: (a, b, c), DAY_FIRST: (c, b, a), MONTH_FIRST: (c, a, b)}[order]
    try:
        when = datetime(year + 2000 if year < 100 else year, month, day, hour, minute, second, tzinfo=timezone.utc)
    except ValueError:
        return None
    return when.timestamp()


def order_of(source: Source) -> str:
    """Which number of the dates is the day: the order in which most of them are dates that do not run back."""
    counts = dict.fromkeys((DAY_FIRST, MONTH_FIRST, YEAR_FIRST), 0)
    before: dict[str, float] = dict.fromkeys(counts, 0.0)
    twelve = False
    for raw in lines_of(source.path):  # most lines have no time, and are not looked at closer
        found = _split(raw.decode(errors="replace")) if raw[:1] in _FIRST_BYTES else None
        if found is None:
            continue
        twelve = twelve or b"m" in raw[:30].lower()
        for order in counts:
            if (order == YEAR_FIRST) != (found[0][0] > 31):
                counts[order] += 1000
                continue
            seconds = _seconds(found[0], order)
            if seconds is None:
                counts[order] += 1000  # a date that is none says more than one that runs back
            else:
                counts[order] += seconds < before[order] - 3600  # an hour runs back every autumn
                before[order] = seconds
    if counts[DAY_FIRST] == counts[MONTH_FIRST] < counts[YEAR_FIRST]:
        assumed = MONTH_FIRST if twelve else DAY_FIRST  # 12 hours are mostly written where months come first
        source.problem(0, f"its dates do not say whether the day or the month comes first; read as {assumed}")
        return assumed
    return min(counts, key=lambda order: counts[order])


def read(source: Source) -> Iterator[Dialogue]:
    """The dialogues of a chat."""
    yield from grouped(_messages(source, order_of(source)), source.reading.gap_seconds)


def _messages(source: Source, order: str) -> Iterator[Message]:
    held: Message | None = None
    more: list[str] = []
    letters = 0
    for number, line in source.text_lines():
        found = _split(line)
        if found is None:
            if held is None:
                if line.strip():
                    source.problem(number, "no time before it, as 6/20/19, 3:58 PM - or [20.06.19, 15:58:57]")
            elif letters + len(line) > LINE_LIMIT or len(more) >= MAX_LINES:
                source.problem(number, f"goes on with a message of more than {MAX_LINES:,} lines or 4 MiB")
            else:
                more.append(line)
                letters += len(line)
            continue
        if held is not None:
            yield from _whole(source, held, more)
        moment, rest = found
        seconds = _seconds(moment, order)
        held, more, letters = Message(number, "", seconds, rest), [], len(rest)
        if seconds is None:
            source.problem(number, "a time that there is not")
            held = None
    if held is not None:
        yield from _whole(source, held, more)


def _whole(source: Source, head: Message, more: list[str]) -> Iterator[Message]:
    """A message with all its lines, unless it is the system's or no text."""
    match = _NAMED.fullmatch(head.text)
    if match is None:
        source.problem(head.line, "a line of the system")
        return
    speaker, first = match[1].strip(_MARKS + " \u00a0").removeprefix("~").strip(_MARKS + " \u202f\u00a0"), match[2]
    system = first[:1] == "\u200e"
    text = "\n".join([_EDITED.sub("", first).strip(_MARKS), *(line.strip(_MARKS) for line in more)]).strip()
    if _MEDIA.fullmatch(text):
        source.problem(head.line, "media")
    elif system:
        source.problem(head.line, "a line of the system")
    elif text.rstrip(".") in _DELETED:
        source.problem(head.line, "a deleted message")
    elif not text:
        source.problem(head.line, "a message without text")
    else:
        yield Message(head.line, speaker, head.seconds, text)


def _fits(head: Head) -> bool:
    return any(_HEAD.fullmatch(line) for line in head.lines[:10])


KINDS = (Kind("whatsapp", "WhatsApp's export of a chat, of iOS or Android", _fits, each(read)),)
