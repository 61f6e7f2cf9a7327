"""Token ids and decoded text against transformers' GPT-2 tokenizer, on generated text of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Tokenizer

from dialogpt import Tokenizer
from dialogpt.weights.vocabulary import gpt2_vocabulary
from tests.helpers import small_vocabulary

EXAMPLES, STRINGS = 500, 41  # together at least 20,000 strings

letters = st.characters(exclude_categories=["Cs"])
pieces = st.one_of(
    st.text(letters, max_size=12),
    st.sampled_from(["'s", "'ll", "'LL", " 're", "n't", "<|endoftext|>", "<|", "|>", "\r\n", "\u200d", "\ufe0f"]),
    st.integers(1, 40).map(lambda n: " " * n),
    st.integers(1, 9).map(lambda n: "\n" * n),
    st.sampled_from([" ", "\t", "\xa0", "\u2003", "\u3000", "\x1c", "\x85", "\u2028", "\ufeff", "\x00"]),
    st.sampled_from(["👩‍👩‍👧", "🇩🇪", "🏴‍☠️", "e\u0301", "漢字", "Привет", "שלום", "नमस्ते", "ﬁ", "½", "Ⅷ", "٣"]),
    st.text("abc ,.'!?0123456789", max_size=30),
)
strings = st.lists(pieces, max_size=8).map("".join)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    folder = tmp_path_factory.mktemp("gpt2")
    vocabulary = gpt2_vocabulary()
    vocabulary.write(folder)
    return Tokenizer(vocabulary), GPT2Tokenizer.from_pretrained(folder)


def their_ids(theirs: Any, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = theirs(texts, split_special_tokens=True).input_ids
    return ids


@given(texts=st.lists(strings, min_size=STRINGS, max_size=60))
@settings(max_examples=EXAMPLES)
def test_ids_equal_transformers(pair: tuple[Tokenizer, Any], texts: list[str]) -> None:
    ours, theirs = pair
    for text, expected in zip(texts, their_ids(theirs, texts), strict=True):
        ids = ours.encode(text)
        assert ids == expected
        assert ours.decode(ids) == text
        assert ours.eos_id not in ids


def test_every_code_point_equals_transformers(pair: tuple[Tokenizer, Any]) -> None:
    """Each one alone, after a letter and after a space, which decides where text is cut."""
    ours, theirs = pair
    points = [chr(n) for n in range(0x110000) if not 0xD800 <= n < 0xE000]
    for start in range(0, len(points), 20_000):
        block = points[start : start + 20_000]
        texts = ["".join(f"a{point} {point}1" for point in block[k : k + 50]) for k in range(0, len(block), 50)]
        assert [ours.encode(text) for text in texts] == their_ids(theirs, texts)


@given(ids=st.lists(st.integers(0, 50256), max_size=40))
@settings(max_examples=500)
def test_any_ids_decode_as_in_transformers(pair: tuple[Tokenizer, Any], ids: list[int]) -> None:
    ours, theirs = pair
    assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    "text",
    [
        "\n" * 2000,
        "a" + " " * 3001,
        " " * 50_000 + "a",
        "a" + " " * 5000 + "b" + "\n" * 3000 + " c",
        "!" * 20_000,
        "ab" * 5000,
        "\t " * 3000 + "x",
    ],
    ids=lambda text: repr(text[:3]),
)
def test_long_runs_equal_transformers(pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = pair
    assert [ours.encode(text)] == their_ids(theirs, [text])


@given(texts=st.lists(strings, min_size=10, max_size=20))
@settings(max_examples=50)
def test_a_smaller_vocabulary_equals_transformers(small: tuple[Tokenizer, Any], texts: list[str]) -> None:
    ours, theirs = small
    assert [ours.encode(text) for text in texts] == their_ids(theirs, texts)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    folder = tmp_path_factory.mktemp("small")
    small_vocabulary(700).write(folder)
    return Tokenizer(small_vocabulary(700)), GPT2Tokenizer.from_pretrained(folder)


def test_added_tokens_equal_transformers(tmp_path: Path, published: Path) -> None:
    """Plain added tokens are matched whole in typed text, the longest first; special ones never."""
    theirs = GPT2Tokenizer.from_pretrained(published)
    theirs.add_tokens(["<usr>", "<usr>s", " two words"])
    theirs.add_special_tokens({"additional_special_tokens": ["<sys>"]})
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((published / name).read_bytes())
    grow_embedding(tmp_path, len(theirs))
    theirs.save_pretrained(tmp_path)
    assert not (tmp_path / "merges.txt").exists()  # transformers 5 writes tokenizer.json only
    ours = Tokenizer.load(tmp_path)
    texts = ["<usr> hi <usr>s", "say two words<sys>", "<|endoftext|><usr><usr>", "no added ones"]
    assert [ours.encode(text) for text in texts] == their_ids(theirs, texts)
    assert all(ours.decode(ours.encode(text)) == text for text in texts)


def grow_embedding(folder: Path, size: int) -> None:
    from transformers import GPT2LMHeadModel

    network = GPT2LMHeadModel.from_pretrained(folder)
    network.resize_token_embeddings(size)
    network.save_pretrained(folder)
