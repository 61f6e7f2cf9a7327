"""How text and probabilities are written, token by token."""

from __future__ import annotations

import json

from dialogpt import Tokenizer
from dialogpt.serve.engine import Token
from dialogpt.serve.responses import ChatFormat, Choice, CompletionFormat, VisibleText, json_pieces


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
    assert list(told[1]["top_logprobs"]) == [{"bytes:\\x9f": -1.0, "bytes:\\xf0": -2.0}]


def test_json_is_written_in_pieces() -> None:
    """A response with 82,000 alternatives blocked the event loop for 2.1 s."""
    value = {"a": [{"b": iter([{"c": 1}, None])}, {"b": iter([])}], "d": {}, "e": [1, 2], "f": "é\n", "g": []}
    pieces = list(json_pieces(value))
    assert "".join(pieces) == '{"a":[{"b":[{"c":1},null]},{"b":[]}],"d":{},"e":[1,2],"f":"é\\n","g":[]}'
    tokenizer = Tokenizer.load("tiny")
    form = ChatFormat(tokenizer, "tiny")
    for _ in range(1000):
        form.record(0, Token(0, 5, -1.0, tuple((n, -2.0) for n in range(20))))
    choice = Choice(VisibleText(tokenizer, ()), "x", 1000, "length")
    pieces = list(json_pieces(form.whole([choice], {})))
    assert max(map(len, pieces)) < 3000
    assert len(json.loads("".join(pieces))["choices"][0]["logprobs"]["content"]) == 1000
