"""Split a text before it is merged: at the tokens that were added to a vocabulary, and inside long white space.

The rules for added tokens are those of `AddedVocabulary` in Hugging Face's tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from dialogpt.errors import DialogueError
from dialogpt.weights import Vocabulary

_WHITE_SPACE = "[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"  # \s in Rust, of both tokenizers
# GPT-2's pattern splits a run of white space before its last character where other text follows. tiktoken's engine
# backtracks to find that place, and panics on a long run (a million spaces, then a letter). `split_long_spaces` cuts
# there first: the run then ends its part of the text, and the pattern's `\s++$` matches it without backtracking.
_SPACES = re.compile(f"{_WHITE_SPACE}+")
LONG_SPACE = 1000


class AddedTokens:
    """Splits a text at the added tokens of a vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        longest_first = sorted(vocabulary.added, key=len, reverse=True)
        patterns = [_pattern_of(token, vocabulary.flags.get(token, frozenset())) for token in longest_first]
        self._ids = vocabulary.added
        self._pattern = re.compile(f"({'|'.join(patterns)})") if patterns else None
        # Tokens whose ids are beyond the network's embedding, except special ones, which are ordinary text when typed.
        self._without_row = sorted(vocabulary.without_row - vocabulary.special)

    def __bool__(self) -> bool:
        """Whether `split` does anything."""
        return bool(self._ids or self._without_row)

    def split(self, text: str) -> Iterator[str | int]:
        """Yield the text between added tokens, and the ids of these tokens.

        Raises:
            DialogueError: the text holds a token without an embedding row.
        """
        for token in self._without_row:
            if token in text:
                raise DialogueError(f"the token {token!r} has no embedding row here; spell it in another way")
        if self._pattern is None:
            yield text
            return
        for index, piece in enumerate(self._pattern.split(text)):  # text, added token, text, ..., text
            yield (self._ids.get(piece) or self._ids[piece.strip()]) if index % 2 else piece  # strip: see `_pattern_of`


def _pattern_of(token: str, flags: frozenset[str]) -> str:
    """Return the pattern of an added token, with the white space that its flags lstrip and rstrip include."""
    pattern = re.escape(token)
    if "single_word" in flags:
        pattern = rf"(?<!\w){pattern}(?!\w)"
    before, after = (f"{_WHITE_SPACE}*" if flag in flags else "" for flag in ("lstrip", "rstrip"))
    return f"{before}{pattern}{after}"


def split_long_spaces(text: str) -> list[str]:
    """Split a text before the last character of each long run of white space that other text follows."""
    runs = [run for run in _SPACES.finditer(text) if run.end() - run.start() > LONG_SPACE and run.end() < len(text)]
    cuts = [run.end() - 1 for run in runs]
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
