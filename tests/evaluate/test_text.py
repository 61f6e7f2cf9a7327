"""Diversity, protocols, files of dialogues and replies, bootstrap, and blind judging."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialogpt import DialogueError
from dialogpt.data import Problem, Reading, read
from dialogpt.evaluate import PROTOCOLS, Dialogue, NgramTable, TextSample, compare, distinct, entropy, table
from dialogpt.evaluate.blind import score_answers, sign_test, write_pairs
from dialogpt.evaluate.bootstrap import resampled
from dialogpt.evaluate.comparison import as_json
from dialogpt.evaluate.dialogues import read_dialogues, read_replies
from dialogpt.evaluate.diversity import is_shared, repeats_own_words
from dialogpt.evaluate.protocols import dstc_cleaned, dstc_references, words_13a
from dialogpt.evaluate.report import html
from tests.evaluate.test_overlap import DEMO, DEMO_REFERENCES

WORDS = [line.split() for line in DEMO]
DIALOGUES = [Dialogue(("Hi!", "Hello."), tuple(own)) for own in DEMO_REFERENCES]


def test_diversity_as_dstc7_prints_it() -> None:
    ngrams = NgramTable.of(WORDS)
    assert [round(entropy(ngrams.counts(n)), 4) for n in (1, 2, 3, 4)] == [2.5232, 2.4849, 2.1972, 1.7918]
    assert [round(distinct(ngrams.counts(n)), 4) for n in (1, 2)] == [0.8667, 1.0]


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=6), min_size=1, max_size=6))
def test_weights_are_repeated_replies(replies: list[list[str]]) -> None:
    weights = np.arange(len(replies)).astype(float)
    repeated = [reply for place, reply in enumerate(replies) for _ in range(place)]
    for order in (1, 2, 4):
        ours, plain = NgramTable.of(replies).counts(order, weights), NgramTable.of(repeated).counts(order)
        assert entropy(ours) == pytest.approx(entropy(plain), abs=1e-12)
        assert distinct(ours) == pytest.approx(distinct(plain))


def test_repetition() -> None:
    said = [["I", "like", "cats", "and", "dogs"]]
    assert repeats_own_words(["yes", "like", "cats", "and", "dogs"], said)
    assert not repeats_own_words(["like", "cats", "and"], said)
    assert not repeats_own_words([], [])
    assert is_shared(["a", "b", "a", "", " ", ""]) == [True, False, True, False, False, False]
    assert Dialogue(("u1", "b1", "u2", "b2", "u3"), ("r",)).own_turns == ("b2", "b1")


def test_cleaning_of_the_dstc_script() -> None:
    """The example that its README prints, and one for each of its rules."""
    assert dstc_cleaned(" I don't know:). how about this?https://github.com") == (
        "i do n't know :) . how about this ? __url__"
    )
    assert dstc_cleaned("please try [ GitHub ] ( https://github.com )") == "please try github"
    assert dstc_cleaned("I won't, I can't, it's what they'd do") == "i will n't , i can n't , it 's what they 'd do"
    assert dstc_cleaned("caf\u00e9 & <b>") == "caf b"
    assert dstc_cleaned("") == dstc_cleaned("\u4f60") == ""


def test_references_of_the_dstc_script() -> None:
    """Six, by going round, and number 1 is always replaced by its neighbour."""
    assert dstc_references(["a"]) == ["a"] * 6
    assert dstc_references(["a", "b"]) == ["a"] * 6
    assert dstc_references(["a", "b", "c"]) == ["a", "c", "c", "a", "c", "c"]
    assert dstc_references([*"abcdefg"]) == [*"accdef"]
    assert dstc_references(["0.5|a"]) == ["a"] * 6


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world! It's 3.5, or 1,000.",
        "a-b 3-4 (x) [y] {z} <t>",
        "1. 2. x.y",
        "\u00c9t\u00e9 \u2026 \U0001f600!",
        "a &amp; b &quot;c&quot;",
        " ",
    ],
)
def test_words_are_those_of_sacrebleu(text: str) -> None:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    assert words_13a(text, lower=False) == Tokenizer13a()(text).split()
    assert words_13a("\u00c9A", lower=True) == ["\u00c9a"]  # ASCII only


def test_an_ampersand_is_a_blank_in_the_papers_protocols() -> None:
    assert PROTOCOLS["paper-6k"].words("a&b<c A") == ["a", "b", "c", "a"]
    assert PROTOCOLS["sacrebleu"].words("a&b<c A") == ["a", "&", "b", "<", "c", "A"]


def test_published_rows_have_the_figures_of_the_table() -> None:
    human = PROTOCOLS["paper-6k"].published["human"]
    assert human["nist-4"] == 4.25
    assert human["bleu-2"] == pytest.approx(0.1790)
    assert human["entropy-4"] == 11
    assert PROTOCOLS["paper-dstc"].published["DialoGPT 345M, beam"]["meteor"] == pytest.approx(0.0929)


# ---- files ----


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), "utf-8")
    return path


def test_dialogues_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "d.jsonl",
        {"turns": ["a"], "references": ["b", "c"]},
        {"turns": ["d", "e", "f", "g"]},
        "",
        {"turns": ["a", "x"]},
    )
    assert read_dialogues(path) == [Dialogue(("a",), ("b", "c", "x")), Dialogue(("d", "e", "f"), ("g",))]
    path = write(tmp_path / "turns.jsonl", {"turns": ["d", "e", "f", "g", "h"]})
    assert read_dialogues(path, every_turn=True) == [Dialogue(("d",), ("e",)), Dialogue(("d", "e", "f"), ("g",))]
    path = write(tmp_path / "d.tsv", "a EOS b\tc\td")
    assert read_dialogues(path) == [Dialogue(("a", "b"), ("c", "d"))]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("d.txt", b"x", "holds no dialogue with a reply to compare with; it was read as text"),
        ("d.jsonl", b"", "holds no dialogue"),
        ("d.jsonl", b'{"turns": ["a"]}', 'line 1: it has one turn and no "references"'),
        ("d.jsonl", b'{"turns": ["a", " "]}', "line 1: turn 2 is blank"),
        ("d.jsonl", b'\n{"turns": ["", "b"]}', "line 2: turn 1 is blank"),
        ("d.jsonl", b'{"turns": ["a"], "references": []}', '"references" is no list of at least one text'),
        ("d.jsonl", b'{"turns": "a"}', "no list of texts"),
        ("d.jsonl", b'{"turns": ["a"], "references": ["b", " "]}', "line 1: reference 2 is blank"),
        ("d.jsonl", b'{"turns": ["a", "b"], "weights": [1, 0]}', "line 1: its weights count no turn after the first"),
        ("d.jsonl", b"[1]", "no list of texts"),
        ("d.jsonl", b"{", "not valid JSON"),
        ("d.jsonl", b'{"turns": ["\xff"]}', "line 1: not UTF-8 (byte 0xff at place 13)"),
        ("d.tsv", b"a", "line 1: 1 column, expected 2"),
        ("gone.jsonl", None, "is not there"),
    ],
)
def test_bad_dialogues_are_a_sentence(tmp_path: Path, name: str, content: bytes | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DialogueError) as found:
        read_dialogues(tmp_path / name)
    assert sentence in str(found.value)


def test_dialogues_of_every_kind_are_read(tmp_path: Path) -> None:
    """A chat's last turn is the reference, an assistant's last reply where roles are given; references stay references.

    A chat has things that are no dialogue, which are told; a file of one dialogue a line is refused for them.
    """
    said = [("user", "Hi!"), ("assistant", "Hello."), ("user", "And you?"), ("assistant", "Fine."), ("user", "Good.")]
    messages = {"messages": [{"role": role, "content": text} for role, text in said]}
    path = write(tmp_path / "m.jsonl", messages)
    assert read_dialogues(path) == [Dialogue(("Hi!", "Hello.", "And you?"), ("Fine.",))]
    assert [each.references for each in read_dialogues(path, every_turn=True)] == [("Hello.",), ("Fine.",)]
    chat = write(tmp_path / "chat.txt", "[20.06.21, 15:58:57] Mia: Hi!", "[20.06.21, 15:59:57] Joe: Hello.",
                 "[23.06.21, 15:59:57] Joe: Anybody?")  # fmt: skip
    problems: list[Problem] = []
    assert read_dialogues(chat, on_problem=problems.append) == [Dialogue(("Hi!",), ("Hello.",))]
    assert [problem.line for problem in problems] == [3]
    path = write(tmp_path / "refs", "a EOS b\tc\td")
    assert read_dialogues(path, Reading(kind="tsv")) == [Dialogue(("a", "b"), ("c", "d"))]
    with pytest.raises(DialogueError, match="line 1: it has references of its own"):
        read_dialogues(path, Reading(kind="tsv"), every_turn=True)
    reddit = write(tmp_path / "r.jsonl", {"turns": ["a", "b", "a"], "weights": [1, 1, 1], "references": ["c"],
                                          "speakers": ["x", "y", "x"]})  # fmt: skip
    assert read_dialogues(reddit) == [Dialogue(("a", "b", "a"), ("c",))]


def test_training_takes_no_references(tmp_path: Path) -> None:
    """They are a key like any other, whatever it holds, and a further column is a problem, as before."""
    path = write(tmp_path / "a.jsonl", {"turns": ["a", "b"], "references": {"page": 3}})
    assert [each.turns for each in read(path)] == [["a", "b"]]
    problems: list[Problem] = []
    assert not list(read(write(tmp_path / "a.tsv", "a\tb\tc"), on_problem=problems.append))
    assert "3 columns, expected 2" in problems[0].reason


def test_replies_are_read(tmp_path: Path) -> None:
    assert read_replies(write(tmp_path / "r.txt", "a", "", "c"), 3) == ["a", "", "c"]
    lines = [{"reply": "a"}, {"replies": [{"text": "b"}, {"text": "c"}]}]
    assert read_replies(write(tmp_path / "r.jsonl", *lines), 2) == ["a", "b"]
    for line, sentence in (
        ({"error": "it is empty"}, "line 1: it holds no reply but an error"),
        ({"replies": []}, "line 1: it holds no reply"),
        ({"reply": "a"}, "has 1 replies to 2 dialogues"),
    ):
        with pytest.raises(DialogueError, match=sentence):
            read_replies(write(tmp_path / "r.jsonl", line), 2)
    with pytest.raises(DialogueError, match="cannot be read"):
        read_replies(tmp_path / "nothing.txt", 1)


# ---- comparing ----


def samples(**replies: list[str]) -> dict[str, TextSample]:
    return {name: TextSample(PROTOCOLS["paper-6k"], DIALOGUES, given) for name, given in replies.items()}


def test_a_resampled_set_has_the_figures_of_that_set() -> None:
    """Sums of statistics are the statistics of the chosen dialogues, but NIST's weights, which stay those of all."""
    (sample,) = samples(a=DEMO).values()
    chosen = [0, 2, 2]
    found = sample.values(np.bincount(chosen, minlength=3).astype(float))
    plain = TextSample(PROTOCOLS["paper-6k"], [DIALOGUES[n] for n in chosen], [DEMO[n] for n in chosen]).values()
    for key in found:
        if not key.startswith(("nist", "self-bleu", "identical")):
            assert found[key] == pytest.approx(plain[key]), key


def test_comparison_is_seeded_and_marks_what_differs() -> None:
    given = samples(first=DEMO, same=list(DEMO), worse=["x y z"] * 3)
    found = compare(given, resamples=200, seed=3)
    assert found == compare(given, resamples=200, seed=3) != compare(given, resamples=200, seed=4)
    assert found["same"]["bleu-4"].p_value == 1.0
    assert not found["same"]["bleu-4"].differs
    assert found["worse"]["distinct-1"].differs
    for figures in found.values():
        for key, figure in figures.items():
            assert figure.interval is not None
            assert figure.interval.low <= figure.value + 1e-9, key
            assert figure.value <= figure.interval.high + 1e-9, key
            assert math.isfinite(figure.value + figure.interval.low + figure.interval.high)
    shown = table(found, PROTOCOLS["paper-6k"])
    assert "paper: DialoGPT 345M, MMI" in shown
    assert "nan" not in shown
    json.dumps(as_json(found), allow_nan=False)
    alone = compare(samples(a=DEMO), resamples=0)["a"]["nist-2"]
    assert alone.interval is alone.p_value is None


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Of 200 samples of 60 dialogues, the interval of a mean holds the true mean in about 95 of 100."""
    generator = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        lengths = generator.integers(1, 20, 60)  # mean 10
        mean = lengths.mean()
        drawn = np.array([weights @ lengths / 60 for weights in resampled(60, 200, seed)])
        low, high = np.quantile(drawn - drawn.mean(), [0.025, 0.975])
        hits += mean + low <= 10 <= mean + high
    assert 175 <= hits <= 198


@given(st.lists(st.text("ab ", max_size=5), min_size=3, max_size=3), st.sampled_from(sorted(PROTOCOLS)))
def test_no_reply_breaks_a_table(replies: list[str], protocol: str) -> None:
    """Empty ones and ones of one word: all figures are numbers."""
    sample = TextSample(PROTOCOLS[protocol], DIALOGUES, replies)
    found = compare({"a": sample, "b": sample}, resamples=5)
    json.dumps(as_json(found), allow_nan=False)


def test_a_report_shows_text_and_never_runs_it() -> None:
    given = {"<script>": ["<b>bold</b>", "", "c"]}
    sample = TextSample(PROTOCOLS["sacrebleu"], DIALOGUES, given["<script>"])
    found = compare({"<script>": sample}, resamples=0)
    page = html(found, PROTOCOLS["sacrebleu"], ["a & b"], {"P": b"png"}, DIALOGUES, given, {"<script>": sample.quality})
    assert "<script" not in page
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold" in page
    assert 'src="data:image/png;base64,' in page
    assert "http" not in page


# ---- judging blind ----


def test_blind_pairs_name_nobody_and_are_scored_by_their_key(tmp_path: Path) -> None:
    dialogues = [Dialogue((f"turn {n}",), ("r",)) for n in range(20)]
    replies = {"ours": [f"good {n}" for n in range(20)], "theirs": [f"bad {n}" for n in range(19)] + ["good 19"]}
    assert write_pairs(tmp_path, dialogues, replies, 50, seed=1) == 19  # equal replies make no pair
    path = tmp_path / "blind.jsonl"
    text = path.read_text()
    assert "ours" not in text
    assert "theirs" not in text
    pairs = [json.loads(line) for line in text.splitlines()]
    assert 0 < sum(pair["a"].startswith("good") for pair in pairs) < 19  # in random order
    with pytest.raises(DialogueError, match="holds no answers yet"):
        score_answers(path)
    for place, pair in enumerate(pairs):
        pair["better"] = "same" if place < 4 else "" if place < 6 else "a" if pair["a"].startswith("good") else "B"
    write(path, *pairs)
    (verdict,) = score_answers(path)
    assert (verdict.systems, verdict.wins, verdict.same) == (("ours", "theirs"), (13, 0), 4)
    assert verdict.p_value == pytest.approx(2 / 2**13)
    with pytest.raises(DialogueError, match="exists, perhaps with answers"):
        write_pairs(tmp_path, dialogues, replies, 5, seed=1)
    write(path, {**pairs[0], "better": "left"})
    with pytest.raises(DialogueError, match="expected a, b, same"):
        score_answers(path)
    write(path, {"id": 99, "better": "a"})
    with pytest.raises(DialogueError, match="none of the pairs"):
        score_answers(path)
    (tmp_path / "blind-key.json").unlink()
    with pytest.raises(DialogueError, match=r"no blind-key\.json"):
        score_answers(path)
    with pytest.raises(DialogueError, match="name two or more"):
        write_pairs(tmp_path / "x", dialogues, {"a": replies["ours"]}, 5, seed=1)


def test_sign_test() -> None:
    assert sign_test(0, 0) == sign_test(5, 5) == 1.0
    assert sign_test(8, 2) == pytest.approx(0.109375)  # 2 * (1 + 10 + 45) / 1024
