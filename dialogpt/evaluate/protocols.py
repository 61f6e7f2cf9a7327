"""How text becomes words, and which references count: what the published tables did, and what is done today.

Each protocol is a row of `PROTOCOLS`; docs/evaluation.md tells which trap each rule answers. The words of the paper's
tables come from microsoft/DialoGPT, dstc/ (tokenizers.py, dstc.py, metrics.py), the splitting of mteval-v14.pl from
Moses, scripts/generic.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dialogpt.errors import DialogueError, install_hint

DSTC_REFERENCES = 6
_MARKS = re.compile(r"([{-~\[-` -&(-+:-@/])")  # ASCII signs but ' , - . and letters, digits
_MARK_AFTER_OTHER, _MARK_BEFORE_OTHER = re.compile(r"([^0-9])([.,])"), re.compile(r"([.,])([^0-9])")
_DASH_AFTER_DIGIT = re.compile(r"([0-9])(-)")
_ENTITIES = (("<skipped>", ""), ("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")  # mteval lower-cases ASCII only
_MARKDOWN_LINK = re.compile(r"\[([^\]]*)\] \( *__url__ *\)")
_UNUSUAL = re.compile(r"[^A-Za-z0-9():,.!?\"']")
_ENDINGS = ("'s", "'m", "'re", "n't", "'ll", "'ve", "'d", "'em")


def words_13a(text: str, *, lower: bool) -> list[str]:
    """Split a text as mteval does, which sacrebleu calls "13a"."""
    for entity, sign in _ENTITIES:
        text = text.replace(entity, sign)
    text = f" {text} ".replace("\n", " ")
    text = _MARKS.sub(r" \1 ", text.translate(_LOWER) if lower else text)
    text = _MARK_BEFORE_OTHER.sub(r" \1 \2", _MARK_AFTER_OTHER.sub(r"\1 \2 ", text))
    return _DASH_AFTER_DIGIT.sub(r"\1 \2 ", text).split()


def mteval_words(text: str) -> list[str]:
    """Split a text as DialoGPT's scripts hand it to mteval: without ``&`` and ``<``, which its XML would not bear."""
    return words_13a(text.replace("&", " ").replace("<", " "), lower=True)


@functools.cache
def _tweet_tokenizer() -> Any:
    try:
        from nltk.tokenize import TweetTokenizer
    except ImportError:
        raise DialogueError(
            f"the protocol paper-dstc splits words with nltk, which is not installed: {install_hint('evaluate')}"
        ) from None
    return TweetTokenizer(preserve_case=False)


def dstc_cleaned(text: str) -> str:
    """A text as the DSTC table was computed on it: lower case, addresses as ``__url__``, few signs, endings split off.

    Example: "I don't know:). how about this?https://x.y" is "i do n't know :) . how about this ? __url__".
    """
    words = [re.sub("http.*", " __url__", word, flags=re.DOTALL) for word in text.lower().split()]
    text = _MARKDOWN_LINK.sub(r"\1", " ".join(word.strip() for word in words))
    text = _UNUSUAL.sub(" ", text.replace("__url__", "URL")).replace("URL", "__url__")
    text = f" {' '.join(_tweet_tokenizer().tokenize(text))} "
    text = text.replace(" won't ", " will n't ").replace(" can't ", " can n't ")
    for ending in _ENDINGS:
        text = text.replace(f"{ending} ", f" {ending} ")
    return " ".join(text.split())


def dstc_references(references: Sequence[str]) -> list[str]:
    """The six references of the DSTC script: repeated in turn where there are fewer, and never the second one.

    Of a reference that holds ``|``, what stands after it counts. The second, number 1, is always replaced by the next,
    as the default of the script's ``--vshuman`` is 1 and not "none".
    """
    chosen = []
    for place in range(DSTC_REFERENCES):
        number = place % len(references)
        number = (number + 1) % len(references) if number == 1 else number
        reference = references[number]
        chosen.append(reference.split("|")[1] if "|" in reference else reference)
    return chosen


Row = dict[str, float]  # of a published table, by the keys of `dialogpt.evaluate.metrics.METRICS`
_PAPER_KEYS = ("nist-2", "nist-4", "bleu-2", "bleu-4", "meteor", "entropy-4", "distinct-1", "distinct-2", "length")


def _rows(table: str) -> dict[str, Row]:
    """Rows of a published table: a name, a bar, nine figures; shares in per cent there and from 0 to 1 here."""
    rows = {}
    for line in table.strip().splitlines():
        name, _, figures = line.partition("|")
        values = [
            float(figure) / (100 if key.startswith(("bleu", "meteor", "distinct")) else 1)
            for key, figure in zip(_PAPER_KEYS, figures.split(), strict=True)
        ]
        rows[name.strip()] = dict(zip(_PAPER_KEYS, values, strict=True))
    return rows


PAPER_6K = _rows("""
    human               | 3.41 4.25 17.90 7.48 10.64 11.00 14.50 63.00 13.1
    DialoGPT 117M       | 2.39 2.41 10.54 1.55  7.53 10.78  8.60 39.90 12.8
    DialoGPT 345M       | 3.00 3.06 16.96 4.56  9.81  9.13  6.80 26.30 12.2
    DialoGPT 762M       | 2.84 2.90 18.66 5.25  9.66  9.72  7.76 29.93 11.2
    DialoGPT 345M, beam | 3.40 3.50 21.76 7.92 10.74 10.48 12.38 48.74 11.3
    DialoGPT 345M, MMI  | 3.28 3.33 15.68 3.94 11.23 11.25  9.39 45.55 17.2
""")
PAPER_DSTC = _rows("""
    human               | 2.62 2.65 12.35 3.13  8.31 10.45 16.66 67.01 18.8
    team B              | 2.51 2.52 14.35 1.83  8.07  9.03 10.89 32.49 15.1
    DialoGPT 345M       | 2.80 2.82 14.16 2.31  8.51 10.08  9.13 39.73 16.9
    DialoGPT 345M, beam | 2.92 2.97 19.18 6.05  9.29  9.57 15.73 51.03 14.2
""")


def _same(text: str) -> str:
    return text


@dataclass(frozen=True)
class Protocol:
    """How figures are computed from text.

    Attributes:
        name: on the command line.
        about: one sentence for people.
        clean: what is done to a text before anything else.
        words: splits a cleaned text for NIST, BLEU and self-BLEU.
        diversity_words: splits it for entropy, distinct n-grams and length.
        choose: which references count.
        zero_without_matches: see `dialogpt.evaluate.overlap.bleu`.
        published: rows of the table that was computed in this way.
    """

    name: str
    about: str
    clean: Callable[[str], str] = _same
    words: Callable[[str], list[str]] = mteval_words
    diversity_words: Callable[[str], list[str]] = str.split
    choose: Callable[[Sequence[str]], Sequence[str]] = list
    zero_without_matches: bool = False
    published: dict[str, Row] = field(default_factory=dict)


_CASED_13A = functools.partial(words_13a, lower=False)
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "paper-6k",
            "NIST and BLEU in lower case by mteval's words; diversity and length cased, by blanks; all references",
            published=PAPER_6K,
        ),
        Protocol(
            "paper-dstc",
            "text cleaned by the DSTC script, then as paper-6k; six references, repeated, never the second",
            clean=dstc_cleaned,
            choose=dstc_references,
            published=PAPER_DSTC,
        ),
        Protocol(
            "sacrebleu",
            "cased, everything by the words of sacrebleu's 13a; BLEU 0 where there is no match; all references",
            words=_CASED_13A,
            diversity_words=_CASED_13A,
            zero_without_matches=True,
        ),
    )
}
