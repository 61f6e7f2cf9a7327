"""Standard input, as bytes: a dialogue in JSON, or lines that a command reads itself."""

from __future__ import annotations

import codecs
import sys
from typing import BinaryIO

from dialogpt.errors import DialogueError
from dialogpt.files import json_input


def stdin_bytes() -> BinaryIO:
    """Standard input, as it comes."""
    if sys.stdin is None:
        raise DialogueError("standard input is closed; there is nothing to read")
    return sys.stdin.buffer


def turns_from(data: bytes) -> list[str]:
    """The turns of a dialogue in JSON."""
    try:
        content = json_input.parse(data.removeprefix(codecs.BOM_UTF8).decode())
    except ValueError as error:
        raise DialogueError(
            f'standard input is not valid JSON in UTF-8 ({error}); expected {{"turns": [...]}}'
        ) from None
    turns = content.get("turns") if isinstance(content, dict) else None
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
        raise DialogueError('standard input holds no turns; expected {"turns": ["what was said", ...]}')
    return turns
