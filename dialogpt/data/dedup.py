"""Duplicates: dialogues whose words were seen before, all of them or nearly.

Equal words are found by a hash, whatever their case and punctuation; 100 bytes a dialogue are kept. Nearly equal ones
are found by MinHash (Broder, 1997) over runs of three words, by the library datasketch; 2 kB a dialogue are kept.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

from dialogpt.data.dialogue import Dialogue
from dialogpt.errors import DialogueError, install_hint

DEDUP = ("exact", "near")
SIMILARITY = 0.8  # of the sets of runs of words (Jaccard), from which on dialogues are near
PERMUTATIONS = 64
RUN = 3  # words
_WORD = re.compile(r"\w+")

Seen = Callable[[Dialogue], bool]  # whether a dialogue, or one like it, was seen before


def duplicates(how: str) -> Seen:
    """What finds duplicates, by a name in `DEDUP`.

    Raises:
        DialogueError: the library for near ones is not installed.
    """
    return _exact() if how == "exact" else _near()


def _words(dialogue: Dialogue) -> list[str]:
    return _WORD.findall("\n".join(dialogue.turns).casefold())


def _exact() -> Seen:
    known: set[bytes] = set()

    def seen(dialogue: Dialogue) -> bool:
        words = _words(dialogue) or dialogue.turns  # of nothing but punctuation: as it is
        name = hashlib.blake2b(" ".join(words).encode(errors="surrogatepass"), digest_size=12).digest()
        before = name in known
        known.add(name)
        return before

    return seen


def _near() -> Seen:
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError:
        raise DialogueError(f"--dedup near needs datasketch: {install_hint('data')}") from None
    exact, index = _exact(), MinHashLSH(threshold=SIMILARITY, num_perm=PERMUTATIONS)
    count = 0

    def seen(dialogue: Dialogue) -> bool:
        nonlocal count
        if exact(dialogue):
            return True
        words = _words(dialogue)
        runs = {" ".join(words[n : n + RUN]).encode() for n in range(max(1, len(words) - RUN + 1))}
        sketch: Any = MinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update_batch(sorted(runs))
        if index.query(sketch):
            return True
        index.insert(count, sketch)
        count += 1
        return False

    return seen
