"""Text for people's screens: a model's words, a file's names and errors must not steer the terminal they appear on."""

from __future__ import annotations

import unicodedata

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BIDI_CONTROLS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # right to left and back; emoji joiners stay


def printable(text: str) -> str:
    """Text that cannot move the cursor, reverse the order of reading or change the terminal: such signs are U+FFFD."""
    return "".join(letter if _is_harmless(letter) else _REPLACEMENT for letter in text)


def one_line(text: str) -> str:
    """Text without line breaks of any kind: each becomes a space, but for one at the end, which is removed."""
    return " ".join(text.splitlines())


def _is_harmless(letter: str) -> bool:
    return letter in "\n\t" or (unicodedata.category(letter) not in ("Cc", "Cs") and letter not in _BIDI_CONTROLS)
