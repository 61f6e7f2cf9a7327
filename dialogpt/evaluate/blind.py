"""Judging blind: pairs of replies in random order without names, and the score of the answers."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from dialogpt.errors import DialogueError
from dialogpt.evaluate.dialogues import Dialogue, lines_of
from dialogpt.files.disk import write_atomically
from dialogpt.files.plain_file import require_plain_file

ANSWERS = ("a", "b", "same")


def write_pairs(
    folder: Path, dialogues: Sequence[Dialogue], replies: Mapping[str, Sequence[str]], count: int, seed: int
) -> int:
    """Write ``blind.jsonl``, to be filled in, and ``blind-key.json``, not to be read before.

    Args:
        folder: where.
        dialogues: what was answered.
        replies: of each system, at least two.
        count: how many pairs; equal replies make none.
        seed: of their choice and order.

    Returns:
        How many pairs there are.

    Raises:
        DialogueError: there is nothing to compare, or pairs are there already, perhaps with answers.
    """
    if len(replies) < 2:
        raise DialogueError(f"--blind compares systems, and there is {len(replies)}; name two or more")
    path = folder / "blind.jsonl"
    if path.exists():
        raise DialogueError(f"{path} exists, perhaps with answers; move it away first")
    pairs = [
        (place, *names)
        for names in combinations(replies, 2)
        for place in range(len(dialogues))
        if replies[names[0]][place].strip() != replies[names[1]][place].strip()
    ]
    generator = random.Random(seed)
    chosen = generator.sample(pairs, min(count, len(pairs)))
    lines, key = [], {}
    for number, (place, *pair) in enumerate(chosen, 1):
        generator.shuffle(pair)
        key[str(number)] = pair
        texts = {"a": replies[pair[0]][place], "b": replies[pair[1]][place]}
        lines.append({"id": number, "turns": dialogues[place].turns, **texts, "better": ""})
    write_atomically(folder / "blind-key.json", json.dumps(key, ensure_ascii=False))
    write_atomically(path, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))
    return len(lines)


@dataclass(frozen=True)
class Verdict:
    """How two systems were judged.

    Attributes:
        systems: their names.
        wins: how often each was better.
        same: how often neither.
        p_value: of so uneven wins between equal systems (two-sided sign test).
    """

    systems: tuple[str, str]
    wins: tuple[int, int]
    same: int
    p_value: float


def score_answers(path: Path) -> list[Verdict]:
    """Score a filled-in ``blind.jsonl`` by the key beside it; lines without an answer do not count.

    Raises:
        DialogueError: there is no key, or a line is not one of its pairs, or holds another answer than `ANSWERS`.
    """
    try:
        where = path.with_name("blind-key.json")
        require_plain_file(where)
        key = json.loads(where.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise DialogueError(f"there is no blind-key.json beside {path}; expected what --blind wrote") from None
    wins: Counter[tuple[str, str]] = Counter()
    same: Counter[tuple[str, ...]] = Counter()
    for number, line in lines_of(path):
        try:
            entry = json.loads(line)
            pair, better = key[str(entry["id"])], str(entry["better"]).strip().lower()
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DialogueError(f"{path}, line {number}: it is none of the pairs of the key beside it") from None
        if better not in (*ANSWERS, ""):
            raise DialogueError(
                f'{path}, line {number}: "better" is {better[:20]!r}, expected {", ".join(ANSWERS)} or ""'
            )
        if better == "same":
            same[tuple(sorted(pair))] += 1
        elif better:
            wins[pair[ANSWERS.index(better)], pair[1 - ANSWERS.index(better)]] += 1
    judged = sorted({tuple(sorted(pair)) for pair in [*wins, *same]})
    if not judged:
        raise DialogueError(f'{path} holds no answers yet; write {", ".join(ANSWERS)} under "better"')
    verdicts = []
    for left, right in judged:
        counts = (wins[left, right], wins[right, left])
        verdicts.append(Verdict((left, right), counts, same[left, right], sign_test(*counts)))
    return verdicts


def sign_test(left: int, right: int) -> float:
    """How likely wins this uneven are where both sides are equal, two-sided; 1 without any win."""
    total = left + right
    tail = sum(math.comb(total, count) for count in range(min(left, right) + 1)) / 2**total
    return float(min(1.0, 2 * tail))
