"""Stop strings: texts that end a reply once they are generated."""

from __future__ import annotations

from collections.abc import Sequence

from dialogpt.errors import Problem, SettingsError
from dialogpt.tokenizer import Tokenizer


class StopStrings:
    """Detects that the last token completes one of several texts; the text may end inside that token.

    Texts are compared as bytes, so a token that holds half a character is no obstacle (transformers'
    `StopStringCriteria`).
    """

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer, begin: int = 0) -> None:
        """Prepare for some texts.

        Args:
            texts: at least one.
            tokenizer: of the tokens.
            begin: index of the first token that counts; the length of a prompt that does not.

        Raises:
            SettingsError: a text can never be generated.
        """
        self._tokenizer, self._begin = tokenizer, begin
        try:
            self._stops = [text.encode() for text in texts]
        except UnicodeEncodeError:
            expected = "valid Unicode: no token completes half a surrogate pair"
            raise SettingsError([Problem("stop_strings", list(texts), expected)]) from None

    def end(self, ids: Sequence[int]) -> bool:
        """Return whether a stop string ends in the last of these tokens."""
        last = self._tokenizer.bytes_of(ids[-1])
        needed = max(map(len, self._stops)) + len(last)
        tail = b""
        for token in reversed(ids[self._begin :]):
            tail = self._tokenizer.bytes_of(token) + tail
            if len(tail) >= needed:
                break
        before = len(tail) - len(last)  # a stop string that ended before the last token does not count
        return any(stop in tail[max(0, before - len(stop) + 1) :] for stop in self._stops)
