"""What commands print: replies as lines or JSON, tables, and command lines to be typed."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dialogpt.cli.printable import one_line, printable

if TYPE_CHECKING:
    from dialogpt.generation import Reply
    from dialogpt.tokenizer import Tokenizer

_PLAIN = re.compile(r"[\w.:\\/+-]+")  # what no shell of Windows takes for more than text
_SLASHES = re.compile(r'(\\*)("|$)')


def command_line(words: Sequence[str], system: str = sys.platform) -> str:
    """A command to be typed: quoted for a POSIX shell or, on Windows, for cmd.exe and PowerShell.

    Both take double quotes alone, and programs there take a quote apart as C does: backslashes before it count twice.
    Some signs act within double quotes all the same, and no quoting stops them in both shells: cmd.exe replaces
    %NAME% where there is such a variable; PowerShell replaces $NAME and $(...), takes a backtick for an escape, and
    takes a curly double quote for the end. A word with one of them is quoted for the other shell.
    """
    if system != "win32":
        return shlex.join(words)
    return " ".join(word if _PLAIN.fullmatch(word) else f'"{_SLASHES.sub(_doubled, word)}"' for word in words)


def _doubled(slashes: re.Match[str]) -> str:
    return slashes[1] * 2 + ('\\"' if slashes[2] else "")


def print_reply(text: str) -> None:
    """Print one reply as one line; the bytes are the model's own unless a terminal shows them."""
    line = one_line(text)
    print(printable(line) if sys.stdout.isatty() else line, flush=True)


def described(tokenizer: Tokenizer, replies: Sequence[Reply]) -> list[dict[str, object]]:
    """Replies as JSON has them."""
    return [
        {
            "text": tokenizer.reply_text(reply.ids),
            "ids": reply.ids,
            "finish_reason": reply.finish_reason,
            "score": reply.score,
            **({} if reply.rank is None else {"rank": reply.rank}),
        }
        for reply in replies
    ]


def table(rows: list[tuple[str, str]]) -> str:
    """Names and values in two columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {printable(one_line(value))}" for name, value in rows)


def ignored_rows(ignored: dict[str, str]) -> list[tuple[str, str]]:
    """One row for each reason, with the names that it holds for."""
    reasons: dict[str, list[str]] = {}
    for name, reason in ignored.items():
        reasons.setdefault(reason, []).append(name)
    return [
        ("left out", f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}")
        for reason, names in reasons.items()
    ]
