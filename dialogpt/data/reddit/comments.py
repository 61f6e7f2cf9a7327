"""Stage 1, without an engine: a line of a dump becomes a row, with its text or the reason why it has none.

The schema is Pushshift's, with what 20 years of it bring: ids as numbers, times as text, scores that are null (see
docs/reddit.md). A row without text is kept: that it exists decides where paths end.
"""

from __future__ import annotations

import json
import zlib
from typing import Any, NamedTuple

from dialogpt.data.reddit.rules import Rules
from dialogpt.data.reddit.text import one_line
from dialogpt.errors import DialogueError, install_hint

try:
    import orjson
except ImportError:
    raise DialogueError(f"dumps need the package orjson: {install_hint('reddit')}") from None

COMMENTS, SUBMISSIONS = "comments", "submissions"
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_REMOVED = ("[removed]", "[ Removed by Reddit ]", "[deleted by user]", "[ Removed by reddit in response to a copyright "
            "notice. ]")  # fmt: skip
_LARGEST = 2**31 - 1  # of a score, as Parquet's int32 stores it
_LAST_TIME = 1 << 40  # seconds since 1970; later ones are damage
_MIN_COMMENTS = 2  # of a submission, reddit.py:138


class UnreadableError(DialogueError):
    """A line that is no comment; the reason."""


class WrongKindError(DialogueError):
    """A line of another kind of dump."""


class Comment(NamedTuple):
    """A row of stage 1; submissions are rows, too, with an empty parent.

    Attributes:
        link_id: the thread, "t3_...".
        id: "t1_...", or "t3_..." of a submission.
        parent_id: "t1_..." or "t3_...".
        subreddit: in lower case.
        author: a checksum of the name, as it is compared only within a thread; 0 is unknown.
        body: the text on one line, or a submission's title; None where a rule dropped it.
        score: votes; null counts as 0.
        created_utc: seconds since 1970; 0 is unknown.
        dropped: the rule that took the text away.
        month: of the dump, as 201803, where threads end with the month; else 0.
    """

    link_id: str
    id: str
    parent_id: str
    subreddit: str
    author: int
    body: str | None
    score: int
    created_utc: int
    dropped: str | None
    month: int = 0


def comment(line: bytes, rules: Rules, month: int = 0) -> Comment:
    """Read a line of a dump of comments.

    Args:
        line: JSON.
        rules: which text is kept.
        month: goes into the row.

    Raises:
        UnreadableError: the line is not JSON, or lacks what a comment has.
        WrongKindError: it is a submission.
    """
    record = _record(line)
    body, link = record.get("body"), record.get("link_id")
    if type(body) is not str or not link:
        if "title" in record and "body" not in record:
            raise WrongKindError("a submission, not a comment")
        raise UnreadableError(f"no {'body' if link else 'link_id'}: {sorted(record)[:6]}")
    link_id, id_ = _full_name(link, "t3_"), _full_name(record.get("id"), "t1_")
    dropped = _dropped(record, body, link_id, id_, rules)
    if dropped is None:
        body = one_line(body)
        words = len(body.split())
        if words < rules.min_turn_words:
            dropped = "short"
        elif words > rules.max_turn_words:
            dropped = "long"
    subreddit = record.get("subreddit")
    author = record.get("author")
    return Comment(
        link_id,
        id_,
        _parent_of(record.get("parent_id"), link_id),
        subreddit.lower() if type(subreddit) is str else "",
        zlib.crc32(author.encode()) if type(author) is str and author != "[deleted]" else 0,
        body if dropped is None else None,
        _integer(record.get("score"), -_LARGEST, _LARGEST),
        _integer(record.get("created_utc"), 0, _LAST_TIME),
        dropped,
        month,
    )


def submission(line: bytes, rules: Rules, month: int = 0) -> Comment:
    """Read a line of a dump of submissions.

    Raises:
        UnreadableError: the line is not JSON, or lacks what a submission has.
        WrongKindError: it is a comment.
    """
    record = _record(line)
    title = record.get("title")
    if type(title) is not str:
        if "body" in record:
            raise WrongKindError("a comment, not a submission")
        raise UnreadableError(f"no title: {sorted(record)[:6]}")
    id_ = _full_name(record.get("id"), "t3_")
    few = _integer(record.get("num_comments"), 0, _LARGEST) < _MIN_COMMENTS
    unwanted = rules.threads is not None and id_ not in rules.threads
    dropped = "other_thread" if unwanted else "no_submission" if few else None
    subreddit = str(record.get("subreddit") or "").lower()
    body = None if dropped else one_line(title)
    score, created = (
        _integer(record.get("score"), -_LARGEST, _LARGEST),
        _integer(record.get("created_utc"), 0, _LAST_TIME),
    )
    return Comment(id_, id_, "", subreddit, 0, body, score, created, dropped, month)


def _dropped(record: dict[str, Any], body: str, link_id: str, id_: str, rules: Rules) -> str | None:
    """The first rule that takes a comment's text away; its length is judged by the caller."""
    if rules.threads is not None and link_id not in rules.threads:
        return "other_thread"
    if rules.needed_keys is not None and f"{link_id},{id_}" not in rules.needed_keys:
        return "other_thread"
    if body == "[deleted]":
        return "deleted"
    if rules.respect_deletions or not rules.like_original:
        if body in _REMOVED:
            return "removed"
        if rules.respect_deletions and _was_deleted(record):
            return "deleted_later"
    author = record.get("author")
    if not rules.like_original and type(author) is str:
        author = author.lower()
        if author in rules.bots or (rules.strict and author.endswith("bot")):
            return "bot"
    if rules.blocked_subreddits or rules.allowed_subreddits:
        name = str(record.get("subreddit") or "").lower()
        if name in rules.blocked_subreddits or (rules.allowed_subreddits and name not in rules.allowed_subreddits):
            return "subreddit"
    return "quote" if ">" in body or "&gt;" in body else None


def _was_deleted(record: dict[str, Any]) -> bool:
    """Whether the second reading, 36 hours after the first, found it deleted or removed."""
    meta = record.get("_meta")
    return type(meta) is dict and bool(meta.get("was_deleted_later") or meta.get("removal_type"))


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = orjson.loads(line)
    except ValueError as error:
        record = _half_characters(line, error)
    if type(record) is not dict:
        raise UnreadableError(f"not a JSON object, but {str(record)[:30]!r}")
    return record


def _half_characters(line: bytes, error: ValueError) -> Any:
    r"""Read JSON in which an escape like \ud83d stands alone, which a cut text leaves behind; it becomes U+FFFD."""
    if b"\\ud" not in line.lower():
        raise UnreadableError(f"not valid JSON ({error})")
    try:
        text = json.dumps(json.loads(line), ensure_ascii=False)
        return json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    except (ValueError, RecursionError):
        raise UnreadableError(f"not valid JSON ({error})") from None


def _full_name(value: Any, kind: str) -> str:
    """An id with its kind; Pushshift's API gave some as numbers."""
    if type(value) is str and value:
        return value if value[:1] == "t" and value[2:3] == "_" else kind + value
    if type(value) is int and value >= 0:
        return kind + base36(value)
    raise UnreadableError(f"an id is {value!r}")


def _parent_of(value: Any, link_id: str) -> str:
    """The parent's full name; a number names the submission where it is the thread's own, else a comment."""
    if type(value) is str and value[2:3] == "_":
        return value
    if value is None or value == "":
        return link_id
    name = _full_name(value, "t1_")
    return link_id if name[3:] == link_id[3:] else name


def base36(number: int) -> str:
    """A number as Reddit writes ids."""
    digits = ""
    while True:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
        if not number:
            return digits


def _integer(value: Any, smallest: int, largest: int) -> int:
    """A number that may be a text or a fraction; 0 where it is neither."""
    try:
        number = value if type(value) is int else int(float(value))
    except (TypeError, ValueError, OverflowError):
        return 0
    return number if smallest <= number <= largest else smallest if number < smallest else largest
