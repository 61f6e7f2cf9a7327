"""Conversations on the disk: a JSON file that keeps ids as well as text, so that a dialogue goes on exactly.

The chat's own state is left to `dialogpt.chat`.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dialogpt.cli.printable import printable
from dialogpt.errors import DialogueError, did_you_mean
from dialogpt.files import json_input
from dialogpt.files.disk import reason_of, write_atomically
from dialogpt.files.plain_file import require_plain_file
from dialogpt.history import BOT, USER, Turn
from dialogpt.tokenizer import Tokenizer

FORMAT = "dialogpt conversation"
VERSION = 1
SIZE_LIMIT = 64 << 20  # bytes; a thousand turns take less than one MiB
SPEAKERS = {USER: "you", BOT: "bot"}  # of each role, its name in the file


def save(name: str, turns: Sequence[Turn], tokenizer: Tokenizer, persona: Turn | None = None) -> None:
    """Write a conversation; a file that holds another one is replaced, in one step.

    Args:
        name: a file; `~` is the home folder.
        turns: what was said and its answer, in pairs.
        tokenizer: of the checkpoint that answered.
        persona: the first turn that stands before the conversation.

    Raises:
        DialogueError: something else has that name, or it cannot be written; nothing is changed.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        **({} if persona is None else {"persona": tokenizer.decode(persona)}),
        "turns": [
            {"speaker": SPEAKERS[turn.role], "text": tokenizer.turn_text(turn, turn.role), "ids": turn}
            | ({"interrupted": True} if turn.interrupted else {})
            for turn in turns
        ],
    }
    try:
        path = Path(name).expanduser()
        if path.exists() and not _is_conversation(path):
            raise DialogueError(f"{name} exists and is not a saved conversation; choose another name")
        handle, temporary = tempfile.mkstemp(prefix=".dialogpt-", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(content, file, ensure_ascii=False, indent=1)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a home folder that is not known
        if isinstance(error, DialogueError):
            raise
        raise DialogueError(f"{name} cannot be written: {reason_of(error)}") from None


def load(name: str, tokenizer: Tokenizer, vocab_size: int) -> list[Turn]:
    """Read the turns of a conversation that `save` wrote.

    Where ids and text do not belong together (another checkpoint's vocabulary), the text counts.

    Raises:
        DialogueError: the file cannot be read or is not a conversation.
    """
    try:
        path = Path(name).expanduser()
        content = _read(path)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DialogueError(f"{name} cannot be read: {reason}{_meant(name)}") from None
    except ValueError:
        content = {}
    turns = content.get("turns") if content.get("format") == FORMAT else None
    if not isinstance(turns, list):
        raise DialogueError(f"{name} is not a conversation; expected a file that /save wrote")
    if content.get("version") != VERSION:
        raise DialogueError(f"{name} has version {content.get('version')!r}; this program reads {VERSION}")
    if len(turns) % 2:
        raise DialogueError(f"{name} holds {len(turns)} turns; expected pairs, what was said and its answer")
    roles = (USER, BOT) * (len(turns) // 2)
    return [
        Turn(_ids(turn, role, f"{name}: turn {number}", tokenizer, vocab_size), role, turn.get("interrupted") is True)
        for number, (turn, role) in enumerate(zip(turns, roles, strict=True), 1)
    ]


def _meant(name: str) -> str:
    """What is in the same folder and may have been meant by a name."""
    with suppress(OSError, RuntimeError, ValueError):
        path = Path(name).expanduser()
        return did_you_mean(name, [name[: len(name) - len(path.name)] + other.name for other in path.parent.iterdir()])
    return ""


def load_persona(name: str) -> str:
    """The persona of a conversation that `load` could read; empty where it has none."""
    with suppress(OSError, RuntimeError, ValueError):
        persona = _read(Path(name).expanduser()).get("persona")
        return persona if isinstance(persona, str) else ""
    return ""


def export(name: str, turns: Sequence[Turn], tokenizer: Tokenizer, persona: Turn | None = None) -> None:
    """Write a conversation as Markdown, for people to read.

    Raises:
        DialogueError: the name is taken, or cannot be written.
    """
    named = [("Persona", persona)] if persona is not None else []
    named += [("You" if turn.role == USER else "Bot", turn) for turn in turns]
    parts = ["# Conversation"]
    for speaker, turn in named:
        text = printable(tokenizer.turn_text(turn, turn.role)).replace("\\", "\\\\")
        for sign in "`*_<[#>":
            text = text.replace(sign, f"\\{sign}")
        parts.append(f"**{speaker}:** " + "  \n".join(text.splitlines()))
    try:
        path = Path(name).expanduser()
        if path.exists():
            raise DialogueError(f"{name} exists; choose another name")
        write_atomically(path, "\n\n".join(parts) + "\n")
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a home folder that is not known
        if isinstance(error, DialogueError):
            raise
        raise DialogueError(f"{name} cannot be written: {reason_of(error)}") from None


def texts(path: Path) -> list[str]:
    """The texts of a conversation, without a tokenizer.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a conversation.
    """
    content = _read(path)
    turns = content.get("turns") if content.get("format") == FORMAT else None
    if not isinstance(turns, list) or not all(isinstance(t, dict) and isinstance(t.get("text"), str) for t in turns):
        raise ValueError("not a conversation")
    return [turn["text"] for turn in turns]


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        OSError: it is not there, or a pipe or device, which might never end.
        ValueError: it holds something else.
    """
    require_plain_file(path)
    if path.stat().st_size > SIZE_LIMIT:
        raise OSError(errno.EFBIG, f"it is larger than {SIZE_LIMIT >> 20} MiB; a conversation is not")
    content = json_input.parse(path.read_text(encoding="utf-8-sig"))
    if not isinstance(content, dict):
        raise ValueError("not an object")
    return content


def _ids(turn: Any, role: str, where: str, tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    if not isinstance(turn, dict) or not isinstance(turn.get("text"), str):
        raise DialogueError(f"{where} has no text")
    if turn.get("speaker") != SPEAKERS[role]:
        raise DialogueError(f"{where} is not said by {SPEAKERS[role]!r}, whose turn it is")
    ids = turn.get("ids")
    if (
        isinstance(ids, list)
        and all(type(n) is int and 0 <= n < vocab_size and n != tokenizer.eos_id for n in ids)
        and tokenizer.turn_text(ids, role) == turn["text"]
    ):
        return ids
    try:
        return tokenizer.encode_turn(turn["text"], role)
    except DialogueError as error:
        raise DialogueError(f"{where}: {error}") from None


def _is_conversation(path: Path) -> bool:
    try:
        return _read(path).get("format") == FORMAT
    except (OSError, ValueError):
        return False
