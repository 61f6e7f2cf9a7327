"""Files to token files: the same ids however many processes read, every lost line named, nothing left half done."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialogpt import Tokenizer
from dialogpt.errors import DialogueError
from dialogpt.train.data import prepare as module
from dialogpt.train.data.batches import Batches
from dialogpt.train.data.dialogues import Format
from dialogpt.train.data.prepare import TokenFiles, most_workers, prepare, preview
from dialogpt.weights import CheckpointError
from tests.helpers import small_vocabulary

VOCABULARY = small_vocabulary()
FORM = Format(window=64)


def write(path: Path, *lines: str | dict[str, object]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_ids_are_the_tokenizers_with_an_end_after_each_turn(tmp_path: Path) -> None:
    turns = ["Hi! How are you?", "I typed <|endoftext|> once.", "  spaces \n and ünïcödé 🙂  ", "x" * 1500]
    data = prepare([write(tmp_path / "a.jsonl", {"turns": turns})], tmp_path / "out", VOCABULARY, Format(window=4096))
    tokenizer = Tokenizer(VOCABULARY)
    assert data.tokens.tolist() == [n for turn in turns for n in (*tokenizer.encode(turn), tokenizer.eos_id)]
    assert data.tokens.dtype == np.uint16
    assert (data.ends.tolist(), data.weights.tolist()) == ([[len(data.tokens), 4]], [1, 1, 1, 1])


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_any_turns_become_the_ids_of_each(turns: list[str]) -> None:
    tokenizer = Tokenizer(VOCABULARY)
    expected = [n for turn in turns for n in (*tokenizer.encode(turn), tokenizer.eos_id)]
    assert tokenizer.encode_dialogue(turns).tolist() == expected


@pytest.mark.parametrize(("name", "line"), [("a.jsonl", b'{"turns": ["hi", "b"]}\n'), ("a.tsv", b"hi\tb\n")])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str, line: bytes) -> None:
    (tmp_path / name).write_bytes(codecs.BOM_UTF8 + line)
    data = prepare([tmp_path / name], tmp_path / "out", VOCABULARY, FORM)
    ids = [Tokenizer(VOCABULARY).encode(turn) for turn in ("hi", "b")]
    assert data.tokens.tolist() == [n for turn in ids for n in (*turn, VOCABULARY.eos_id)]
    assert data.about["unusable"] == 0


def test_lost_lines_are_named_with_their_numbers_over_all_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 50)
    good = {"turns": ["Hi!", "Hello."]}
    first = write(tmp_path / "a.jsonl", good, "Hi!", "", good, {"turns": ["alone"]})
    second = write(tmp_path / "b.tsv", "a\tb", "a", "a\tb")
    data = prepare([first, second], tmp_path / "out", VOCABULARY, FORM)
    assert (tmp_path / "out" / "problems.txt").read_text().splitlines() == [
        f"{first}, line 2: not valid JSON (Expecting value: line 1 column 1 (char 0))",
        f"{first}, line 5: 1 turn, at least 2 needed",
        f"{second}, line 2: 1 column, expected 2: source, tab, reply",
    ]
    assert (data.about["dialogues"], data.about["unusable"]) == (4, 3)


def test_several_processes_give_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 1000)
    pools: list[int] = []
    pool = module.ProcessPoolExecutor
    monkeypatch.setattr(module, "ProcessPoolExecutor", lambda n, *args: (pools.append(n), pool(n, *args))[1])
    lines = [{"turns": [f"turn {n}" * (n % 9 + 1), "reply"], "weights": [1, n % 3 + 1]} for n in range(300)]
    path = write(tmp_path / "a.jsonl", *lines, "{")
    for workers in (1, 2):
        prepare([path], tmp_path / str(workers), VOCABULARY, FORM, workers=workers)
    assert pools == [2]
    names = {file.name for file in (tmp_path / "1").iterdir()}
    assert names == {"tokens.bin", "dialogues.bin", "weights.bin", "problems.txt", "data.json"}
    assert all((tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes() for name in names)


def test_windows_waits_for_61_processes_at_most() -> None:
    """A pool of more is a ValueError there."""
    assert (most_workers("win32"), most_workers("linux") > 200) == (61, True)


def test_a_line_that_is_too_long_costs_no_memory_and_no_line_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("source", "formats.jsonl"):
        monkeypatch.setattr(f"dialogpt.data.{name}.LINE_LIMIT", 100)
    path = write(tmp_path / "a.jsonl", {"turns": ["x" * 1000, "y"]}, {"turns": ["a", "b"]})
    for block in (7, 1 << 20):
        monkeypatch.setattr(module, "BLOCK", block)
        data = prepare([path], tmp_path / str(block), VOCABULARY, FORM)
        assert (data.about["dialogues"], data.about["unusable"]) == (1, 1)


@pytest.mark.parametrize("content", ["", "\n\n", "{\n", '{"turns": ["alone"]}\n'])
def test_no_usable_dialogue_is_a_sentence_and_leaves_nothing(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(DialogueError, match=r"no dialogue in .*a\.jsonl can be used"):
        prepare([path], tmp_path / "out", VOCABULARY, FORM)
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("name", ["missing.jsonl", "folder.jsonl", "file.dat"])
def test_files_that_cannot_be_read_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "file.dat").write_text("a b\n")
    with pytest.raises(DialogueError, match=name):
        prepare([tmp_path / name], tmp_path / "out", VOCABULARY, FORM)


def test_stopping_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    path = write(tmp_path / "a.jsonl", {"turns": ["a", "b"]})
    with pytest.raises(KeyboardInterrupt):
        prepare([path], tmp_path / "out", VOCABULARY, FORM, progress=stop)
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_damaged_or_foreign_token_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"turns": ["a", "b"]})
    data = prepare([path], tmp_path / "out", VOCABULARY, FORM)
    data.check(VOCABULARY, FORM)
    with pytest.raises(DialogueError, match="prepared with another reverse, vocabulary"):
        data.check(small_vocabulary(200), Format(window=64, reverse=True))
    with (tmp_path / "out" / "tokens.bin").open("ab") as file:
        file.write(b"\0\0")
    with pytest.raises(DialogueError, match=r"tokens\.bin does not hold the 4 numbers"):
        TokenFiles(tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"data\.json cannot be read"):
        TokenFiles(tmp_path)


def test_a_turn_that_fills_the_window_is_said_to_lose_its_first_token(tmp_path: Path) -> None:
    """That token has no context and is no target; no message said so, and --check showed it as a target."""
    tokenizer = Tokenizer(VOCABULARY)
    text = "x y" * 40
    window = len(tokenizer.encode(text)) + 1
    path = write(tmp_path / "a.jsonl", {"turns": ["hi", text]})
    for size, learned in ((window, window - 1), (window + 1, window)):
        form = Format(window=size)
        data = prepare([path], tmp_path / str(size), VOCABULARY, form)
        told = (tmp_path / str(size) / "problems.txt").read_text()
        assert ("fills the model's window; its first token has no context and is no target" in told) is (size == window)
        (line,) = preview(path, VOCABULARY, form, first_is_target=False, most=1)
        batches = Batches(data, window=size, batch_tokens=size, first_is_target=False, seed=0)
        assert sum(map(sum, (turn.learned for turn in line.turns))) == batches[0].learned == learned


def test_a_first_turn_that_fills_the_window_loses_nothing(tmp_path: Path) -> None:
    """It is no target anyway, and was said to lose its first token."""
    text = "x y" * 40
    window = len(Tokenizer(VOCABULARY).encode(text)) + 1
    path = write(tmp_path / "a.jsonl", {"turns": [text, "hi"]})
    for fewest_turns, told in ((2, 0), (1, 1)):  # with --loss-on all it is one
        data = prepare([path], tmp_path / str(told), VOCABULARY, Format(window=window, fewest_turns=fewest_turns))
        assert data.about["shortened"] == told


def test_preview_shows_the_first_turns_of_a_long_dialogue(tmp_path: Path) -> None:
    """A line of 4 MiB holds 800,000 turns, and took minutes."""
    path = write(tmp_path / "a.jsonl", {"turns": ["hi"] * (module.SHOWN_TURNS + 7)})
    (line,) = preview(path, VOCABULARY, FORM, first_is_target=False, most=5)
    assert (len(line.turns), line.more_turns) == (module.SHOWN_TURNS, 7)


def test_preview_shows_what_is_learned(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"turns": ["hi", "b", "c"], "weights": [1, 0, 2]}, "{")
    (first, second) = preview(path, VOCABULARY, FORM, first_is_target=False, most=5)
    eos = VOCABULARY.eos_id
    assert [turn.ids[-1] for turn in first.turns] == [eos] * 3
    assert [turn.learned for turn in first.turns] == [[False] * len(first.turns[0].ids), [False] * 2, [True] * 2]
    assert (second.number, second.turns) == (2, [])
    assert "not valid JSON" in second.problem
