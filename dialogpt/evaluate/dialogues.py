"""Read what is evaluated: dialogues with references, and replies that something else has written.

Dialogues come from the readers of `dialogpt.data`, whatever their kind. A file of one dialogue a line that cannot be
evaluated is refused whole, with the number of its first bad line, as figures of the rest would be those of another set.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dialogpt import data
from dialogpt.data.detect import kind_of
from dialogpt.data.dialogue import Problem
from dialogpt.data.read import OnProblem, read_one
from dialogpt.data.settings import Reading
from dialogpt.data.transform import Transformer
from dialogpt.errors import DialogueError
from dialogpt.files.plain_file import require_plain_file

REFUSED_WHOLE = ("turns", "tsv")  # kinds whose lines are counted, as replies are given line by line


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


def read_dialogues(
    path: Path,
    reading: Reading | None = None,
    *,
    every_turn: bool = False,
    on_problem: OnProblem = lambda problem: None,
) -> list[Dialogue]:
    """Read dialogues of any kind; those with the same turns are one dialogue with all their references.

    A dialogue without references of its own is answered where its last reply stands: the last turn, or the last one
    that its weights count, such as an assistant's.

    Args:
        path: the file, or a folder.
        reading: how it is read; by default its kind is told by looking at it.
        every_turn: whether every reply is answered, and not the last one only: each second turn from the second on, or
            each that the weights count; for dialogues without references of their own.
        on_problem: is told of what is left out, but for files of one dialogue a line (`turns`, `tsv`): there a line
            that cannot be used is an error.

    Raises:
        DialogueError: the file, or a line of it, cannot be used.
    """
    reading = replace(reading or Reading(), min_turns=1, references=True)
    kind = kind_of(path, reading)

    def report(problem: Problem) -> None:
        if kind.name in REFUSED_WHOLE:
            raise DialogueError(str(problem))
        on_problem(problem)

    found: dict[tuple[str, ...], list[str]] = {}
    for dialogue in read_one(path, kind, Transformer(reading), report):
        try:
            answered = _answered(dialogue, every_turn)
        except DialogueError as error:
            report(Problem(path, dialogue.line, str(error)))
            continue
        for turns, references in answered:
            found.setdefault(turns, []).extend(references)
    if not found:
        raise DialogueError(f"{path} holds no dialogue with a reply to compare with; it was read as {kind.name}")
    return [Dialogue(turns, tuple(references)) for turns, references in found.items()]


def _answered(dialogue: data.Dialogue, every_turn: bool) -> list[tuple[tuple[str, ...], Sequence[str]]]:
    """What is answered in a dialogue, and the references of each."""
    turns, weights = dialogue.turns, dialogue.weights
    if dialogue.references:
        if every_turn:
            raise DialogueError("it has references of its own, for its last turn; omit --every-turn")
        return [(tuple(turns), dialogue.references)]
    if len(turns) < 2:
        raise DialogueError('it has one turn and no "references"; expected a reply to compare with')
    counted = [place for place in range(1, len(turns)) if weights is None or weights[place]]
    if not counted:
        raise DialogueError("its weights count no turn after the first; expected a reply to compare with")
    if not every_turn:
        places = counted[-1:]
    elif weights is None or all(weights):
        places = counted[::2]
    else:
        places = counted
    return [(tuple(turns[:place]), [turns[place]]) for place in places]


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


def fingerprint(dialogues: Sequence[Dialogue]) -> str:
    """What tells a set of dialogues from another: a sha256 of all of its text."""
    content = json.dumps([[dialogue.turns, dialogue.references] for dialogue in dialogues], ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
