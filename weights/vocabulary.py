"""The vocabulary of a checkpoint: which ids stand for which pieces of text, and which merges make them.

GPT-2 spells each of the 256 bytes as one printable letter (a space is "Ġ") and writes every token in these letters.
Its ids are the 256 bytes, then what each merge makes, in order, then `<|endoftext|>`; so the merges alone give the
whole vocabulary (openai/gpt-2, src/encoder.py). How text becomes ids is left to `dialogpt.tokenizer`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from weights.files import CheckpointError, read_json, write_json

END_OF_TEXT = "<|endoftext|>"
GPT2_SIZE = 50257
_GPT2_MERGES = Path(__file__).parent / "gpt2" / "merges.txt"
_BEHAVIOUR = ("lstrip", "rstrip", "single_word")  # ways of an added token to eat its surroundings
_TEXT_LIMIT = 64 << 20  # bytes of a merges.txt


@cache
def byte_letters() -> dict[int, str]:
    """The letter of each byte, in the order of GPT-2's first 256 ids.

    The 188 bytes that print in Latin-1 stand for themselves and come first; the other 68 take the letters from U+0100
    on: byte 0 is "Ā", a space (byte 32) is "Ġ".
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a checkpoint.

    Attributes:
        ids: token, in GPT-2's letters, to id; `<|endoftext|>` and added tokens as plain text.
        merges: pairs of tokens in the order in which they are merged.
        added: tokens, as plain text, that are matched whole wherever they are typed. They are in `ids` too. Every
            other token that no merge makes is special: typed text never becomes it.
        origin: where it was read, for people.

    Raises:
        CheckpointError: ids or merges contradict each other; all problems are named.
    """

    ids: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]
    added: Mapping[str, int] = field(default_factory=dict)
    origin: str = ""

    def __post_init__(self) -> None:
        problems = []
        if len(set(self.ids.values())) != len(self.ids):
            problems.append("two tokens have the same id")
        missing = [letter for letter in byte_letters().values() if letter not in self.ids]
        if missing:
            problems.append(f"{len(missing)} of the 256 bytes have no token (the letter {missing[0]!r}, for one)")
        unmade = next((pair for pair in self.merges if not {*pair, "".join(pair)} <= self.ids.keys()), None)
        if unmade:
            problems.append(f"the merge {' '.join(unmade)!r} uses or makes a token without an id")
        if len({left + right for left, right in self.merges}) != len(self.merges):
            problems.append("two merges make the same token")
        if END_OF_TEXT not in self.ids:
            problems.append(f"there is no {END_OF_TEXT}, which ends every turn")
        if problems:
            raise CheckpointError(f"the vocabulary of {self.origin} cannot be used: {'; '.join(problems)}")

    @property
    def size(self) -> int:
        """One more than the largest id: the embedding rows that it needs."""
        return max(self.ids.values()) + 1

    @property
    def end_of_text(self) -> int:
        """The id that ends every turn."""
        return self.ids[END_OF_TEXT]

    def write(self, folder: Path) -> None:
        """Write ``vocab.json`` and ``merges.txt`` as transformers spells them, and ``added_tokens.json`` if needed."""
        write_vocabulary_json(folder / "vocab.json", self.ids)
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in self.merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        if self.added:
            write_json(folder / "added_tokens.json", self.added)


@cache
def gpt2_merges() -> tuple[tuple[str, str], ...]:
    """The 50,000 merges of GPT-2, from the file that this package carries."""
    return _read_merges(_GPT2_MERGES)


def gpt2_vocabulary() -> Vocabulary:
    """The vocabulary of GPT-2 and DialoGPT, from the merges that this package carries."""
    merges = gpt2_merges()
    tokens = [*byte_letters().values(), *(left + right for left, right in merges), END_OF_TEXT]
    return Vocabulary({token: n for n, token in enumerate(tokens)}, merges, origin="GPT-2, as carried by this package")


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Read the vocabulary that lies in a checkpoint's folder.

    It is ``vocab.json`` with ``merges.txt``, or else ``tokenizer.json``; tokens added to it are read from wherever
    transformers writes them. None where the folder has no vocabulary at all.

    Raises:
        CheckpointError: a file is damaged, or describes a tokenizer that is not GPT-2's.
    """
    content = read_json(folder / "tokenizer.json") if (folder / "tokenizer.json").exists() else {}
    pair = [folder / "vocab.json", folder / "merges.txt"]
    if all(path.exists() for path in pair):
        ids: dict[str, int] = _ids(read_json(pair[0]), pair[0])
        merges = _read_merges(pair[1])
        origin = f"{folder.name}/vocab.json and merges.txt"
    elif any(path.exists() for path in pair):
        missing = next(path for path in pair if not path.exists())
        raise CheckpointError(f"{folder} has half a vocabulary: {missing.name} is missing beside the other; fetch it")
    elif content:
        ids, merges = _read_tokenizer_model(content, folder / "tokenizer.json")
        origin = f"{folder.name}/tokenizer.json"
    else:
        return None
    added = _read_added(folder, content)
    return Vocabulary(ids | _ids({t: a["id"] for t, a in added.items()}, folder), merges, _typed(added, folder), origin)


def write_vocabulary_json(path: Path, ids: Mapping[str, int]) -> None:
    """Write ``vocab.json`` byte for byte as OpenAI did: one line, ASCII, in the order of the ids."""
    path.write_text(json.dumps(dict(sorted(ids.items(), key=lambda item: item[1]))), encoding="utf-8")


def _ids(content: Mapping[str, Any], path: Path) -> dict[str, int]:
    wrong = next((t for t, i in content.items() if not isinstance(i, int) or isinstance(i, bool) or i < 0), None)
    if wrong is not None:
        raise CheckpointError(f"{path}: the id of {wrong!r} is {content[wrong]!r}; expected a whole number from 0 on")
    return dict(content)


def _read_merges(path: Path) -> tuple[tuple[str, str], ...]:
    try:
        if path.stat().st_size > _TEXT_LIMIT:
            raise CheckpointError(f"{path} is larger than {_TEXT_LIMIT >> 20} MiB; expected a list of merges")
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is not UTF-8 text; fetch it again") from None
    start = 1 if lines[0].startswith("#version") else 0
    return _pairs((line.split(" ") for line in lines[start:] if line), path)


def _pairs(merges: Iterable[Any], path: Path) -> tuple[tuple[str, str], ...]:
    pairs = []
    for number, merge in enumerate(merges, 1):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(parts, list) and len(parts) == 2 and all(isinstance(p, str) and p for p in parts)):
            raise CheckpointError(f"{path}: merge {number} is {merge!r}; expected two tokens with a space between them")
        pairs.append((parts[0], parts[1]))
    return tuple(pairs)


def _read_tokenizer_model(content: dict[str, Any], path: Path) -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """Take ids and merges out of a ``tokenizer.json``, if the tokenizer in it is GPT-2's kind."""
    model, splitter = content.get("model"), content.get("pre_tokenizer")
    if not (
        isinstance(model, dict)
        and model.get("type") == "BPE"
        and isinstance(model.get("vocab"), dict)
        and isinstance(model.get("merges"), list)
        and not content.get("normalizer")
        and isinstance(splitter, dict)
        and splitter.get("type") == "ByteLevel"
        and not splitter.get("add_prefix_space")
    ):
        raise CheckpointError(f"{path} describes another tokenizer; expected GPT-2's: byte-level BPE, text as it is")
    return _ids(model["vocab"], path), _pairs(model["merges"], path)


def _read_added(folder: Path, content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Collect the added tokens, text -> description, from the three places that transformers has used."""
    found: dict[str, dict[str, Any]] = {}
    if (folder / "added_tokens.json").exists():  # the oldest: only ids
        found |= {text: {"id": n} for text, n in read_json(folder / "added_tokens.json").items()}
    if (folder / "tokenizer_config.json").exists():
        settings = read_json(folder / "tokenizer_config.json")
        if settings.get("add_prefix_space"):
            raise CheckpointError(f"{folder / 'tokenizer_config.json'} asks for add_prefix_space, which GPT-2 has not")
        decoder = settings.get("added_tokens_decoder") or {}
        if not isinstance(decoder, dict) or not all(n.isdecimal() for n in decoder):
            raise CheckpointError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder is not a map from ids")
        found |= _by_text(({"id": int(n), **_description(token)} for n, token in decoder.items()), folder)
    return found | _by_text(map(_description, content.get("added_tokens") or ()), folder)


def _description(token: object) -> dict[str, Any]:
    return dict(token) if isinstance(token, dict) else {}


def _by_text(tokens: Iterable[dict[str, Any]], folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for token in tokens:
        if not isinstance(token.get("content"), str) or not token["content"]:
            raise CheckpointError(f"{folder}: an added token has no text; fetch the tokenizer's files again")
        found[token["content"]] = token
    return found


def _typed(added: Mapping[str, dict[str, Any]], folder: Path) -> dict[str, int]:
    """Keep the added tokens that typed text may become: those that are not special."""
    typed = {text: token for text, token in added.items() if not token.get("special", text == END_OF_TEXT)}
    greedy = next((text for text, token in typed.items() if any(token.get(flag) for flag in _BEHAVIOUR)), None)
    if greedy is not None:
        raise CheckpointError(
            f"{folder}: the added token {greedy!r} sets {' or '.join(_BEHAVIOUR)}, which is not implemented"
        )
    return {text: int(token["id"]) for text, token in typed.items()}
