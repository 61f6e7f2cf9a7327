"""Stage 2, without an engine: the rows of a thread become dialogues, or are counted by the rule that dropped them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from dialogpt.data.reddit.comments import Comment
from dialogpt.data.reddit.rules import Rules, common_words
from dialogpt.data.reddit.text import URL, normalize, original, plain
from dialogpt.data.trees import leaves, paths

_MARKUP = re.compile(r"[\[\]()]")
_CAPITALS = re.compile(r"[A-Z]{5,}")
_MAX_WORD = 30  # characters
_BLAND = 0.9  # of the reply's tri-grams, section 2 of the paper
_DELETIONS = ("deleted", "removed", "deleted_later")
_EXTRACTED = (None, "long")  # comments that the extractor's first pass keeps, so that their parents count as answered


class Dialogue(NamedTuple):
    """A dialogue, oldest turn first.

    Attributes:
        id: thread, parent and comment of the last turn, with commas, as in Microsoft's lists of keys.
        subreddit: in lower case.
        score: of the last turn.
        created_utc: of the last turn, seconds since 1970.
        turns: the texts.
        weights: one for each turn; 0 where it is offensive, so that it is context only.
    """

    id: str
    subreddit: str
    score: int
    created_utc: int
    turns: list[str]
    weights: list[float]


@dataclass(frozen=True)
class Thread:
    """The comments of a thread, each id once, by parent and id: a `dialogpt.data.trees.Tree`.

    Attributes:
        messages: the comments.
        title: of the submission; None where it is not known.
    """

    messages: list[Comment]
    title: str | None = None


def thread(rows: Iterable[Comment], counts: Counter[str]) -> Thread:
    """Order the rows of a thread so that the same rows in any order give the same thread.

    Args:
        rows: comments, and perhaps their submission.
        counts: gets the number of duplicates.
    """
    title = None
    by_id: dict[str, Comment] = {}
    for row in rows:
        if not row.parent_id:
            title = max(title or "", row.body) if row.body is not None else title
            continue
        other = by_id.get(row.id)
        counts["duplicate"] += other is not None
        by_id[row.id] = row if other is None else min(row, other, key=_preference)
    return Thread(sorted(by_id.values(), key=lambda row: (row.parent_id, row.id)), title)


def _preference(row: Comment) -> tuple[bool, bool, int, int, str]:
    """Which of two rows for one comment comes first: the one that says that it was deleted, then the newer."""
    return (row.dropped not in _DELETIONS, row.body is None, -row.created_utc, -row.score, row.body or "")


def dialogues(thread: Thread, rules: Rules, counts: Counter[str]) -> Iterator[Dialogue]:
    """The dialogues of a thread that the rules keep, in the order of their last comments' parents and ids.

    Args:
        thread: its comments.
        rules: which are kept.
        counts: gets, for each dropped dialogue, the name of the rule.
    """
    if rules.need_submission and thread.title is None:
        counts["no_submission"] += sum(row.body is not None for row in thread.messages)
        return
    spell = original if rules.like_original else normalize
    spelled: dict[str, str] = {}
    for path in _candidates(thread, rules, counts):
        for row in path:
            if row.id not in spelled:
                spelled[row.id] = spell(row.body or "")
        turns = [spelled[row.id] for row in path]
        title = thread.title if rules.titles and path[0].parent_id == path[0].link_id else None
        if title is not None:
            turns.insert(0, spell(f"title: {title}"))
        weights = [_weight(turn, rules) for turn in turns]
        reason = keep(turns, weights, rules) or _strict_reason(path, turns, rules)
        if reason is not None:
            counts[reason] += 1
            continue
        if rules.plain_text:
            turns = [plain(row.body or "") for row in path]
            if title is not None:
                turns.insert(0, plain(f"title: {title}"))
        counts["dialogues"] += 1
        counts["turns"] += len(turns)
        last = path[-1]
        key = f"{last.link_id},{last.parent_id},{last.id}"
        yield Dialogue(key, last.subreddit, last.score, last.created_utc, turns, weights)


def _candidates(thread: Thread, rules: Rules, counts: Counter[str]) -> Iterator[list[Comment]]:
    """Paths that are long enough, to comments that may end a dialogue."""
    rows = thread.messages
    if rules.like_original:
        rows = [row for row in rows if row.dropped in _EXTRACTED]
    if rules.leaves_only and rules.like_original:  # an answer counts even where it cannot be used itself
        answered = {row.parent_id for row in rows}
        targets = [row for row in rows if row.id not in answered]
    elif rules.leaves_only:
        targets = leaves(thread)
    else:
        targets = [row for row in rows if row.body is not None]
    counts["answered"] += sum(row.body is not None for row in rows) - sum(row.body is not None for row in targets)
    wanted = []
    for row in targets:
        key = f"{row.link_id},{row.id}"
        if (rules.kept_keys is not None and key not in rules.kept_keys) or (
            rules.targets is not None and f"{row.link_id},{row.parent_id},{row.id}" not in rules.targets
        ):
            counts["not_a_key"] += 1
        elif row.score < rules.min_score:
            counts["low_score"] += 1
        else:
            wanted.append(row)
    for path in paths(thread, wanted, rules.max_turns):
        length = len(path) + (rules.titles and bool(path) and path[0].parent_id == path[0].link_id)
        if length < rules.min_turns:
            counts["no_context"] += 1
        else:
            yield path


def _weight(turn: str, rules: Rules) -> float:
    """How much a turn counts in training: 0 if it is offensive (reddit.py:401-412)."""
    if rules.blocked_words.found_in(turn):
        return 0.0
    if rules.discarded_targets and hashlib.sha224(turn.encode()).hexdigest() in rules.discarded_targets:
        return 0.0
    return 1.0


def keep(turns: Sequence[str], weights: Sequence[float], rules: Rules) -> str | None:
    """The first rule that drops a dialogue, or None.

    Args:
        turns: normalized, oldest first, at least one.
        weights: of the turns.
        rules: which rules apply.
    """
    words = [turn.split() for turn in turns]
    length = sum(map(len, words))
    if rules.like_original:  # there a turn begins with its weight, and EOS stands between the turns of the source
        length += len(turns) - 2
        if rules.leaves_only:
            words[-1].insert(0, f"{weights[-1]:.1f}")
            length += len(turns)
        if len(words[-1]) < 2:  # so of the test set, which has no weights, replies of one word are dropped
            return "empty_target"
    elif not words[-1]:
        return "empty_target"
    elif not all(words):
        return "empty_turn"
    target = words[-1]
    if any(len(word) > _MAX_WORD for word in target):
        return "long_word"
    if length > rules.max_words:
        return "too_long"
    if any(URL in turn for turn in turns):
        return "url"
    if any(_MARKUP.search(turn) for turn in turns):
        return "markup"
    if any(_CAPITALS.search(turn) for turn in turns):
        return "capitals"
    if any(first == second == third for first, second, third in zip(target, target[1:], target[2:], strict=False)):
        return "repetition"
    if not rules.like_original and not common_words(target):
        return "no_common_word"
    if rules.frequent_trigrams and is_bland(target, rules.frequent_trigrams):
        return "bland"
    trained = weights[-1:] if not rules.leaves_only else weights[1:] if not rules.like_original else (1.0,)
    return None if any(trained) else "offensive"


def trigrams(words: Sequence[str]) -> list[str]:
    """Three words in a row each, in lower case."""
    return [" ".join(three).lower() for three in zip(words, words[1:], words[2:], strict=False)]


def is_bland(words: Sequence[str], frequent: frozenset[str]) -> bool:
    """Whether nine in ten of a reply's tri-grams are frequent ones; a shorter reply has none and is not bland."""
    found = trigrams(words)
    return bool(found) and sum(three in frequent for three in found) >= _BLAND * len(found)


def _strict_reason(path: Sequence[Comment], turns: Sequence[str], rules: Rules) -> str | None:
    if not rules.strict:
        return None
    if any(one.author and one.author == two.author for one, two in pairwise(path)):
        return "self_reply"
    return "echo" if len(turns) > 1 and turns[-1].lower() == turns[-2].lower() else None
