"""Turns joined by the end token and cut by whole turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialogpt import DialogueError, History
from dialogpt.history import first_shown

END = 99
turns = st.lists(st.lists(st.integers(0, 98), max_size=12), min_size=1, max_size=14)


def test_turns_are_joined_by_the_end_token() -> None:
    assert History(END, [[1, 2], [3], []]).prompt(100, 100).ids == [1, 2, END, 3, END, END]


def test_the_example_of_the_docstring() -> None:
    assert [first_shown([4] * n, 12) for n in range(1, 8)] == [0, 0, 0, 3, 3, 3, 6]


@given(turns=turns, budget=st.integers(1, 60), window=st.integers(1, 60))
def test_a_prompt_is_whole_turns_within_its_limits(turns: list[list[int]], budget: int, window: int) -> None:
    history = History(END, turns)
    prompt = history.prompt(budget, window)
    whole = [token for turn in turns[prompt.first_turn :] for token in (*turn, END)]
    assert prompt.ids == whole[prompt.cut :]
    assert 1 <= len(prompt.ids) <= window
    last = len(turns[-1]) + 1
    if prompt.first_turn < len(turns) - 1:  # earlier turns are shown only within the budget, and never cut
        assert len(prompt.ids) <= budget
        assert prompt.cut == 0
    assert prompt.cut == max(0, last - window) if prompt.first_turn == len(turns) - 1 else True
    assert history.turns == turns


@given(turns=turns, budget=st.integers(1, 60))
def test_the_cut_depends_on_the_turns_alone(turns: list[list[int]], budget: int) -> None:
    """Undo, retry and load must see the prompt that was there before: no memory of earlier cuts."""
    grown = History(END)
    for turn in turns:
        grown.add(turn)
        grown.prompt(budget, 50)
    grown.add([1, 2, 3])
    grown.prompt(budget, 50)
    grown.turns.pop()
    assert grown.prompt(budget, 50) == History(END, turns).prompt(budget, 50)


@given(turns=turns, budget=st.integers(2, 60))
def test_a_cut_leaves_room_for_the_next_turns(turns: list[list[int]], budget: int) -> None:
    """A cut goes down to half the budget, so that the prompt's start moves seldom and the cache keeps its prefix."""
    lengths = [len(turn) + 1 for turn in turns]
    starts = [first_shown(lengths[:n], budget) for n in range(1, len(turns) + 1)]
    assert starts == sorted(starts)
    for n in range(1, len(turns)):
        if starts[n] > starts[n - 1] and starts[n] < n:
            assert sum(lengths[starts[n] : n + 1]) <= budget // 2


def test_a_turn_longer_than_the_window_loses_its_front_only() -> None:
    prompt = History(END, [[1] * 5, [2] * 5, list(range(30))]).prompt(20, 10)
    assert prompt.ids == [*range(21, 30), END]
    assert (prompt.first_turn, prompt.cut) == (2, 21)


def test_a_turn_longer_than_the_history_budget_is_shown_whole() -> None:
    assert History(END, [[1], [2], [3] * 30]).prompt(8, 100).ids == [*[3] * 30, END]


def test_what_cannot_be_a_prompt_is_refused() -> None:
    with pytest.raises(DialogueError, match="needs a turn"):
        History(END).prompt(10, 10)
    with pytest.raises(DialogueError, match="needs a turn and room"):
        History(END, [[1]]).prompt(10, 0)
    with pytest.raises(DialogueError, match="holds the end token"):
        History(END).add([1, END])
