"""Tri-grams that replies have in common: what `--bland` needs, counted over a finished run in bounded memory.

The paper dropped replies of which 90 % of the tri-grams had been seen more than 1,000 times (section 2). Its list was
not published, so it is counted anew. Counts are those of lossy counting (Manku and Motwani, VLDB 2002): when the table
is full, the rarest are forgotten, so that a count may be too low by the number of times that this happened.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dialogpt.data.reddit.dialogues import trigrams
from dialogpt.errors import DialogueError

TABLE = 5_000_000  # tri-grams in memory, about 700 MB


def replies(paths: Sequence[Path]) -> Iterator[list[str]]:
    """The words of the last turn of each dialogue in JSONL files.

    Raises:
        DialogueError: a line is no dialogue.
    """
    for path in paths:
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    try:
                        turns = json.loads(line)["turns"]
                        yield str(turns[-1]).split()
                    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
                        raise DialogueError(
                            f'{path}, line {number:,} is no dialogue like {{"turns": [...]}}; name the parts of a run'
                        ) from None
        except OSError as error:
            raise DialogueError(f"{path} cannot be read: {error.strerror}") from None


def frequent(texts: Iterable[Sequence[str]], min_count: int, table: int = TABLE) -> list[tuple[str, int]]:
    """Tri-grams that were seen more than so many times, the most frequent first.

    Args:
        texts: words of replies, as they are spelled in the data.
        min_count: how often a tri-gram must be exceeded.
        table: tri-grams that are held at a time.
    """
    counts: Counter[str] = Counter()
    forgotten = 0
    for words in texts:
        counts.update(trigrams(words))
        if len(counts) > table:
            forgotten += 1
            counts = Counter({name: count for name, count in counts.items() if count > forgotten})
    found = [(name, count) for name, count in counts.items() if count > min_count]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))
