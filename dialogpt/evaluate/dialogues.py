"""Read what is evaluated: dialogues with references, and replies that something else has written.

A file that cannot be evaluated is refused whole, with the number of its first bad line, as figures of the rest would be
those of another set.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dialogpt.errors import DialogueError
from dialogpt.plain_file import require_plain_file

BETWEEN_TURNS = " EOS "  # in DialoGPT's TSV


@dataclass(frozen=True)
class Dialogue:
    """A dialogue that is to be answered.

    Attributes:
        turns: what was said, oldest first; the last turn is answered.
        references: what people replied, at least one.
    """

    turns: tuple[str, ...]
    references: tuple[str, ...]

    @property
    def own_turns(self) -> tuple[str, ...]:
        """The earlier turns of who answers; speakers alternate."""
        return self.turns[-2::-2]


def read_dialogues(path: Path, *, every_turn: bool = False) -> list[Dialogue]:
    """Read dialogues, one a line; the same turns on several lines are one dialogue with all their references.

    A line of ``.jsonl`` is ``{"turns": [...], "references": [...]}``; without references the last turn is the
    reference. A line of ``.tsv`` is DialoGPT's: turns with " EOS " between them, a tab, the reference, and perhaps
    more references after tabs.

    Args:
        path: the file.
        every_turn: whether each second turn is answered, from the second on, and not the last one only; for dialogues
            without references of their own.

    Raises:
        DialogueError: the file, or a line of it, cannot be used.
    """
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".tsv"):
        raise DialogueError(
            f"{path} is neither .jsonl nor .tsv; expected a dialogue a line, "
            f'{{"turns": [...], "references": [...]}} or turns, a tab and references'
        )
    parse = _from_json if suffix == ".jsonl" else _from_tsv
    found: dict[tuple[str, ...], list[str]] = {}
    for number, line in lines_of(path):
        try:
            for turns, references in parse(line, every_turn):
                _require_text(turns, references)
                found.setdefault(turns, []).extend(references)
        except DialogueError as error:
            raise DialogueError(f"{path}, line {number}: {error}") from None
    if not found:
        raise DialogueError(f"{path} holds no dialogue; expected one a line")
    return [Dialogue(turns, tuple(references)) for turns, references in found.items()]


def _from_json(line: str, every_turn: bool) -> Iterator[tuple[tuple[str, ...], Sequence[str]]]:
    content = _json(line)
    turns: Any = content.get("turns")
    references: Any = content.get("references")
    if not _texts(turns):
        raise DialogueError('it holds no list of texts under "turns"')
    if references is not None:
        if not _texts(references):
            raise DialogueError('"references" is no list of at least one text')
        if every_turn:
            raise DialogueError("it has references of its own, for its last turn; leave --every-turn out")
        yield tuple(turns), references
        return
    if len(turns) < 2:
        raise DialogueError('it has one turn and no "references"; expected a reply to compare with')
    for place in range(1, len(turns), 2) if every_turn else [len(turns) - 1]:
        yield tuple(turns[:place]), [turns[place]]


def _from_tsv(line: str, every_turn: bool) -> Iterator[tuple[tuple[str, ...], Sequence[str]]]:
    source, *references = line.split("\t")
    if not references:
        raise DialogueError("it has one column; expected turns, a tab and at least one reference")
    if every_turn and len(references) > 1:
        raise DialogueError("it has several references, for its last turn; leave --every-turn out")
    turns = [*source.split(BETWEEN_TURNS), references[0]]
    if every_turn:
        for place in range(1, len(turns), 2):
            yield tuple(turns[:place]), [turns[place]]
    else:
        yield tuple(turns[:-1]), references


def _require_text(turns: Sequence[str], references: Sequence[str]) -> None:
    for kind, texts in (("turn", turns), ("reference", references)):
        blank = next((number for number, text in enumerate(texts, 1) if not text.strip()), None)
        if blank is not None:
            raise DialogueError(f"{kind} {blank} is blank")


def read_replies(path: Path, count: int) -> list[str]:
    """Read replies, line n to dialogue n.

    A line of ``.jsonl`` is ``{"reply": "..."}``, or what ``dialogpt reply --batch`` writes, of which the first reply
    counts; in any other file a line is a reply, and an empty line an empty one.

    Args:
        path: the file.
        count: how many dialogues there are.

    Raises:
        DialogueError: the file cannot be used, or has another number of lines.
    """
    is_json = path.suffix.lower() == ".jsonl"
    replies = []
    for number, line in lines_of(path, skip_blank=is_json):
        try:
            replies.append(_reply(line) if is_json else line)
        except DialogueError as error:
            raise DialogueError(f"{path}, line {number}: {error}") from None
    if len(replies) != count:
        raise DialogueError(
            f"{path} has {len(replies):,} replies to {count:,} dialogues; expected one for each, in their order "
            f"(lines with the same turns are one dialogue)"
        )
    return replies


def _reply(line: str) -> str:
    content = _json(line)
    if "error" in content:
        raise DialogueError(f"it holds no reply but an error ({str(content['error'])[:80]}); answer it again")
    if isinstance(content.get("reply"), str):
        return str(content["reply"])
    several = content.get("replies")
    if (
        isinstance(several, list)
        and several
        and isinstance(several[0], dict)
        and isinstance(several[0].get("text"), str)
    ):
        return str(several[0]["text"])
    raise DialogueError('it holds no reply; expected {"reply": "..."} or {"replies": [{"text": "..."}]}')


def lines_of(path: Path, *, skip_blank: bool = True) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file with their numbers, decoded strictly.

    Raises:
        DialogueError: the file cannot be read, or a line is not UTF-8.
    """
    try:
        require_plain_file(path)
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if number == 1:
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                try:
                    line = raw.decode().rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise DialogueError(
                        f"{path}, line {number}: not UTF-8 (byte 0x{raw[error.start]:02x} at position "
                        f"{error.start + 1}); convert the file to UTF-8 first"
                    ) from None
                if line.strip() or not skip_blank:
                    yield number, line
    except OSError as error:
        raise DialogueError(f"{path} cannot be read: {error.strerror}") from None


def _json(line: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DialogueError(f"not valid JSON ({str(error)[:80]})") from None
    if not isinstance(content, dict):
        raise DialogueError("not a JSON object")
    return content


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def fingerprint(dialogues: Sequence[Dialogue]) -> str:
    """What tells a set of dialogues from another: a sha256 of all of its text."""
    content = json.dumps([[dialogue.turns, dialogue.references] for dialogue in dialogues], ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
