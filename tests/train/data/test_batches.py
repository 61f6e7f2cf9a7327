"""Which tokens make a batch: each turn is a target once per epoch, the window holds, little padding, one order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dialogpt.data import Reading
from dialogpt.errors import DialogueError
from dialogpt.train.data import batches as module
from dialogpt.train.data.batches import IGNORED, Batches, split_turns
from dialogpt.train.data.dialogues import Format
from dialogpt.train.data.prepare import TokenFiles, prepare
from tests.helpers import small_vocabulary

VOCABULARY = small_vocabulary(merges=0)  # a letter is a token
EOS = VOCABULARY.eos_id


def token_files(folder: Path, *dialogues: dict[str, object], window: int = 64, fewest_turns: int = 2) -> TokenFiles:
    """Prepare dialogues."""
    path = folder / "dialogues.jsonl"
    path.write_text("\n".join(map(json.dumps, dialogues)))
    return prepare(
        [path],
        folder / "prepared",
        VOCABULARY,
        Format(window=window, fewest_turns=fewest_turns, reading=Reading(min_turns=fewest_turns)),
    )


def ids(text: str) -> list[int]:
    """Ids of letters, with "." for the end token."""
    return [EOS if letter == "." else VOCABULARY.ids[letter] for letter in text]


def text(row: torch.Tensor) -> str:
    """Ids as letters, "." for the end token and "-" for tokens that are not targets."""
    letters = {EOS: ".", IGNORED: "-"} | {VOCABULARY.ids[letter]: letter for letter in "abcdefghijklmnopqrstuvwxyz"}
    return "".join(letters[n] for n in row.tolist())


def test_every_turn_but_the_first_is_learned(tmp_path: Path) -> None:
    data = token_files(tmp_path, {"turns": ["a", "b", "c"]}, {"turns": ["d", "e"]})
    batch = Batches(data, window=64, batch_tokens=64, first_is_target=False, seed=0)[0]
    assert [text(row) for row in batch.ids] == ["d.e...", "a.b.c."]
    assert [text(row) for row in batch.labels] == ["--e.--", "--b.c."]
    assert (batch.learned, batch.weight) == (6, 6.0)


def test_all_turns_are_learned_when_asked_but_nothing_says_the_first_token(tmp_path: Path) -> None:
    data = token_files(tmp_path, {"turns": ["ab", "c"]}, {"turns": ["d"]}, fewest_turns=1)
    batch = Batches(data, window=64, batch_tokens=64, first_is_target=True, seed=0)[0]
    assert [text(row) for row in batch.labels] == ["-.---", "-b.c."]


def test_weights_belong_to_turns(tmp_path: Path) -> None:
    data = token_files(tmp_path, {"turns": ["z", "z"]}, {"turns": ["a", "b", "c"], "weights": [3, 0.5, 0]})
    batch = Batches(data, window=64, batch_tokens=64, first_is_target=False, seed=0)[0]
    assert [text(row) for row in batch.labels] == ["--z.--", "--b.--"]
    assert batch.weights[1].tolist() == [3, 3, 0.5, 0.5, 0, 0]
    assert batch.weight == 2 * 1 + 2 * 0.5


def test_a_long_dialogue_is_cut_at_turns_with_the_turn_before_as_context(tmp_path: Path) -> None:
    data = token_files(tmp_path, {"turns": ["abc", "de", "fg", "h"]}, window=8)
    for first_is_target, labels in ((True, ["-bc.de.", "---fg.h."]), (False, ["----de.", "---fg.h."])):
        batches = Batches(data, window=8, batch_tokens=16, first_is_target=first_is_target, seed=0)
        assert sorted(text(row) for row in batches[0].labels) == sorted(f"{row:-<8}" for row in labels)


def test_a_turn_longer_than_the_window_is_context_only(tmp_path: Path) -> None:
    data = token_files(tmp_path, {"turns": ["a", "bcdefghijk", "lm", "n"]}, window=8)
    assert data.about["shortened"] == 1
    batches = Batches(data, window=8, batch_tokens=8, first_is_target=False, seed=0)
    assert sorted(text(batches[n].ids[0]) for n in range(2)) == ["hijk.lm.", "lm.n."]
    assert sorted(text(batches[n].labels[0]) for n in range(2)) == ["-----lm.", "---n."]


def test_no_place_is_padded_that_sorting_by_length_can_avoid(tmp_path: Path) -> None:
    """100 dialogues of 4 lengths: rows of a batch are equally long but where one batch joins two lengths."""
    data = token_files(tmp_path, *({"turns": ["a" * (1 + n % 4 * 5), "b"]} for n in range(100)))
    batches = Batches(data, window=64, batch_tokens=64, first_is_target=True, seed=0)
    sizes = [batches[n].ids.shape for n in range(batches.per_epoch)]
    assert all(rows * width <= 64 for rows, width in sizes)
    tokens = 100 * (4 + 7.5)
    assert sum(rows * width for rows, width in sizes) <= tokens + 3 * 64


def test_the_order_is_a_function_of_the_seed_and_differs_between_epochs(tmp_path: Path) -> None:
    data = token_files(tmp_path, *({"turns": ["a" * (n % 7 + 1), chr(97 + n % 26)]} for n in range(60)))

    def epoch(seed: int, number: int) -> list[list[str]]:
        batches = Batches(data, window=20, batch_tokens=40, first_is_target=False, seed=seed)
        return [[text(row) for row in batches[number * batches.per_epoch + n].ids] for n in range(batches.per_epoch)]

    assert epoch(1, 0) == epoch(1, 0)
    assert epoch(1, 0) != epoch(2, 0)
    assert epoch(1, 0) != epoch(1, 1)
    assert sorted(r.rstrip(".") for b in epoch(1, 0) for r in b) == sorted(
        r.rstrip(".") for b in epoch(2, 3) for r in b
    )


def test_what_cannot_be_learned_is_said(tmp_path: Path) -> None:
    data = token_files(tmp_path, {"turns": ["a", "b" * 20]}, window=8)
    with pytest.raises(DialogueError, match=r"no turn of .* can be trained on"):
        Batches(data, window=8, batch_tokens=8, first_is_target=False, seed=0)


def test_dialogues_that_are_planned_in_parts_give_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = token_files(
        tmp_path,
        *({"turns": ["a" * (n % 5 + 1)] * (n % 4 + 2), "weights": [n % 3] * (n % 4 + 1) + [1]} for n in range(40)),
        window=8,
    )

    def rows() -> list[tuple[str, str]]:
        batches = Batches(data, window=8, batch_tokens=8, first_is_target=False, seed=0)
        return sorted((text(b.ids[0]), text(b.labels[0])) for b in (batches[n] for n in range(batches.per_epoch)))

    whole = rows()
    assert len(whole) > 40
    monkeypatch.setattr(module, "CHUNK_DIALOGUES", 7)
    assert rows() == whole


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(2, 25), st.booleans())
def test_cutting_learns_every_turn_that_fits_exactly_once(
    lengths: list[int], window: int, first_is_target: bool
) -> None:
    """The slow and obvious count: which tokens of which turns each piece learns."""
    turn_of = [turn for turn, length in enumerate(lengths) for _ in range(length)]
    learned: list[int] = []
    for start, length, first, with_context, after in split_turns(lengths, window, first_is_target):
        assert 1 <= length <= window
        held = turn_of[start : start + length]
        assert (held[0], held[-1]) == (first, after - 1)
        whole = held[held.count(first) :] if with_context else held
        learned += whole
        assert whole
        if with_context:  # a context that is cut has lost its front, never its end
            assert held.count(first) <= lengths[first]
    expected = [turn for turn in turn_of if lengths[turn] <= window and (turn > 0 or first_is_target)]
    assert sorted(learned) == expected
