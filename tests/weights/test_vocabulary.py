"""Vocabularies in the three forms that checkpoints have, and damaged ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Tokenizer

from dialogpt.weights import CheckpointError
from dialogpt.weights.vocabulary import gpt2_vocabulary, read_vocabulary
from tests.helpers import small_vocabulary


def test_the_merges_give_the_published_files_to_the_byte(tmp_path: Path) -> None:
    """256 bytes, 50,000 merges and the end token; checksums of the files that OpenAI and Microsoft published."""
    vocabulary = gpt2_vocabulary()
    assert (vocabulary.size, vocabulary.eos_id) == (50257, 50256)
    vocabulary.write(tmp_path)
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    assert sums == {
        "vocab.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        "merges.txt": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    }


def test_it_reads_what_it_writes(tmp_path: Path) -> None:
    vocabulary = small_vocabulary()
    vocabulary.write(tmp_path)
    again = read_vocabulary(tmp_path)
    assert again is not None
    assert (again.ids, again.merges, again.added) == (vocabulary.ids, vocabulary.merges, {})


def test_it_reads_the_tokenizer_json_of_transformers(tmp_path: Path) -> None:
    small_vocabulary().write(tmp_path)
    theirs = GPT2Tokenizer.from_pretrained(tmp_path)
    theirs.add_tokens(["<usr>"])
    folder = tmp_path / "saved"
    theirs.save_pretrained(folder)
    assert not (folder / "vocab.json").exists()
    read = read_vocabulary(folder)
    assert read is not None
    assert dict(read.ids) == theirs.get_vocab()
    assert read.merges == small_vocabulary().merges
    assert read.added == {"<usr>": 557}


def test_line_ends_of_another_system_do_no_harm(tmp_path: Path) -> None:
    small_vocabulary().write(tmp_path)
    merges = tmp_path / "merges.txt"
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n"))
    read = read_vocabulary(tmp_path)
    assert read is not None
    assert read.merges == small_vocabulary().merges


def test_a_folder_without_a_vocabulary_has_none(tmp_path: Path) -> None:
    assert read_vocabulary(tmp_path) is None


def edit_ids(folder: Path, **changes: Any) -> None:
    path = folder / "vocab.json"
    ids = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({token: n for token, n in ids.items() if n is not None}))


def edit_tokenizer(folder: Path, **changes: Any) -> None:
    """Write a tokenizer.json, as transformers does, that contradicts the vocab.json and merges.txt beside it."""
    theirs = GPT2Tokenizer.from_pretrained(folder)
    theirs.backend_tokenizer.save(str(folder / "tokenizer.json"))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"] |= changes.pop("model", {})
    (folder / "tokenizer.json").write_text(json.dumps(content | changes))


def cut_lines(path: Path, number: int) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:number]))


def test_typed_text_never_becomes_a_special_token(tmp_path: Path) -> None:
    """Whatever the files say: the end token, and every token that they name as special, are not matched in text."""
    small_vocabulary().write(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"[PAD]": 557, "<usr>": 558, "<sys>": 559}')
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "[PAD]", "additional_special_tokens": ["<sys>"]}')
    (tmp_path / "tokenizer_config.json").write_text(
        '{"added_tokens_decoder": {"556": {"content": "<|endoftext|>", "special": false}}}'
    )
    read = read_vocabulary(tmp_path)
    assert read is not None
    assert read.added == {"<usr>": 558}
    assert read.special == {"<|endoftext|>", "[PAD]", "<sys>"}
    read.write(tmp_path / ".")
    (tmp_path / "again").mkdir()
    read.write(tmp_path / "again")
    again = read_vocabulary(tmp_path / "again")
    assert again is not None
    assert (again.ids, again.added, again.special) == (read.ids, read.added, read.special)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "merges.txt").unlink(), "half a vocabulary: merges.txt is missing"),
        (lambda folder: (folder / "vocab.json").unlink(), "half a vocabulary: vocab.json is missing"),
        (lambda folder: (folder / "vocab.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "vocab.json").write_text("[]"), "holds a JSON list; expected an object"),
        (lambda folder: (folder / "vocab.json").write_text("[" * 100_000), "not valid JSON"),
        (lambda folder: (folder / "merges.txt").write_bytes(b"\xff\xfe"), "not UTF-8"),
        (lambda folder: (folder / "merges.txt").write_text("a b c\n"), "merge 1 is .*expected two tokens"),
        (lambda folder: (folder / "merges.txt").write_text("qq zz\n"), "'qq zz' uses or makes a token without an id"),
        (lambda folder: edit_ids(folder, a="7"), "the id of 'a' is '7'"),
        (lambda folder: edit_ids(folder, a=True), "the id of 'a' is True"),
        (lambda folder: edit_ids(folder, a=-1), "the id of 'a' is -1"),
        (lambda folder: edit_ids(folder, a=1), "two tokens have the same id"),
        (lambda folder: edit_ids(folder, a=None), "1 of the 256 bytes have no token"),
        (lambda folder: edit_ids(folder, **{"<|endoftext|>": None}), r"no <\|endoftext\|>"),
        (lambda folder: (folder / "added_tokens.json").write_text('{"<usr>": "x"}'), "the id of '<usr>' is 'x'"),
        (lambda folder: edit_tokenizer(folder, added_tokens=[{"id": 600}]), "has no text"),
        (lambda folder: edit_tokenizer(folder, added_tokens=[{"content": "x"}]), "the id of 'x' is None"),
        (lambda folder: edit_tokenizer(folder, added_tokens=1), "added_tokens is not a list"),
        (lambda folder: edit_tokenizer(folder, normalizer={"type": "Lowercase"}), "describes another tokenizer"),
        (lambda folder: edit_tokenizer(folder, model={"ignore_merges": True}), "describes another tokenizer"),
        (lambda folder: edit_tokenizer(folder, post_processor={"type": "X"}), "it sets post_processor X"),
        (lambda folder: edit_tokenizer(folder, model={"merges": []}), "is another vocabulary than"),
        (lambda folder: edit_tokenizer(folder, model={"vocab": {"a": 7}}), "is another vocabulary than"),
        (
            lambda folder: edit_tokenizer(folder, post_processor={"type": "Sequence", "processors": [{"type": "X"}]}),
            "it sets post_processor X",
        ),
        (
            lambda folder: edit_tokenizer(folder, pre_tokenizer={"type": "ByteLevel", "use_regex": False}),
            "describes another tokenizer",
        ),
        (lambda folder: (folder / "tokenizer_config.json").write_text('{"add_eos_token": true}'), "add_eos_token"),
        (lambda folder: (folder / "merges.txt").write_text(""), "300 tokens are made by no merge.*cut short"),
        (lambda folder: cut_lines(folder / "merges.txt", 100), "201 tokens are made by no merge"),
        (lambda folder: edit_ids(folder, **{"\ud800": 600}), "half a surrogate pair"),
        (
            lambda folder: (folder / "tokenizer_config.json").write_text(
                '{"added_tokens_decoder": {"' + "9" * 5000 + '": {}}}'
            ),
            "not a map from ids",
        ),
        (lambda folder: (folder / "tokenizer_config.json").write_text('{"add_bos_token": true}'), "add_bos_token"),
        (lambda folder: (folder / "vocab.json").write_text('{"a": NaN}'), "NaN is no JSON number"),
    ],
)
def test_a_damaged_vocabulary_is_a_sentence(tmp_path: Path, damage: Any, sentence: str) -> None:
    small_vocabulary().write(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=sentence):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        '{"model": {"type": "WordPiece", "vocab": {}, "merges": []}}',
        '{"model": {"type": "BPE", "vocab": [], "merges": []}, "pre_tokenizer": {"type": "ByteLevel"}}',
        '{"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": {"type": "Whitespace"}}',
        '{"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": {"type": "ByteLevel"},'
        ' "normalizer": {"type": "Lowercase"}}',
        '{"model": null}',
    ],
)
def test_another_kind_of_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="describes another tokenizer"):
        read_vocabulary(tmp_path)
