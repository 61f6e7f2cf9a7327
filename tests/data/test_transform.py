"""What is done to dialogues, what is a duplicate, what is held out, and what looks wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialogpt.data import Dialogue, Reading
from dialogpt.data.dedup import duplicates
from dialogpt.data.import_ import general, import_dialogues
from dialogpt.data.read import share_of
from dialogpt.data.report import Statistics, histogram
from dialogpt.data.settings import seconds_of
from dialogpt.data.transform import Transformer, redacted
from dialogpt.errors import DialogueError

turns = st.lists(st.text("abc ", min_size=1).filter(str.strip), min_size=2, max_size=9)


def applied(dialogue: Dialogue, **settings: object) -> list[Dialogue]:
    return Transformer(Reading(**settings)).apply(dialogue, lambda reason: None)  # type: ignore[arg-type]


@given(turns, st.integers(2, 5))
def test_pieces_hold_every_turn_and_begin_with_the_one_before(said: list[str], most: int) -> None:
    pieces = applied(Dialogue(list(said)), max_turns=most)
    assert [turn for n, piece in enumerate(pieces) for turn in piece.turns[n > 0 :]] == said
    assert all(len(piece.turns) <= most for piece in pieces)


@given(st.lists(st.tuples(st.sampled_from("AB"), st.text("xy", min_size=1)), min_size=1, max_size=9))
def test_nobody_speaks_twice_in_a_row_and_nothing_is_lost(said: list[tuple[str, str]]) -> None:
    dialogue = Dialogue([text for _, text in said], None, [who for who, _ in said])
    (found,) = applied(dialogue, min_turns=1)
    assert found.speakers is not None
    assert all(a != b for a, b in zip(found.speakers, found.speakers[1:], strict=False))
    assert "\n".join(found.turns) == "\n".join(text for _, text in said)


def test_the_bots_turns_are_learned_and_a_merged_turn_counts_least() -> None:
    dialogue = Dialogue(["a", "b", "c"], [1.0, 0.5, 0.2], ["x", "y", "y"])
    assert applied(dialogue) == [Dialogue(["a", "b\nc"], [1.0, 0.2], ["x", "y"])]
    assert applied(dialogue, bot="y")[0].weights == [0, 1]
    assert applied(dialogue, bot="x") == []  # its only turn is the first: nothing is learned
    transformer = Transformer(Reading(bot="z"))
    transformer.apply(dialogue, lambda reason: None)
    with pytest.raises(DialogueError, match="nobody is called 'z' there; --bot takes one of: 'x', 'y'"):
        transformer.require_bot()


@pytest.mark.parametrize(
    ("dialogue", "reason"),
    [
        (Dialogue(["a", " "]), "turn 2 is blank"),
        (Dialogue(["a", "é\ud800"]), "turn 2 holds half a character"),
        (Dialogue(["a", "b"], None, ["x", "\ud800"]), "a speaker's name holds half a character"),
        (Dialogue(["a", "b"], [1, True]), "a weight is True, expected 0 or 0.000001 to 1,000,000"),
        (Dialogue(["a", "b"], [0, float("nan")]), "a weight is nan, expected 0 or 0.000001 to 1,000,000"),
        (Dialogue(["a", "b"], [1]), "1 weight for 2 turns"),
        (Dialogue(["a"]), "1 turn, at least 2 needed"),
        (Dialogue(["a", "b"], None, ["Mia", "Mia"]), "1 turn, at least 2 needed: all 2 messages are by one speaker"),
        (Dialogue(["a", "b"], [1, 0]), "every weight is 0, so nothing is learned"),
        (Dialogue(["a", "b"], references=["c", ""]), "reference 2 is blank"),
    ],
)
def test_what_cannot_be_learned_is_left_out_with_its_reason(dialogue: Dialogue, reason: str) -> None:
    reasons: list[str] = []
    assert Transformer(Reading()).apply(dialogue, reasons.append) == []
    assert len(reasons) == 1
    assert reasons[0].startswith(reason)


def test_end_of_text_in_a_turn_is_text_or_its_end() -> None:
    dialogue = Dialogue(["a<|endoftext|>b", "c"], [0.5, 1])
    assert applied(dialogue) == [dialogue]
    assert applied(dialogue, eos_in_text="split") == [Dialogue(["a", "b", "c"], [0.5, 0.5, 1])]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("mail a.b+c@d-e.co.uk!", "mail __email__!"),
        ("see https://x.y/z?q=1 or www.x.de", "see __url__ or __url__"),
        ("call +49 (170) 123-4567 now", "call __phone__ now"),
        ("room 12, at 10:30, 3.14159, in 2021", "room 12, at 10:30, 3.14159, in 2021"),
        ("+442079460958 or 06.12.34.56.78", "__phone__ or __phone__"),
        ("1-800-555-0199, 512 345 678, 01-23-45-67-89", "__phone__, __phone__, __phone__"),
        ("12.03.2024 0151 2345678", "12.03.2024 __phone__"),
        ("example.com/x, www.x.de, t.me/abc (see https://x.org/a).", "__url__, __url__, __url__ (see __url__)."),
        ("Go to example.com. Or x.org/ then", "Go to __url__. Or __url__ then"),
        ("call 555-1234 or 5551234", "call __phone__ or __phone__"),
    ],
)
def test_what_is_private_is_masked(text: str, masked: str) -> None:
    assert redacted(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-05 10:30",
        "31/12/2023 to 01/01/2024",
        "5. 12. 2024, 24.12.2023 18:00",
        "from 2019-2023",
        "1,234,567.89 or 1 234 567 kr or 12.345.678,90 €",
        "$1234567, 1234567 USD, 10.000.000, 3.1415926",
        "yes.it is, he/she, node.js, v1.2.3",
        "2024.05.17, 2024.5.7 and 17.05.2024",
        "1234567.5 or 1234567,89",
        "ask @tiny.shop",
    ],
)
def test_dates_and_amounts_of_many_digits_are_no_phone_numbers(text: str) -> None:
    """Every date was masked as a phone number, as it has seven digits and signs between them."""
    assert redacted(text) == text


@pytest.mark.parametrize("piece", ["1 ", "1,000", "a.", "www.", "$1", "+1 (", "a@"])
def test_masking_takes_time_in_proportion_to_the_text(piece: str) -> None:
    """A pattern that goes back over all that it saw would take hours for a line of 200 kB."""
    assert redacted("x " + piece * 50_000).startswith("x")


def test_names_are_numbers_in_the_text_too() -> None:
    dialogue = Dialogue(["Hi Ben!", "Hello Anna, I am Benjamin."], None, ["Anna", "Ben"])
    (found,) = applied(dialogue, names=True)
    assert (found.turns, found.speakers) == (["Hi Person 2!", "Hello Person 1, I am Benjamin."], ["1", "2"])


def test_duplicates_are_found_whatever_their_case() -> None:
    seen = duplicates("exact")
    said = [["Hi!", "Hello."], ["hi", "hello"], ["Hi!", "Hello there."], ["?!", "..."], ["?!", "...."]]
    assert [seen(Dialogue(turns)) for turns in said] == [False, True, False, False, False]


def test_near_duplicates_are_found() -> None:
    pytest.importorskip("datasketch")
    words = [f"word{n}" for n in range(300)]
    seen = duplicates("near")
    near, other = [*words[:-1], "changed"], words[::-1]
    assert [seen(Dialogue([" ".join(w), "x"])) for w in (words, near, other)] == [False, True, False]


@given(st.lists(turns, min_size=1, max_size=20))
def test_what_is_held_out_does_not_depend_on_other_data(dialogues: list[list[str]]) -> None:
    shares = [share_of(Dialogue(said)) for said in dialogues]
    assert shares == [share_of(Dialogue(list(said))) for said in dialogues]
    assert all(0 <= share < 1 for share in shares)


def test_a_split_is_about_as_large_as_asked(tmp_path: Path) -> None:
    lines = "".join(f'{{"turns": ["hello {n}", "hi"]}}\n' for n in range(2000))
    (tmp_path / "a.jsonl").write_text(lines)
    found = import_dialogues([tmp_path / "a.jsonl"], tmp_path / "out.jsonl", Reading(), split=0.1)
    assert 150 < found.held_out < 250
    held = (tmp_path / "out.held-out.jsonl").read_text().splitlines()
    assert len(held) == found.held_out
    assert {*held}.isdisjoint((tmp_path / "out.jsonl").read_text().splitlines())


def statistics(*said: list[str], speakers: list[str] | None = None) -> Statistics:
    found = Statistics()
    for turns in said:
        found.add([Dialogue(turns, None, speakers)])
    return found


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (statistics(*[["0.0 hi", "1.0 you"]] * 30), "every turn begins with a number"),
        (statistics(*[[f"{n}", "ok"] for n in range(30)]), "100% of the last replies are 'ok'"),
        (statistics(*[[f"{n}", ("OK.", "ok", "Ok!")[n % 3]] for n in range(30)]), "100% of the last replies are 'Ok!'"),
        (statistics(*[[f"{n}", "..."] for n in range(30)]), "100% of the last replies are '...'"),
        (statistics(["a<|endoftext|>", "b"]), "1 dialogues hold the letters"),
        (statistics(*[[f"{n}a", f"{n}b"] for n in range(30)], speakers=["x", "x"]), "all turns are by one speaker"),
    ],
)
def test_what_looks_wrong_is_said(found: Statistics, sentence: str) -> None:
    assert sentence in " ".join(found.warnings())


def test_good_data_is_not_warned_of_and_parts_add_up() -> None:
    parts = [
        statistics(*[[f"hello {n}", f"reply {n}"] for n in range(k, 5000, 2)], speakers=["a", "b"]) for k in (0, 1)
    ]
    whole = Statistics()
    for part in parts:
        whole.merge(part)
    assert whole.warnings() == []
    assert (whole.dialogues, whole.turns, whole.targets) == (5000, 10_000, 5000)
    assert 500 < len(whole.sample) <= 2000


def test_the_histogram_doubles() -> None:
    assert histogram([1, 4, 5, 8, 8, 100]) == [
        "          1-4   33%  ###########################",
        "          5-8   50%  ########################################",
        "         9-16    0%",
        "        17-32    0%",
        "        33-64    0%",
        "       65-128   17%  #############",
    ]


def test_reasons_are_counted_without_what_differs() -> None:
    assert general("3 columns, expected 2") == general("17 columns, expected 2") == "N columns, expected N"
    assert general("'x y' is odd") == "... is odd"


@pytest.mark.parametrize(
    ("text", "seconds"), [("6h", 21600), ("90 min", 5400), ("2d", 172800), ("45", 45), ("none", None)]
)
def test_time_spans(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0h", "6 weeks", "h", "-1h"])
def test_what_is_no_time_span_is_a_sentence(text: str) -> None:
    with pytest.raises(DialogueError, match="is no time span; expected a number and a unit"):
        seconds_of(text)
