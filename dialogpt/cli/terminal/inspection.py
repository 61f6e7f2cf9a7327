"""What `/explain` and `/why` do in a chat: the page of the last reply, and one of its tokens in the terminal."""

from __future__ import annotations

import tempfile
from pathlib import Path

from dialogpt.chat import Chat
from dialogpt.decoding.stop import Stop
from dialogpt.errors import DialogueError
from dialogpt.files.disk import reason_of, write_atomically
from dialogpt.inspect import Inspection, explain_last, render_page
from dialogpt.inspect.text import render_token, shown


def write_page(chat: Chat, name: str, stop: Stop) -> Path:
    """Write the page of the last reply; without a name, into a temporary folder of one's own.

    Raises:
        DialogueError: there is no exchange yet, or the file cannot be written.
        Stopped: `stop` returned true; nothing is written.
    """
    page = render_page(explain_last(chat, stop=stop))
    try:
        path = Path(name).expanduser() if name else Path(tempfile.mkdtemp(prefix="dialogpt-")) / "explain.html"
        write_atomically(path, page)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a home folder that is not known
        raise DialogueError(f"{name or 'the page'} cannot be written: {reason_of(error)}") from None
    return path.absolute()


def why(chat: Chat, wanted: str, stop: Stop) -> str:
    """Describe one token of the last reply, or list them.

    Args:
        chat: with a reply.
        wanted: the token's number from 1 on, or a part of the reply's text, whose first token is meant; without it the
            tokens are listed.
        stop: asked between pieces of the work.

    Raises:
        DialogueError: there is no exchange yet, or the reply has no such token.
        Stopped: `stop` returned true.
    """
    inspection = explain_last(chat, stop=stop)
    tokens = inspection["tokens"][inspection["reply"]["first"] :]
    if not wanted:
        listed = "\n".join(
            f"{number:>3} {shown(token):<16} {token['bits'] or 0:6.2f} bits" for number, token in enumerate(tokens, 1)
        )
        return f"{listed}\n/why NUMBER or /why WORD shows one of them"
    return render_token(inspection, inspection["reply"]["first"] + _place_of(inspection, wanted))


def _place_of(inspection: Inspection, wanted: str) -> int:
    """The place in the reply of a token that is named by its number or by text."""
    tokens = inspection["tokens"][inspection["reply"]["first"] :]
    if wanted.isdecimal() and 1 <= int(wanted) <= len(tokens):
        return int(wanted) - 1
    start = inspection["reply"]["text"].casefold().find(wanted.casefold())
    if start < 0:
        raise DialogueError(f"the reply has no {wanted!r}, and {len(tokens)} tokens; /why lists them")
    end = 0
    for place, token in enumerate(tokens):
        end += len(token["text"])
        if end > start:
            return place
    return len(tokens) - 1
