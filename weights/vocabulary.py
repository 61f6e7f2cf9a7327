"""The vocabulary of a checkpoint: which ids stand for which pieces of text, and which merges make them.

GPT-2 spells each of the 256 bytes as one printable letter (a space is "Ġ") and writes every token in these letters.
Its ids are the 256 bytes, then what each merge makes, in order, then `<|endoftext|>`; so the merges alone give the
whole vocabulary (openai/gpt-2, src/encoder.py). How text becomes ids is left to `dialogpt.tokenizer`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from dialogpt.weights.formats import CheckpointError, read_json, read_text, write_json

END_OF_TEXT = "<|endoftext|>"
# DialoGPT's, as published: no roles, and a system message is an ordinary turn.
CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
TOKENIZER_FILES = (  # carried along to the byte, where a source has them
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
GPT2_SIZE = 50257
logger = logging.getLogger(__name__)
_GPT2_MERGES = Path(__file__).parent / "gpt2" / "merges.txt"
_BEHAVIOUR = ("lstrip", "rstrip", "single_word")  # ways of an added token to eat its surroundings
MAX_ADDED = 10_000  # added tokens: each is looked for in every typed text
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


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
        ids: token, in GPT-2's letters, to id; `<|endoftext|>` and other special or added tokens as plain text.
        merges: two tokens with a space between them, in the order in which they are merged.
        added: tokens, as plain text, that are matched whole wherever they are typed. They are in `ids` too.
        special: tokens that typed text never becomes, `<|endoftext|>` and `eos_token` among them.
        eos_token: ends every turn: `<|endoftext|>`, unless the checkpoint's tokenizer names another.
        origin: where it was read, for people.
        without_row: added tokens whose id is beyond the network's embedding, and which therefore have none here.
        flags: how added tokens treat the text around them, where they do: lstrip, rstrip, single_word.
        add_prefix_space: whether a text begins with a space for the tokenizer, whatever was typed.
        turn_prefix: what each turn of the user, and each of the bot, begins with; None for nothing, as in DialoGPT.

    Raises:
        CheckpointError: ids or merges contradict each other; all problems are named.
    """

    ids: Mapping[str, int]
    merges: tuple[str, ...]
    added: Mapping[str, int] = field(default_factory=dict)
    special: frozenset[str] = frozenset({END_OF_TEXT})
    eos_token: str = END_OF_TEXT
    origin: str = ""
    without_row: frozenset[str] = frozenset()
    flags: Mapping[str, frozenset[str]] = field(default_factory=dict)
    add_prefix_space: bool = False
    turn_prefix: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        problems = []
        letters = set(byte_letters().values())
        if len(set(self.ids.values())) != len(self.ids):
            problems.append("two tokens have the same id")
        missing = sorted(letters - self.ids.keys())
        if missing:
            problems.append(f"{len(missing)} of the 256 bytes have no token (the letter {missing[0]!r}, for one)")
        made = [merge.replace(" ", "") for merge in self.merges]
        unmade = next((merge for merge in self.merges if not {*merge.split(" ")} <= self.ids.keys()), None)
        unmade = unmade or next((merge for merge, m in zip(self.merges, made, strict=True) if m not in self.ids), None)
        if unmade:
            problems.append(f"the merge {unmade!r} uses or makes a token without an id")
        if len(set(made)) != len(made):
            problems.append("two merges make the same token")
        if not letters.issuperset("".join(made)):
            problems.append("a merge is not written in the letters of bytes")
        if self.eos_token not in self.ids:
            problems.append(f"there is no {self.eos_token}, which ends every turn")
        orphans = sorted(self.ids.keys() - letters - set(made) - self.added.keys() - self.special)
        if orphans:
            problems.append(
                f"{len(orphans):,} tokens are made by no merge and not declared as added ({orphans[0]!r}, for one): "
                f"the merges are cut short, or a tokenizer file is missing"
            )
        if problems:
            raise CheckpointError(f"the vocabulary of {self.origin} cannot be used: {'; '.join(problems)}")

    @property
    def size(self) -> int:
        """One more than the largest id: the embedding rows that it needs."""
        return max(self.ids.values()) + 1

    def limited(self, rows: int) -> Vocabulary:
        """The vocabulary without added tokens that a network of so many rows has none for.

        The commonest fine-tune adds `[PAD]` to the tokenizer and never resizes the embedding.
        """
        beyond = {token for token, n in self.ids.items() if n >= rows}
        if not beyond or not beyond <= self.special | self.added.keys() or self.eos_token in beyond:
            return self
        return replace(
            self,
            ids={token: n for token, n in self.ids.items() if token not in beyond},
            added={token: n for token, n in self.added.items() if token not in beyond},
            without_row=frozenset(beyond),
        )

    @property
    def eos_id(self) -> int:
        """The id that ends every turn."""
        return self.ids[self.eos_token]

    def write(self, folder: Path, carried: Sequence[Path] = ()) -> None:
        """Write ``vocab.json`` and ``merges.txt`` as OpenAI did, and what transformers adds where there is more.

        Args:
            folder: where.
            carried: the source's own files among `TOKENIZER_FILES`, which are copied instead.
        """
        in_order = dict(sorted(self.ids.items(), key=lambda item: item[1]))
        (folder / "vocab.json").write_text(json.dumps(in_order), encoding="utf-8")  # one line, ASCII
        lines = "\n".join(["#version: 0.2", *self.merges, ""])
        (folder / "merges.txt").write_text(lines, encoding="utf-8", newline="\n")
        for path in carried:
            read_text(path)  # a plain file of bounded size
            (folder / path.name).write_bytes(path.read_bytes())
        if any(path.suffix == ".json" for path in carried):
            return
        if self.added:
            write_json(folder / "added_tokens.json", self.added)
        settings: dict[str, Any] = {} if self.eos_token == END_OF_TEXT else {"eos_token": self.eos_token}
        if self.special != {END_OF_TEXT}:
            settings["additional_special_tokens"] = sorted(self.special)
        if settings:
            write_json(folder / "special_tokens_map.json", settings)


def chat_template(turn_prefix: tuple[str, str] | None) -> str:
    """The template that makes of messages the prompt that a chat here makes of them.

    DialoGPT's own joins them by the end token. Where turns have prefixes, the bot's ends the prompt.
    """
    if turn_prefix is None:
        return CHAT_TEMPLATE
    user, bot, ask = (
        json.dumps(text, ensure_ascii=False) for text in (*turn_prefix, turn_prefix[1].rstrip())
    )  # Jinja's strings are written like JSON's
    return (
        "{% for message in messages %}{% if message.role == 'user' %}{{ "
        + user
        + " }}{% elif message.role == 'assistant' %}{{ "
        + bot
        + " }}{% endif %}{{ message.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ "
        + ask
        + " }}{% endif %}"
    )


@cache
def gpt2_merges() -> tuple[str, ...]:
    """The 50,000 merges of GPT-2, from the file that this package carries."""
    return _read_merges(_GPT2_MERGES)


def gpt2_vocabulary(size: int = GPT2_SIZE) -> Vocabulary:
    """The vocabulary of GPT-2 and DialoGPT, or a smaller one of its first merges, from what this package carries.

    Args:
        size: how many tokens it has: 256 bytes, `size - 257` merges and the end of text.

    Raises:
        CheckpointError: GPT-2 has not that many, or 257 are more.
    """
    if not 257 <= size <= GPT2_SIZE:
        raise CheckpointError(f"a vocabulary of {size:,} tokens cannot be made of GPT-2's; expected 257 to {GPT2_SIZE}")
    merges = gpt2_merges()[: size - 257]
    tokens = [*byte_letters().values(), *(merge.replace(" ", "") for merge in merges), END_OF_TEXT]
    return Vocabulary({token: n for n, token in enumerate(tokens)}, merges, origin="GPT-2, as carried by this package")


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Read the vocabulary that lies in a checkpoint's folder.

    It is ``vocab.json`` with ``merges.txt``, or else ``tokenizer.json``; tokens added to it are read from wherever
    transformers writes them. None where the folder has no vocabulary at all.

    Raises:
        CheckpointError: a file is damaged, contradicts another, or describes a tokenizer that is not GPT-2's.
    """
    paths = {name: folder / name for name in ("vocab.json", "merges.txt", "tokenizer.json")}
    there = {name for name, path in paths.items() if os.path.lexists(path)}
    content = read_json(paths["tokenizer.json"]) if "tokenizer.json" in there else None
    model = None if content is None else _read_tokenizer(content, paths["tokenizer.json"])
    if {"vocab.json", "merges.txt"} <= there:
        ids, merges = _ids(read_json(paths["vocab.json"]), paths["vocab.json"]), _read_merges(paths["merges.txt"])
        origin = f"{folder.name}/vocab.json and merges.txt"
        if model is not None and (model[0].items() - ids.items() or model[1] != merges):
            raise CheckpointError(f"{folder}: tokenizer.json is another vocabulary than {origin}; remove what is wrong")
    elif model is not None:
        (ids, merges, _), origin = model, f"{folder.name}/tokenizer.json"
    elif there:
        missing = ({"vocab.json", "merges.txt"} - there).pop()
        raise CheckpointError(f"{folder} has half a vocabulary: {missing} is missing; fetch it")
    elif os.path.lexists(folder / "vocab.txt"):
        raise CheckpointError(
            f"{folder} has a vocab.txt, which is BERT's vocabulary: its checkpoint is no GPT-2, or was fine-tuned with "
            f"another tokenizer; fetch vocab.json and merges.txt"
        )
    else:
        return None
    added = _read_added(folder, content or {})
    typed = {text: n for text, n in added.ids.items() if text in added.typed and text not in added.special}
    return Vocabulary(
        ids=ids | added.ids,
        merges=merges,
        added=typed,
        special=frozenset(added.special | added.ids.keys() - typed.keys()),
        eos_token=added.eos_token,
        origin=origin,
        flags={text: flags for text, flags in added.flags.items() if flags},
        add_prefix_space=added.add_prefix_space or (model is not None and model[2]),
    )


def _ids(content: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Check that names have ids, as in ``vocab.json``."""
    for token, n in content.items():
        if type(n) is not int or not 0 <= n < 1 << 31:
            raise CheckpointError(f"{path}: the id of {token!r} is {n!r}; expected a non-negative integer")
    try:
        "".join(content).encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"{path}: a token holds half a surrogate pair, and is no text") from None
    return dict(content)


def _read_merges(path: Path) -> tuple[str, ...]:
    lines = read_text(path).split("\n")
    start = 1 if lines[0].startswith("#version") else 0
    return _merges([line for line in lines[start:] if line], path)


def _merges(merges: list[Any], path: Path) -> tuple[str, ...]:
    """Check merges that are written as "a b", or as ["a", "b"] as newer files have them; all become "a b"."""
    for number, merge in enumerate(merges):
        if type(merge) is list and len(merge) == 2 and all(type(part) is str for part in merge):
            merges[number] = merge = " ".join(merge)
        if type(merge) is not str or merge.count(" ") != 1 or merge[0] == " " or merge[-1] == " ":
            raise CheckpointError(f"{path}: merge {number + 1} is {merge!r}; expected two tokens, a space between them")
    return tuple(merges)


def _read_tokenizer(content: dict[str, Any], path: Path) -> tuple[dict[str, int], tuple[str, ...], bool]:
    """Take ids, merges and add_prefix_space out of a ``tokenizer.json`` whose tokenizer is GPT-2's kind.

    Raises:
        CheckpointError: it is another kind; what differs is named.
    """
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise _another(path, f"its model is {str(kind)[:40]}")
    if not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        raise _another(path, "its vocab or merges are missing")
    odd = [key for key in _OTHER_BPE if model.get(key)]
    odd += ["normalizer"] if content.get("normalizer") else []
    around, unknown = _tokens_around(content.get("post_processor"))
    odd += [f"post_processor {kind}" for kind in unknown]
    if odd:
        raise _another(path, f"it sets {', '.join(odd)}")
    if around:
        logger.warning("%s puts %s around a text; the turns of a dialogue have none of them", path, ", ".join(around))
    prefix = _splits_as_gpt2(content.get("pre_tokenizer"))
    if prefix is None:
        raise _another(path, "its pre_tokenizer splits text in another way")
    return _ids(model["vocab"], path), _merges(model["merges"], path), prefix


def _another(path: Path, difference: str) -> CheckpointError:
    return CheckpointError(f"{path} describes another tokenizer than GPT-2's byte-level BPE: {difference}")


def _splits_as_gpt2(splitter: Any) -> bool | None:
    """Whether a pre-tokenizer puts a space before a text; None if it does not split as GPT-2's.

    transformers 4 writes ByteLevel alone, transformers 5 also a sequence of it, or of Split by the pattern and it.
    """
    parts = splitter.get("pretokenizers") if isinstance(splitter, dict) and splitter.get("type") == "Sequence" else None
    parts = parts if isinstance(parts, list) else [splitter]
    if not parts or not all(isinstance(part, dict) for part in parts) or parts[-1].get("type") != "ByteLevel":
        return None
    *before, level = parts
    if not before and level.get("use_regex", True):
        return bool(level.get("add_prefix_space"))
    if len(before) == 1 and before[0].get("type") == "Split" and not level.get("use_regex", True):
        pattern = before[0].get("pattern")
        same = isinstance(pattern, dict) and pattern.get("Regex") == SPLIT_PATTERN and not before[0].get("invert")
        return bool(level.get("add_prefix_space")) if same and before[0].get("behavior") == "Isolated" else None
    return None


def _tokens_around(processor: Any) -> tuple[list[str], list[str]]:
    """What a ``tokenizer.json`` puts around a whole text: its tokens, and the kinds of processors that are not known.

    Transformers leaves these tokens out with `add_special_tokens=False`, as its chat templates do; RoBERTa's are <s>
    and </s>. The texts that are encoded here are turns, which a dialogue's end token separates.
    """
    tokens: list[Any] = []
    unknown = []
    waiting = [] if processor is None else [processor]
    while waiting:  # no recursion: sequences may be nested as deeply as JSON is
        part = waiting.pop()
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind == "Sequence" and isinstance(part.get("processors"), list):
            waiting += reversed(part["processors"])
        elif kind == "TemplateProcessing" and isinstance(part.get("single"), list):
            pieces = [piece.get("SpecialToken") for piece in part["single"] if isinstance(piece, dict)]
            tokens += [piece.get("id") for piece in pieces if isinstance(piece, dict)]
        elif kind in ("RobertaProcessing", "BertProcessing"):
            tokens += [pair[0] for key in ("cls", "sep") if isinstance(pair := part.get(key), list) and pair]
        elif kind != "ByteLevel":
            unknown.append(str(kind)[:40])
    return [str(token)[:40] for token in tokens[:8]], unknown[:8]


_OTHER_BPE = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
SPLIT_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # of GPT-2, as published


@dataclass
class _Added:
    """Added tokens, as they are collected from the files of one folder.

    Attributes:
        ids: of each.
        typed: those that typed text becomes.
        special: those that it never becomes.
        flags: how they treat the text around them.
        eos_token: ends a turn.
        add_prefix_space: whether a text begins with a space for the tokenizer.
    """

    ids: dict[str, int] = field(default_factory=dict)
    typed: set[str] = field(default_factory=set)
    special: set[str] = field(default_factory=lambda: {END_OF_TEXT})
    flags: dict[str, frozenset[str]] = field(default_factory=dict)
    eos_token: str = END_OF_TEXT
    add_prefix_space: bool = False

    def add(self, token: Any, n: Any, path: Path) -> None:
        """Note one described token; a later description of it replaces an earlier one."""
        text = _text(token)
        if not text:
            raise CheckpointError(f"{path}: the added token {n!r} has no text; fetch the tokenizer's files again")
        self.ids |= _ids({text: n}, path)
        if len(self.ids) > MAX_ADDED:
            raise CheckpointError(f"{path}: there are more than {MAX_ADDED:,} added tokens; expected a fine-tune's few")
        self.typed.discard(text)
        if isinstance(token, dict):
            self.flags[text] = frozenset(flag for flag in _BEHAVIOUR if token.get(flag))
            if not token.get("special"):
                self.typed.add(text)


def _read_added(folder: Path, content: Mapping[str, Any]) -> _Added:
    """Collect added tokens from the places that transformers has used; a later place has the last word."""
    added = _Added()
    path = folder / "added_tokens.json"  # the oldest: only ids
    for text, n in (_ids(read_json(path), path) if os.path.lexists(path) else {}).items():
        added.add({"content": text}, n, path)
    for path in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
        settings = read_json(path) if os.path.lexists(path) else {}
        for flag in ("add_bos_token", "add_eos_token"):
            if settings.get(flag):
                raise CheckpointError(f"{path} asks for {flag}, which is not implemented")
        added.add_prefix_space |= bool(settings.get("add_prefix_space"))
        named = [settings.get(key) for key in _NAMED]
        added.eos_token = _text(settings.get("eos_token")) or added.eos_token
        more = settings.get("additional_special_tokens") or settings.get("extra_special_tokens") or []
        more = list(more.values()) if isinstance(more, dict) else more
        named += more if isinstance(more, list) else []
        added.special |= {name for entry in named if (name := _text(entry))}
        decoder = settings.get("added_tokens_decoder") or {}
        if not isinstance(decoder, dict) or not all(n.isdecimal() and len(n) < 10 for n in decoder):
            raise CheckpointError(f"{path}: added_tokens_decoder is not a map from ids to tokens")
        for n, token in decoder.items():
            added.add(token, int(n), path)
    path, tokens = folder / "tokenizer.json", content.get("added_tokens") or []
    if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
        raise CheckpointError(f"{path}: added_tokens is not a list of tokens")
    for token in tokens:
        added.add(token, token.get("id"), path)
    return added


def _text(token: Any) -> str | None:
    """The text of a token that is written as text or as a description."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
