"""Plain text: a turn a line, a blank line between dialogues."""

from __future__ import annotations

from collections.abc import Iterator

from dialogpt.data.dialogue import MAX_MESSAGES, Dialogue
from dialogpt.data.formats.kind import Head, Kind, each
from dialogpt.data.source import Source


def read(source: Source) -> Iterator[Dialogue]:
    """The dialogues of a file; one that never ends is cut after `MAX_MESSAGES` turns."""
    turns: list[str] = []
    begun = 0
    for number, line in source.text_lines():
        text = line.strip()
        if turns and (not text or len(turns) >= MAX_MESSAGES):
            yield Dialogue(turns, line=begun)
            turns = []
        if text:
            begun = begun if turns else number
            turns.append(text)
    if turns:
        yield Dialogue(turns, line=begun)


def _fits(head: Head) -> bool:
    plain = bool(head.lines) and head.lines[0][:1] not in "{["
    return plain and (head.path.suffix.lower() == ".txt" or head.blank_between)


KINDS = (Kind("text", "plain text: a turn a line, a blank line between dialogues", _fits, each(read), weak=True),)
