"""How text and probabilities are written, token by token."""

from __future__ import annotations

from dialogpt import Tokenizer
from dialogpt.serve.engine import Token
from dialogpt.serve.responses import CompletionFormat, VisibleText


def test_what_may_begin_a_stop_is_held_back() -> None:
    tokenizer = Tokenizer.load("tiny")
    shown = VisibleText(tokenizer, ["stop", "stab"])
    said = [[shown.feed(token) for token in tokenizer.encode(text)] for text in ("a st", "ock st", "ab here")]
    assert ["".join(texts) for texts in said] == ["a ", "stock ", ""]
    assert shown.finish() == ""
    both = VisibleText(tokenizer, ["e", "th"])  # in one token; the first place counts
    assert both.feed(tokenizer.encode(" the")[0]) == " "
    open_end = VisibleText(tokenizer, ["stop"])
    assert "".join(open_end.feed(token) for token in tokenizer.encode("a sto")) == "a "
    assert open_end.finish() == "sto"


def test_offsets_are_those_of_the_text_where_tokens_hold_half_characters() -> None:
    """Each byte of an emoji is a token here."""
    tokenizer = Tokenizer.load("tiny")
    form, shown = CompletionFormat(tokenizer, "tiny"), VisibleText(tokenizer, ())
    ids = tokenizer.encode("😀!😀")
    chunks = [form.chunks(0, shown.feed(n), Token(0, n, -1.0, ((n, -1.0), (ids[0], -2.0))))[0] for n in ids]
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["text"] for choice in choices] == ["", "", "", "😀", "!", "", "", "", "😀"]
    told = [choice["logprobs"] for choice in choices]
    assert [one["text_offset"] for one in told] == [[0], [0], [0], [0], [1], [2], [2], [2], [2]]
    assert told[0]["tokens"] + told[4]["tokens"] == ["bytes:\\xf0", "!"]
    assert told[1]["top_logprobs"] == [{"bytes:\\x9f": -1.0, "bytes:\\xf0": -2.0}]
