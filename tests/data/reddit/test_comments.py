"""Lines of dumps to rows, with every quirk of 20 years."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialogpt.data.reddit.comments import UnreadableError, WrongKindError, base36, comment, submission
from dialogpt.data.reddit.rules import Rules

RECORD = {"id": "dz9vql2", "link_id": "t3_8kp7vg", "parent_id": "t1_dz9q575", "body": "this is it", "score": 3,
          "created_utc": 1526774400, "subreddit": "AskReddit", "author": "somebody", "edited": False}  # fmt: skip
RULES = Rules(bots=frozenset({"automoderator"}))


def read(rules: Rules = RULES, **changes: Any) -> Any:
    return comment(json.dumps({**RECORD, **changes}).encode(), rules)


def test_a_comment_is_read() -> None:
    row = read(month=0)
    assert row[:4] == ("t3_8kp7vg", "t1_dz9vql2", "t1_dz9q575", "askreddit")
    assert (row.body, row.score, row.created_utc, row.dropped) == ("this is it", 3, 1526774400, None)
    assert "somebody" not in map(str, row)


@pytest.mark.parametrize(
    ("changes", "dropped"),
    [
        ({"body": "[deleted]"}, "deleted"),
        ({"body": "[removed]"}, "removed"),
        ({"body": "[ Removed by Reddit ]"}, "removed"),
        ({"_meta": {"was_deleted_later": True}}, "deleted_later"),
        ({"_meta": {"removal_type": "moderator"}}, "deleted_later"),
        ({"_meta": {"was_deleted_later": False, "is_edited": True}}, None),
        ({"author": "AutoModerator"}, "bot"),
        ({"author": "some_bot"}, None),
        ({"author": "[deleted]"}, None),
        ({"author": None}, None),
        ({"body": "> as you said\n\nno it is not"}, "quote"),
        ({"body": "&gt; as you said"}, "quote"),
        ({"body": "yes"}, "short"),
        ({"body": "\\\\ yes \n"}, "short"),
        ({"body": " ".join("a" * 30)}, None),
        ({"body": " ".join("a" * 31)}, "long"),
    ],
)
def test_each_rule_of_a_comment(changes: dict[str, Any], dropped: str | None) -> None:
    row = read(**changes)
    assert row.dropped == dropped
    assert (row.body is None) == (dropped is not None)
    assert (row.id, row.parent_id) == ("t1_dz9vql2", "t1_dz9q575")  # kept in any case


def test_the_extractor_knows_only_deleted() -> None:
    theirs = Rules(like_original=True, respect_deletions=False, bots=RULES.bots)
    removed = read(theirs, body="[removed] by us", author="AutoModerator", _meta={"was_deleted_later": True})
    assert (removed.dropped, removed.body) == (None, "[removed] by us")
    assert read(theirs, body="[deleted]").dropped == "deleted"


def test_subreddits_keys_and_strictness() -> None:
    assert read(Rules(blocked_subreddits=frozenset({"askreddit"}))).dropped == "subreddit"
    assert read(Rules(allowed_subreddits=frozenset({"science"}))).dropped == "subreddit"
    assert read(Rules(allowed_subreddits=frozenset({"askreddit"}))).dropped is None
    assert read(Rules(needed_keys=frozenset({"t3_8kp7vg,t1_other"}))).dropped == "other_thread"
    assert read(Rules(needed_keys=frozenset({"t3_8kp7vg,t1_dz9vql2"}))).dropped is None
    assert read(Rules(threads=frozenset({"t3_x"}))).dropped == "other_thread"
    assert read(Rules(name="strict"), author="HelperBot").dropped == "bot"


@given(st.integers(0, 2**63))
def test_ids_are_written_in_base_36(number: int) -> None:
    assert int(base36(number), 36) == number


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"parent_id": int("dz9q575", 36)}, {"parent_id": "t1_dz9q575"}),
        ({"parent_id": int("8kp7vg", 36)}, {"parent_id": "t3_8kp7vg"}),
        ({"parent_id": None}, {"parent_id": "t3_8kp7vg"}),
        ({"id": int("dz9vql2", 36), "link_id": int("8kp7vg", 36)}, {"id": "t1_dz9vql2", "link_id": "t3_8kp7vg"}),
        ({"created_utc": "1526774400"}, {"created_utc": 1526774400}),
        ({"created_utc": 1526774400.7}, {"created_utc": 1526774400}),
        ({"created_utc": "never"}, {"created_utc": 0}),
        ({"score": None}, {"score": 0}),
        ({"score": "12"}, {"score": 12}),
        ({"score": 10**30}, {"score": 2**31 - 1}),
        ({"edited": 1526774401.0}, {"dropped": None}),
        ({"body": "half \ud83d of an emoji"}, {"body": "half \ufffd of an emoji"}),
        ({"body": "a \x00 NUL"}, {"body": "a \x00 NUL"}),
        ({"subreddit": None}, {"subreddit": ""}),
    ],
)
def test_each_quirk_of_the_schema(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    row = read(**changes)
    assert {name: getattr(row, name) for name in expected} == expected


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"7", b"null", b'{"body": "x"}', b'{"link_id": "t3_x", "body": 7}', b"\xff\xfe",
             b'{"a": NaN}',
             b"[" * 100_000, b'{"body": "x", "link_id": "t3_x", "id": null}', b'"\\ud800"', b"[" * 5000 + b'"\\ud800'],
)  # fmt: skip
def test_lines_that_are_no_comment(line: bytes) -> None:
    with pytest.raises(UnreadableError):
        comment(line, RULES)


@given(st.binary(max_size=60) | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(
    lambda value: json.dumps({"body": value, "link_id": value, "id": value, "score": value}).encode()))  # fmt: skip
def test_damage_is_a_reason_and_never_another_error(line: bytes) -> None:
    try:
        comment(line, RULES)
    except (UnreadableError, WrongKindError):
        return


def test_the_two_kinds_of_dump_are_told_apart() -> None:
    about = {"id": "8kp7vg", "title": "What\nis it?", "num_comments": 2, "score": 1, "created_utc": 1, "selftext": ""}
    with pytest.raises(WrongKindError, match="a submission"):
        comment(json.dumps(about).encode(), RULES)
    with pytest.raises(WrongKindError, match="a comment"):
        submission(json.dumps(RECORD).encode(), RULES)
    row = submission(json.dumps(about).encode(), RULES)
    assert (row.link_id, row.id, row.parent_id, row.body) == ("t3_8kp7vg", "t3_8kp7vg", "", "What is it?")
    assert submission(json.dumps({**about, "num_comments": 1}).encode(), RULES).dropped == "no_submission"
