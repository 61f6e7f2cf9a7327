"""Ids to text while they arrive: GPT-2's tokens are bytes, and a character may be made of several of them."""

from __future__ import annotations

import codecs

from dialogpt.history import BOT
from dialogpt.text.turn_prefix import strip_gap
from dialogpt.tokenizer import Tokenizer


class StreamDecoder:
    """Ids to text while they arrive: a character is returned with its last byte, never half of it.

    It decodes bytes; the decoders of tokens are `dialogpt.decoding`'s.
    """

    def __init__(self, tokenizer: Tokenizer, *, reply: bool = False) -> None:
        """Begin a text.

        Args:
            tokenizer: spells the tokens.
            reply: whether special tokens are left out as in replies; see `Tokenizer.skip_special_tokens`.
        """
        self._spell = tokenizer.shown_bytes if reply else tokenizer.bytes_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._gap = tokenizer.turn_prefix.gap(BOT) if reply else ""

    @property
    def waiting(self) -> bool:
        """Whether bytes of an unfinished character are withheld."""
        return bool(self._utf8.getstate()[0])

    def feed(self, token_id: int) -> str:
        """Return the text that this id completes; it is empty in the middle of a character."""
        text, self._gap = strip_gap(self._utf8.decode(self._spell(token_id)), self._gap)
        return text

    def finish(self) -> str:
        """Return the rest: U+FFFD for a character that was never completed."""
        return self._utf8.decode(b"", final=True)
