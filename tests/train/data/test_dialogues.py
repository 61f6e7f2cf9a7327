"""Lines of files to dialogues: each yields a dialogue or a reason, and numbers are weights only on request."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialogpt.data import KINDS, Dialogue, Reading
from dialogpt.data.source import LINE_LIMIT
from dialogpt.errors import DialogueError
from dialogpt.train.data.dialogues import Format

FORM = Format(window=64)
TSV, JSONL = Path("a.tsv"), Path("a.jsonl")


def read(path: Path, line: str | bytes, form: Format = FORM) -> Dialogue:
    parse, reasons = KINDS["turns" if path == JSONL else "tsv"].parse, list[str]()
    assert parse is not None
    data = (line.encode() if isinstance(line, str) else line).rstrip(b"\r\n")
    found = form.transformer().apply(parse(data, form.reading), reasons.append)
    if not found:
        raise DialogueError(reasons[0])
    return found[0]


def test_jsonl() -> None:
    assert read(JSONL, '{"turns": ["Hi!", "Hello."], "id": 7}\n') == Dialogue(["Hi!", "Hello."])
    assert read(JSONL, '{"turns": ["Hi!", "Hello."], "weights": [0, 0.5]}\r\n').weights == [0, 0.5]


def test_tsv() -> None:
    assert read(TSV, "hi EOS hello EOS how are you\tfine\n").turns == ["hi", "hello", "how are you", "fine"]


@pytest.mark.parametrize("turn", ["20 years old", "nan", "infinity", "1.0 beer please", "0.0"])
def test_a_number_is_text_where_no_weights_are_announced(turn: str) -> None:
    """DialoGPT's prepro.py takes any first word that Python's float reads for a weight."""
    assert read(TSV, f"how old\t{turn}") == Dialogue(["how old", turn])


def test_tsv_with_weights() -> None:
    weighted = Format(window=64, reading=Reading(tsv_weights=True))
    assert read(TSV, "0.0 hi EOS 1.0 20 years\t0.5 nan", weighted) == Dialogue(
        ["hi", "20 years", "nan"], [0.0, 1.0, 0.5]
    )
    for wrong in ("hi\t1.0 bye", "nan hi\t1.0 bye", "1.0hi\t1.0 bye", "-1 hi\t1.0 bye", "0.0 hi\t1.0"):
        with pytest.raises(DialogueError, match="does not begin with a weight"):
            read(TSV, wrong, weighted)


@pytest.mark.parametrize(
    ("path", "line", "reason"),
    [
        (JSONL, "{", "not valid JSON"),
        (JSONL, "[" * 100_000, "not valid JSON"),
        (JSONL, "[]", 'no list of texts under "turns"'),
        (JSONL, '{"turns": "Hi!"}', 'no list of texts under "turns"'),
        (JSONL, '{"turns": ["Hi!", 1]}', 'no list of texts under "turns"'),
        (JSONL, '{"turns": []}', "0 turns, at least 2 needed"),
        (JSONL, '{"turns": ["Hi!"]}', "1 turn, at least 2 needed"),
        (JSONL, '{"turns": ["Hi!", " \\n"]}', "turn 2 is blank"),
        (JSONL, '{"turns": ["a", "b"], "weights": 1}', '"weights" is not a list'),
        (JSONL, '{"turns": ["a", "b"], "weights": [1]}', "1 weight for 2 turns"),
        (JSONL, '{"turns": ["a", "b"], "weights": [1, NaN]}', "a weight is nan"),
        (JSONL, '{"turns": ["a", "b"], "weights": [1, -1]}', "a weight is -1"),
        (JSONL, '{"turns": ["a", "b"], "weights": [1, true]}', "a weight is True"),
        (JSONL, '{"turns": ["a", "b"], "weights": [1, null]}', "a weight is None"),
        (
            JSONL,
            '{"turns": ["a", "b"], "weights": [1, 1e-60]}',
            "a weight is 1e-60, expected 0 or 0.000001 to 1,000,000",
        ),
        (JSONL, f'{{"turns": ["a", "b"], "weights": [1, 1{"0" * 400}]}}', "a weight is 1000"),
        (JSONL, '{"turns": ["a", "b"], "weights": [1, 0]}', "every weight is 0"),
        (JSONL, b'{"turns": ["a", "\xff"]}', "not UTF-8 (byte 0xff at place 18)"),
        (JSONL, b"x" * (LINE_LIMIT + 1), "longer than 4 MiB"),
        (TSV, "only one column", "1 column, expected 2"),
        (TSV, "a\tb\tc", "3 columns, expected 2"),
        (TSV, "a EOS  EOS b\tc", "turn 2 is blank"),
        (TSV, "a\t", "turn 2 is blank"),
    ],
)
def test_what_cannot_be_used_has_a_reason(path: Path, line: str | bytes, reason: str) -> None:
    with pytest.raises(DialogueError) as error:
        read(path, line)
    assert reason in str(error.value)


def test_reversed_dialogues_keep_the_weight_of_each_step() -> None:
    """The weight of a reply is that of the step to it; backwards the same step ends at the turn before.

    DialoGPT's data has sources of weight 0.0. With weights simply turned round, training the reverse model found every
    label masked and dropped all examples (microsoft/DialoGPT, issue 41).
    """
    forward = Dialogue(["a", "b", "c"], [0.0, 0.3, 1.0])
    assert forward.reversed() == Dialogue(["c", "b", "a"], [1.0, 1.0, 0.3])
    reverse = Format(window=64, reading=Reading(tsv_weights=True), reverse=True)
    assert read(TSV, "0.0 hi\t1.0 bye", reverse) == Dialogue(["bye", "hi"], [1.0, 1.0])


def test_a_reversed_dialogue_that_would_teach_nothing_is_reported() -> None:
    """With --loss-on all the first turn is a target; with --reverse no target was left, without a message."""
    line = '{"turns": ["a", "b"], "weights": [1, 0]}'
    read(JSONL, line, Format(window=64, fewest_turns=1, reading=Reading(min_turns=1)))
    with pytest.raises(DialogueError, match="every weight is 0"):
        read(JSONL, line, Format(window=64, fewest_turns=1, reading=Reading(min_turns=1), reverse=True))


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip())


@given(st.lists(texts, min_size=2, max_size=6), st.booleans())
def test_any_dialogue_survives_jsonl(turns: list[str], ascii_only: bool) -> None:
    assert read(JSONL, json.dumps({"turns": turns}, ensure_ascii=ascii_only)) == Dialogue(turns)


@given(st.binary(max_size=200), st.sampled_from([JSONL, TSV]), st.booleans())
def test_any_bytes_are_a_dialogue_or_a_sentence(line: bytes, path: Path, weighted: bool) -> None:
    with suppress(DialogueError):
        dialogue = read(path, line, Format(window=64, reading=Reading(tsv_weights=weighted)))
        assert len(dialogue.turns) >= 2
        assert all(turn.strip() for turn in dialogue.turns)
