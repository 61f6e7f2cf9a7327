"""Text for people's screens: a model's words, a file's names and errors must not steer the terminal they appear on."""

from __future__ import annotations

import re
import shlex
import sys
import unicodedata
from collections.abc import Sequence

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_PLAIN = re.compile(r"[\w.:\\/+-]+")  # what no shell of Windows takes for more than text
_SLASHES = re.compile(r'(\\*)("|$)')
_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # change the order of reading; emoji joiners stay


def printable(text: str) -> str:
    """Text that cannot move the cursor, turn a line round or change the terminal: such signs become U+FFFD."""
    return "".join(letter if _is_harmless(letter) else _REPLACEMENT for letter in text)


def one_line(text: str) -> str:
    """Text without line breaks of any kind: each becomes a space."""
    return " ".join(text.splitlines())


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


def _is_harmless(letter: str) -> bool:
    return letter in "\n\t" or (unicodedata.category(letter) not in ("Cc", "Cs") and letter not in _TURNING)
