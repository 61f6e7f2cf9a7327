"""The tokenizer on its own: `explain`, streams, invalid text; ids are compared in parity/."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Tokenizer

from dialogpt import Chat, DialogueError, StreamDecoder, Tokenizer
from dialogpt.cli.main import main
from dialogpt.weights import CheckpointError, Vocabulary, convert, export
from dialogpt.weights.vocabulary import gpt2_vocabulary
from tests.helpers import small_vocabulary, their_model


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(gpt2_vocabulary())


def test_typed_text_never_becomes_the_end_token(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.eos_id == 50256
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == "a<|endoftext|>b"


@given(
    before=st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    half=st.characters(categories=["Cs"]),
    after=st.text(max_size=5),
)
def test_half_a_surrogate_pair_is_refused_in_a_sentence(
    tokenizer: Tokenizer, before: str, half: str, after: str
) -> None:
    with pytest.raises(DialogueError, match=rf"character {len(before) + 1} \(U\+{ord(half):04X}\) is half"):
        tokenizer.encode(before + half + after)


def test_ids_without_text_decode_to_a_replacement(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([15496, 50257, -1, 10**12, 0]) == "Hello\ufffd\ufffd\ufffd!"


@given(ids=st.lists(st.integers(-2, 50300), max_size=30))
def test_a_stream_shows_the_same_text_and_never_half_a_character(tokenizer: Tokenizer, ids: list[int]) -> None:
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.feed(token) for token in ids]
    assert "".join(pieces) + decoder.finish() == tokenizer.decode(ids)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_a_stream_of_text_has_no_replacement_that_was_not_typed(tokenizer: Tokenizer, text: str) -> None:
    decoder = StreamDecoder(tokenizer)
    shown = ""
    for token in tokenizer.encode(text):
        shown += decoder.feed(token)
        assert text.startswith(shown)
    assert shown == text


def test_an_emoji_waits_for_its_last_byte(tokenizer: Tokenizer) -> None:
    decoder = StreamDecoder(tokenizer)
    *first, last = tokenizer.encode("🤖")
    assert [decoder.feed(token) for token in first] == [""] * len(first)
    assert decoder.feed(last) == "🤖"
    decoder.feed(first[0])
    assert decoder.finish() == "\ufffd"


assigned = st.characters(exclude_categories=["Cs", "Cn", "Co"]).filter(
    lambda letter: unicodedata.ucd_3_2_0.category(letter) == unicodedata.category(letter)
)  # letters that every Unicode table knows: see Tokenizer.explain


@given(text=st.text(assigned, max_size=30))
def test_an_explanation_is_what_encode_does(tokenizer: Tokenizer, text: str) -> None:
    """`explain` merges in plain Python, slowly and obviously, as a reference for the fast encoder."""
    pieces = tokenizer.explain(text)
    assert "".join(piece.text for piece in pieces) == text
    assert [token for piece in pieces for token in piece.ids] == tokenizer.encode(text)


def test_an_explanation_shows_letters_and_merges(tokenizer: Tokenizer) -> None:
    hello, world = tokenizer.explain("Hi you")
    assert (hello.text, hello.letters, hello.ids) == ("Hi", "Hi", [17250])
    assert world.letters == "Ġyou"
    assert world.steps == [["Ġ", "y", "o", "u"], ["Ġ", "y", "ou"], ["Ġy", "ou"], ["Ġyou"]]


def test_a_vocabulary_may_have_its_own_order_of_ids() -> None:
    """Ids need not follow the merges: a vocabulary trained elsewhere often begins with its end token."""
    plain = small_vocabulary(200)
    moved = Vocabulary({token: (n + 1) % plain.size for token, n in plain.ids.items()}, plain.merges, origin="moved")
    left, right = Tokenizer(plain), Tokenizer(moved)
    assert right.eos_id == 0
    assert right.encode("the other one") == [n + 1 for n in left.encode("the other one")]
    assert right.decode(right.encode("the other one")) == "the other one"


def test_merges_that_training_would_not_find_are_refused() -> None:
    """Tiktoken merges by token and transformers by pair; a table in which that differs is refused, not misread."""
    plain = small_vocabulary(0)
    merges = ("b c", "a b", "ab c")  # "abc" becomes "a" "bc", so "ab" "c" is never there to merge
    ids = dict(plain.ids) | {"bc": 300, "ab": 301, "abc": 302}
    with pytest.raises(CheckpointError, match=r"out of order: merge 3 \('ab c'\)"):
        Tokenizer(Vocabulary(ids, merges, origin="a test"))
    in_order = ("b c", "a b", "a bc")
    assert Tokenizer(Vocabulary(ids, in_order, origin="a test")).encode("abc") == [302]


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_the_end_of_a_turn_is_the_checkpoints_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    """A fine-tune on turns ended by <eos> was shown turns ended by <|endoftext|>: a prompt that it never saw."""
    theirs = their_model(vocab_size=558)
    published, ours, back = (tmp_path / name for name in ("published", "ours", "back"))
    theirs.save_pretrained(published)
    small_vocabulary().write(published)
    (published / "added_tokens.json").write_text('{"<eos>": 557}')
    (published / file).write_text(
        '{"eos_token": {"__type": "AddedToken", "content": "<eos>"}, "bos_token": "<|endoftext|>"}'
    )
    convert(published, ours)
    export(ours, back)
    for folder in (published, ours, back):
        tokenizer = Tokenizer.load(folder)
        assert tokenizer.eos_id == 557
        assert 557 not in tokenizer.encode("never typed: <eos>")
        expected = [*tokenizer.encode("Hi"), 557, *tokenizer.encode("there <|endoftext|>"), 557]
        assert tokenizer.encode_dialogue(["Hi", "there <|endoftext|>"]).tolist() == expected
        assert tokenizer.encode_dialogue(["Hi", "you"]).tolist()[-1] == 557
        assert Chat.load(folder).history.eos_id == 557
    assert GPT2Tokenizer.from_pretrained(back).eos_token_id == 557
    assert main(["info", str(ours)]) == 0
    assert re.search("end of a turn +<eos>, token 557", capsys.readouterr().out)


def test_whole_dialogues_refuse_what_single_turns_refuse() -> None:
    """Where every added token lacked an embedding row, `encode_dialogue` took such a token for plain text."""
    tokenizer = Tokenizer(replace(small_vocabulary(), without_row=frozenset({"<x>"})))
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_dialogue(["Hi", text])):
        with pytest.raises(DialogueError, match="the token '<x>' has no embedding row here"):
            encode("an <x>")
    tokenizer = Tokenizer(small_vocabulary())
    with pytest.raises(DialogueError, match=r"^character 3 \(U\+D800\)"):  # counted in its own turn
        tokenizer.encode_dialogue(["Hi there", "ab\ud800"])
