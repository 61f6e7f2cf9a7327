"""Conversations on the disk: a JSON file that keeps ids as well as text, so that a dialogue goes on exactly.

The chat's own state is left to `dialogpt.chat`.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from dialogpt.errors import DialogueError
from dialogpt.tokenizer import Tokenizer

FORMAT = "dialogpt conversation"
VERSION = 1
SPEAKERS = ("you", "bot")


def save(path: Path, turns: list[list[int]], tokenizer: Tokenizer) -> None:
    """Write a conversation; a file that holds another one is replaced, in one step.

    Raises:
        DialogueError: something else has that name, or it cannot be written; nothing is changed.
    """
    if path.exists() and not _is_conversation(path):
        raise DialogueError(f"{path} exists and is not a saved conversation; choose another name")
    content = {
        "format": FORMAT,
        "version": VERSION,
        "turns": [
            {"speaker": SPEAKERS[place % 2], "text": tokenizer.decode(ids), "ids": ids}
            for place, ids in enumerate(turns)
        ],
    }
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(content, file, ensure_ascii=False, indent=1)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise DialogueError(f"{path} cannot be written: {error.strerror}") from None


def load(path: Path, tokenizer: Tokenizer, vocab_size: int) -> list[list[int]]:
    """Read the turns of a conversation that `save` wrote.

    Where ids and text do not belong together (another checkpoint's vocabulary), the text counts.

    Raises:
        DialogueError: the file cannot be read or is not a conversation.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DialogueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        content = None
    turns = content.get("turns") if isinstance(content, dict) and content.get("format") == FORMAT else None
    if not isinstance(turns, list):
        raise DialogueError(f"{path} is not a conversation; expected a file that /save wrote")
    if len(turns) % 2:
        raise DialogueError(f"{path} holds {len(turns)} turns; expected pairs, what was said and its answer")
    return [_ids(turn, number, path, tokenizer, vocab_size) for number, turn in enumerate(turns, 1)]


def _ids(turn: Any, number: int, path: Path, tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    if not isinstance(turn, dict) or not isinstance(turn.get("text"), str):
        raise DialogueError(f"{path}: turn {number} has no text")
    ids = turn.get("ids")
    if (
        isinstance(ids, list)
        and all(isinstance(n, int) and 0 <= n < vocab_size and n != tokenizer.eos_id for n in ids)
        and tokenizer.decode(ids) == turn["text"]
    ):
        return ids
    return tokenizer.encode(turn["text"])


def _is_conversation(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT
