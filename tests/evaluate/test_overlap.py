"""NIST, BLEU and self-BLEU: published figures, sacrebleu and nltk as references, and properties."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from nltk.translate.nist_score import corpus_nist
from sacrebleu.metrics import BLEU

from dialogpt.evaluate import bleu, nist, overlap, self_bleu
from dialogpt.evaluate.overlap import Floats

DEMO = ["i do n't know .", "he is a rocket scientist .", "i love it !"]
DEMO_REFERENCES = [
    ["ok that 's fine", "well it 's ok"],
    ["he is a trader", "he is an engineer"],
    ["i love it !", "i 'm not a fan"],
]
PARTY = [  # the doctest of nltk's nist_score
    "It is a guide to action which ensures that the military always obeys the commands of the party",
    "It is to insure the troops forever hearing the activity guidebook that party direct",
]
PARTY_REFERENCES = [
    "It is a guide to action that ensures that the military will forever heed Party commands",
    "It is the guiding principle which guarantees the military forces always being under the command of the Party",
    "It is the practical guide for the army always to heed the directions of the party",
]

text = st.lists(st.sampled_from("abcd"), max_size=7)
corpus = st.lists(st.tuples(text, st.lists(text, min_size=1, max_size=4)), min_size=1, max_size=6)
some_text = st.lists(st.sampled_from("abcd"), min_size=1, max_size=7)
long_text = st.lists(st.sampled_from("abcd"), min_size=5, max_size=7)
some_corpus = st.lists(st.tuples(some_text, st.lists(some_text, min_size=1, max_size=3)), min_size=1, max_size=6)


def sums(replies: list[list[str]], references: list[list[list[str]]]) -> Floats:
    return overlap(replies, references).columns.sum(axis=0)


def test_the_figures_that_dstc7_prints_for_its_demo() -> None:
    """Evaluation/src/README.md of mgalley/DSTC7-End-to-End-Conversation-Modeling, made by mteval-v14c."""
    found = sums([line.split() for line in DEMO], [[line.split() for line in own] for own in DEMO_REFERENCES])
    assert [round(score, 4) for score in nist(found)] == [1.8338, 2.0838, 2.1949, 2.1949]
    assert [round(score, 4) for score in bleu(found)] == [0.4667, 0.4410, 0.4017, 0.3224]


@pytest.mark.parametrize(("reply", "printed"), [*zip(PARTY, ["5.0379", "2.1139"], strict=True)])
def test_the_figures_of_mteval_for_nltks_doctest(reply: str, printed: str) -> None:
    """Quoted in nltk#3901, where nltk itself gives 3.3709 and 1.4619; of five orders, of which the fifth adds here
    what is computed beside.
    """
    references = [reference.split() for reference in PARTY_REFERENCES]
    found = nist(sums([reply.split()], [references]))
    assert f"{found[-1] + fifth_order(reply.split(), references):.4f}" == printed


def fifth_order(reply: list[str], references: list[list[str]]) -> float:
    """What 5-grams add to NIST, plainly."""

    def grams(words: list[str], order: int) -> Counter[tuple[str, ...]]:
        return Counter(tuple(words[n : n + order]) for n in range(len(words) - order + 1))

    counts: Counter[tuple[str, ...]] = Counter()
    contexts: Counter[tuple[str, ...]] = Counter()
    for reference in references:
        counts.update(grams(reference, 5))
        contexts.update(grams(reference, 4))
    own = grams(reply, 5)
    bits = 0.0
    for gram, count in own.items():
        most = max(grams(reference, 5)[gram] for reference in references)
        if most:
            bits += min(count, most) * np.log2(contexts[gram[:-1]] / counts[gram])
    ratio = min(1.0, len(reply) * len(references) / sum(map(len, references)))
    return float(bits / own.total() * np.exp(np.log(0.5) / np.log(1.5) ** 2 * np.log(ratio) ** 2))


def random_corpus(seed: int) -> tuple[list[list[str]], list[list[list[str]]]]:
    draw = random.Random(seed)

    def line() -> list[str]:
        return draw.choices("abcdefgh"[: draw.randint(1, 8)], k=draw.randint(1, 12))

    size = draw.randint(1, 6)
    several = draw.randint(1, 4)
    return [line() for _ in range(size)], [[line() for _ in range(several)] for _ in range(size)]


def theirs(order: int, replies: list[list[str]], references: list[list[list[str]]]) -> float:
    judge: Any = BLEU(tokenize="none", max_ngram_order=order, force=True)
    streams = [[" ".join(reference) for reference in stream] for stream in zip(*references, strict=True)]
    return float(judge.corpus_score([" ".join(reply) for reply in replies], streams).score) / 100


@pytest.mark.parametrize("block", range(4))
def test_bleu_is_that_of_sacrebleu(block: int) -> None:
    """1,000 random corpora; in each all four orders in turn."""
    for seed in range(250 * block, 250 * (block + 1)):
        replies, references = random_corpus(seed)
        order = 1 + seed % 4
        ours = bleu(sums(replies, references), zero_without_matches=True)[order - 1]
        assert ours == pytest.approx(theirs(order, replies, references), abs=1e-9), seed


def test_mteval_smooths_where_sacrebleu_says_zero() -> None:
    nothing = sums([["a", "b"]], [[["c", "d"]]])
    assert bleu(nothing, zero_without_matches=True) == [0.0] * 4
    assert bleu(nothing) == pytest.approx([1 / 4, (1 / 4 * 1 / 4) ** 0.5, (1 / 16) ** (1 / 3), (1 / 16) ** (1 / 4)])
    one_word = sums([["a"]], [[["a"]]])
    assert bleu(one_word) == [1.0] * 4
    assert bleu(one_word, zero_without_matches=True) == [1.0, 0.0, 0.0, 0.0]


@given(st.lists(st.tuples(long_text, st.lists(some_text, min_size=1, max_size=1)), min_size=1, max_size=4))
def test_nist_with_one_reference_is_nltks(lines: list[tuple[list[str], list[list[str]]]]) -> None:
    """With several it is not, as nltk takes the best reference of each order; it fails on short replies (#3444)."""
    replies, references = [reply for reply, _ in lines], [own for _, own in lines]
    ours = nist(sums(replies, references))
    assert ours[-1] == pytest.approx(corpus_nist(references, replies, n=4), abs=1e-9)


@given(corpus, st.randoms(use_true_random=False))
def test_order_changes_nothing(lines: list[tuple[list[str], list[list[str]]]], draw: random.Random) -> None:
    """Neither the order of references nor that of lines."""
    before = sums([reply for reply, _ in lines], [references for _, references in lines])
    mixed = [(reply, draw.sample(references, len(references))) for reply, references in lines]
    draw.shuffle(mixed)
    after = sums([reply for reply, _ in mixed], [references for _, references in mixed])
    assert nist(after) == pytest.approx(nist(before), abs=1e-9)
    assert bleu(after) == pytest.approx(bleu(before), abs=1e-9)


@given(corpus)
def test_all_figures_are_finite_and_in_range(lines: list[tuple[list[str], list[list[str]]]]) -> None:
    """Also of empty replies and references: no division by zero, no NaN."""
    found = sums([reply for reply, _ in lines], [references for _, references in lines])
    assert all(0 <= score <= 1 + 1e-12 for rule in (True, False) for score in bleu(found, zero_without_matches=rule))
    assert all(0 <= score < 50 for score in nist(found))


@given(corpus)
def test_clipping(lines: list[tuple[list[str], list[list[str]]]]) -> None:
    """An n-gram matches at most as often as in the reference that holds it most; plainly counted."""
    statistics = overlap([reply for reply, _ in lines], [references for _, references in lines])
    for row, (reply, references) in enumerate(lines):
        for order in range(1, 5):
            own, *others = (
                Counter(tuple(words[n : n + order]) for n in range(len(words) - order + 1))
                for words in (reply, *references)
            )
            matched = sum(min(count, max(other[gram] for other in others)) for gram, count in own.items())
            assert statistics.matches[row, order - 1] == matched
            assert statistics.totals[row, order - 1] == own.total()


@given(some_corpus)
def test_lines_that_come_twice_change_no_bleu(lines: list[tuple[list[str], list[list[str]]]]) -> None:
    replies, references = [reply for reply, _ in lines], [own for _, own in lines]
    twice = overlap(replies * 2, references * 2)
    assert overlap(replies, references).matches.sum(axis=0) * 2 == pytest.approx(twice.matches.sum(axis=0))
    both = sums(replies, [[*own, *own] for own in references])
    assert bleu(both) == bleu(sums(replies, references))  # a repeated reference


def test_for_perl_the_word_zero_is_no_context() -> None:
    """Mteval's weights of "0 b" are those of a single word, as the text "0" is false in Perl."""
    zero, other = (sums([[first, "b"]], [[[first, "b", "c", "d"]]]) for first in ("0", "a"))
    assert zero[9] == pytest.approx(2.0)  # log2(4 / 1)
    assert other[9] == 0.0  # log2(1 / 1)


@given(st.lists(text, min_size=2, max_size=6))
def test_self_bleu_is_nltks(replies: list[list[str]]) -> None:
    smoothing = SmoothingFunction().method1
    for row, (reply, found) in enumerate(zip(replies, self_bleu(replies), strict=True)):
        others = [other for place, other in enumerate(replies) if place != row]
        expected = sentence_bleu(others, reply, smoothing_function=smoothing) if reply else 0.0
        assert found == pytest.approx(expected, abs=1e-9)
