"""Threads to dialogues: each rule alone, paths in any order of rows, and large threads."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialogpt.data.reddit import Comment, Rules, dialogues, keep, thread
from dialogpt.data.reddit.rules import RULES, Phrases, read_phrases
from dialogpt.data.trees import leaves, paths

PAPER = Rules()


def row(id_: str, parent: str, body: str | None = "the very thing", **changes: Any) -> Comment:
    values = {
        "link_id": "t3_a",
        "subreddit": "x",
        "author": 0,
        "score": 1,
        "created_utc": 1,
        "dropped": None,
        **changes,
    }
    return Comment(id=id_, parent_id=parent, body=body, **values)


def made(rows: list[Comment], rules: Rules = PAPER) -> tuple[list[list[str]], Counter[str]]:
    counts: Counter[str] = Counter()
    found = [dialogue.turns for dialogue in dialogues(thread(rows, counts), rules, counts)]
    return found, +counts


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (["hi there", "the answer"], None),
        (["hi there", ""], "empty_target"),
        (["", "the answer"], "empty_turn"),
        (["a" * 40, "the answer"], None),
        (["hi there", "the " + "a" * 31], "long_word"),
        (["one " * 30] * 6 + ["the " + "other one " * 10], "too_long"),
        (["one " * 30] * 6 + ["the " + "other one " * 9 + "!"], None),
        (["see __url__", "the answer"], "url"),
        (["hi there", "the ( answer )"], "markup"),
        (["[ edit ]", "the answer"], "markup"),
        (["HELLO there", "the answer"], "capitals"),
        (["HELL there", "the answer"], None),
        (["no no no", "the answer"], None),
        (["hi there", "the no no no"], "repetition"),
        (["the answer", "jawohl mein freund"], "no_common_word"),
    ],
)
def test_each_rule_of_a_dialogue(turns: list[str], reason: str | None) -> None:
    assert keep(turns, [1.0] * len(turns), PAPER) == reason


def test_bland_replies_are_nine_in_ten_frequent_trigrams() -> None:
    rules = Rules(frequent_trigrams=frozenset({"i don't know"}))
    assert keep(["why is it", "I don't know"], [1.0, 1.0], rules) == "bland"
    assert keep(["why is it", "I don't know why"], [1.0, 1.0], rules) is None
    assert keep(["why is it", "I don't"], [1.0, 1.0], rules) is None


def test_offensive_turns_get_the_weight_0() -> None:
    rules = Rules(blocked_words=Phrases(("darn", "Go Away", "f*ck")))
    rows = [
        row("t1_b", "t3_a", "darn it all"),
        row("t1_c", "t1_b", "the answer is that"),
        row("t1_d", "t1_c", "go away, you"),
    ]
    counts: Counter[str] = Counter()
    found = next(dialogues(thread(rows, counts), rules, counts))
    assert found.weights == [0.0, 1.0, 0.0]
    assert made([rows[0], row("t1_c", "t1_b", "the darn answer")], rules)[1]["offensive"] == 1
    assert not rules.blocked_words.found_in("darning, going away")
    assert rules.blocked_words.found_in("what the F*CK")


def test_strict_drops_monologues_and_echoes() -> None:
    strict = Rules(name="strict")
    rows = [row("t1_b", "t3_a", author=7), row("t1_c", "t1_b", "the answer is that", author=7)]
    assert made(rows, strict)[1]["self_reply"] == 1
    assert made([row("t1_b", "t3_a", author=7), row("t1_c", "t1_b", author=8)], strict)[1]["echo"] == 1
    assert len(made(rows)[0]) == 1


def test_titles_are_first_turns_only_of_whole_paths() -> None:
    rows = [
        row("t3_a", "", "What is it?"),
        row("t1_b", "t3_a"),
        row("t1_c", "t1_b", None, dropped="long"),
        row("t1_d", "t1_c"),
    ]
    found, counts = made(rows, Rules(titles=True))
    assert found == [["title : What is it ?", "the very thing"]]
    assert counts["no_context"] == 1


def test_a_plain_text_run_keeps_what_was_typed() -> None:
    rows = [row("t1_b", "t3_a", "Café, the 😀 one"), row("t1_c", "t1_b", "w/o the other")]
    assert made(rows, Rules(plain_text=True))[0] == [["Café, the 😀 one", "w/o the other"]]


@given(st.permutations(range(9)))
def test_the_order_of_rows_does_not_matter(order: list[int]) -> None:
    """Engines bring the rows of a thread in any order; duplicates are settled by their content."""
    rows = [row(f"t1_{n}", f"t1_{n // 2}" if n > 1 else "t3_a") for n in range(1, 7)]
    rows += [
        row("t1_3", "t1_1", None, dropped="deleted"),
        row("t1_5", "t1_2", "the newer text", created_utc=9),
        rows[3],
    ]
    expected = made(rows)
    assert expected[1]["duplicate"] == 3
    assert made([rows[n] for n in order]) == expected


class Node:
    def __init__(self, id_: str, parent_id: str | None, body: str | None) -> None:
        self.id, self.parent_id, self.body = id_, parent_id, body


class Forest:
    def __init__(self, messages: list[Node]) -> None:
        self.messages = messages


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=12), st.none() | st.integers(1, 4))
def test_paths_of_any_graph_end_and_are_chains(graph: list[tuple[int, bool]], limit: int | None) -> None:
    """Also with loops, parents that are missing, and messages without text."""
    forest = Forest([Node(str(n), str(parent), "text" if usable else None) for n, (parent, usable) in enumerate(graph)])
    found = list(paths(forest, max_turns=limit))
    assert [path[-1] for path in found] == leaves(forest)
    for path in found:
        assert all(two.parent_id == one.id for one, two in pairwise(path))
        assert len({node.id for node in path}) == len(path) <= (limit or 99)
        assert all(node.body for node in path)


@pytest.mark.parametrize("shape", ["chain", "star"])
def test_a_large_thread_costs_memory_in_its_own_size(shape: str) -> None:
    """Four times the comments take about four times the memory; its square would be 16."""

    def peak(size: int) -> int:
        rows = [
            row(f"t1_{n}", f"t1_{n - 1}" if shape == "chain" and n else "t3_a", f"the thing {n}") for n in range(size)
        ]
        if shape == "star":
            rows = [row("t1_root", "t3_a"), *(one._replace(parent_id="t1_root") for one in rows)]
        tracemalloc.start()
        counts: Counter[str] = Counter()
        number = sum(1 for _ in dialogues(thread(rows, counts), PAPER, counts))
        assert number == (1 if shape == "chain" else size)
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    peak(8000)  # imports the tokenizer, and fills the caches of words, which would count for the larger one alone
    assert peak(8000) < 8 * peak(2000)


def test_every_rule_that_is_counted_is_listed(tmp_path: Any) -> None:
    names = [rule.name for rule in RULES]
    assert len(names) == len(set(names))
    (tmp_path / "words.txt").write_text("# comment\nbad word\n\n")
    assert read_phrases(tmp_path / "words.txt").lines == ("bad word",)
