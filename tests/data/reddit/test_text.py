"""The normalization of the training data, compared with NLTK's tokenizer on whole texts."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st
from nltk.tokenize import TweetTokenizer

from dialogpt.data.reddit.text import normalize, one_line, original, plain

TOKENIZER = TweetTokenizer(preserve_case=True)
ALPHABET = "abzABZ019()[]:,.!?'“” #/\\_-é’"


def extractor(text: str) -> str:
    """The extractor's spelling, step by step as its source has it, and its tokenizer over the whole text."""
    words = []
    for word in text.split():
        if word[0] == "#":
            continue
        place = word.lower().find("http")
        if place >= 0:
            word = word[:place] + " __url__"
        words.append(word.strip())
    text = " ".join(words).replace("\\", "")
    text = text.replace("b/c", "because").replace("j/k", "just kidding").replace("w/o", "without").replace("w/", "with")
    text = re.sub("__url__", "URL", re.sub("__mention__", "MENTION", text))
    text = re.sub(r"[^A-Za-z0-9()\[\]:,.!?'“” ]", " ", text)
    text = re.sub("URL", "__url__", re.sub("MENTION", "__mention__", text))
    return " ".join(" ".join(TOKENIZER.tokenize(text)).split())


@given(st.text(ALPHABET, max_size=80) | st.text(max_size=60))
@example("call 555 123 4567 now . . . or (555) 123-4567")
@example("https://x.y and (http://a.b) MENTION URL")
@example("a........b !!!!!! 8D :) xD 10:30pm example.com/x abc123")
@example("...  .. .b (123) 45 6789 1 234 567 8900")
def test_the_original_spelling_is_the_extractors(text: str) -> None:
    assert original(text) == extractor(text)


@given(st.text(ALPHABET + "&;😀", max_size=80) | st.text(max_size=60))
def test_normalized_text_has_only_known_signs_and_single_blanks(text: str) -> None:
    spelled = normalize(text)
    assert re.fullmatch(r"[A-Za-z0-9():,.!?'“”\[\] ]*", spelled.replace("__url__", "")), spelled
    assert spelled == " ".join(spelled.split())


@given(
    st.lists(st.sampled_from(["the", "quick", "isn't", "here,", "7", "(or", "8?)", "don't!", "go:"]), max_size=12).map(
        " ".join
    )
)
def test_both_spellings_agree_on_ordinary_text(text: str) -> None:
    assert normalize(text) == original(text)


def test_what_normalize_keeps_and_the_extractor_loses() -> None:
    cases = {
        "Yes,how/why? I don’t care": ("Yes , how why ? I don't care", "Yes , howithwhy ? I don t care"),
        "café &amp; tea w/ milk": ("cafe tea with milk", "caf amp tea with milk"),
        "my URL is www.example.org": ("my URL is __url__", "my __url__ is www.example.org"),
        "#tag see http://x.y": ("see __url__", "see __url__"),
        "it\u2026 b/c 😀": ("it ... because", "it because"),
    }
    for text, (ours, theirs) in cases.items():
        assert (normalize(text), original(text)) == (ours, theirs)


def test_a_comment_becomes_one_line_without_escapes() -> None:
    assert one_line("a\\_b\r\nc\td\\") == "a_b  c d"
    assert plain(" a &gt;  b\n") == "a > b"
