"""Encode the texts that turns begin with, once for a tokenizer.

A prefix is text: the special tokens in it become those tokens, the rest is encoded as text, and white space at its end
belongs to the word that follows, as GPT-2 splits text. Typed text never becomes a special token.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence

from dialogpt.errors import DialogueError
from dialogpt.text.turn_prefix import NO_PREFIX, TurnPrefix
from dialogpt.weights import Vocabulary

MAX_TOKENS = 32  # of a prefix: it is read again in every turn
_LIKE_A_TOKEN = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
logger = logging.getLogger(__name__)


def read_prefix(vocabulary: Vocabulary, encode: Callable[[str], list[int]], roles: Sequence[str]) -> TurnPrefix:
    """Encode the prefixes of a vocabulary.

    Args:
        vocabulary: its `turn_prefix` is a text for each role, or None.
        encode: text to ids, without special tokens.
        roles: the speakers.

    Raises:
        DialogueError: a prefix holds the end token or a token without an embedding row, or is too long.
    """
    if vocabulary.turn_prefix is None:
        return NO_PREFIX
    ids, gaps = {}, {}
    for role, text in zip(roles, vocabulary.turn_prefix, strict=True):
        core = text.rstrip()
        found = _encode(core, vocabulary, encode)
        if len(found) > MAX_TOKENS:
            raise DialogueError(f"the turn prefix {text[:40]!r} has {len(found)} tokens; expected at most {MAX_TOKENS}")
        ids[role] = tuple(found)
        takes_space = any(core.endswith(token) and "rstrip" in flags for token, flags in vocabulary.flags.items())
        gaps[role] = "" if takes_space else text[len(core) :]
    return TurnPrefix(ids, gaps)


def _encode(core: str, vocabulary: Vocabulary, encode: Callable[[str], list[int]]) -> list[int]:
    """The ids of a prefix, its special tokens among them."""
    if lost := next((token for token in vocabulary.without_row if token in core), None):
        raise DialogueError(
            f"the turn prefix {core!r} holds the token {lost!r}, which has no embedding row in this checkpoint: "
            f"nothing was trained for it; check that it is the right checkpoint"
        )
    special = sorted(vocabulary.special & vocabulary.ids.keys(), key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, special))})", core)
    unknown = [match[0] for piece in pieces[::2] for match in _LIKE_A_TOKEN.finditer(piece)]
    if strange := [token for token in unknown if token not in vocabulary.added]:
        known = ", ".join(special[:8])
        logger.warning(
            "%s in a turn prefix is no token of this vocabulary (%s), and is sent as text", strange[0], known
        )
    ids = [n for k, piece in enumerate(pieces) for n in ([vocabulary.ids[piece]] if k % 2 else encode(piece))]
    if vocabulary.eos_id in ids:
        raise DialogueError(
            f"the turn prefix {core!r} holds {vocabulary.eos_token}, which ends a turn; expected what one begins with"
        )
    return ids
