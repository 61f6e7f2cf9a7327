"""What a turn may be: a text that UTF-8 can write."""

from __future__ import annotations

from dialogpt.errors import DialogueError, shortened


def require_text(text: str) -> None:
    """Refuse what is no text.

    Raises:
        TypeError: it is no `str`.
        DialogueError: it holds half a surrogate pair, which no UTF-8 has.
    """
    if not isinstance(text, str):
        raise TypeError(f"a turn is a text (str), got {shortened(text)}; decode bytes, and pass turns one by one")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DialogueError(
            f"character {error.start + 1} (U+{ord(text[error.start]):04X}) is half a surrogate pair: the text was not "
            f"valid UTF-8; type or convert it again"
        ) from None
