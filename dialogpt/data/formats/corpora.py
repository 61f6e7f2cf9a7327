"""Published corpora of dialogue, in the files that their authors offer.

`dailydialog` (Li et al., 2017), `empathetic` (Rashkin et al., 2019), `personachat` (Zhang et al., 2018, in ParlAI's
text format), `blended-skill-talk` (Smith et al., 2020), `cornell` (Danescu-Niculescu-Mizil and Lee, 2011) and
`topical-chat` (Gopalakrishnan et al., 2019).
"""

from __future__ import annotations

import ast
import re
from array import array
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from dialogpt.data.dialogue import Dialogue, texts
from dialogpt.data.formats.kind import Head, Kind, each, line_reader, told
from dialogpt.data.settings import Reading
from dialogpt.data.source import LINE_LIMIT, TOO_LONG, Source, decoded, opened
from dialogpt.errors import DialogueError

END_OF_UTTERANCE = "__eou__"
_BEFORE_PUNCTUATION = re.compile(r"\s+([.,!?;:%)])")
_AROUND_APOSTROPHE = re.compile(r"(\w)\s*['’]\s*(s|t|m|d|re|ve|ll|S|T|M|D|RE|VE|LL)\b")


def tidied(text: str) -> str:
    """Tokenized English as it is written: "I ’ m fine , thanks ." becomes "I'm fine, thanks."."""
    text = _AROUND_APOSTROPHE.sub(r"\1'\2", text.replace("’", "'"))
    return " ".join(_BEFORE_PUNCTUATION.sub(r"\1", text).split())


def parse_daily(line: bytes, reading: Reading) -> Dialogue:
    """A dialogue a line, `__eou__` behind every turn."""
    if len(line) > LINE_LIMIT:
        raise DialogueError(TOO_LONG)
    text = decoded(line)
    if END_OF_UTTERANCE not in text:
        raise DialogueError(f"no {END_OF_UTTERANCE} behind its turns")
    turns = [tidied(turn) for turn in text.split(END_OF_UTTERANCE)]
    return Dialogue(turns if turns[-1] else turns[:-1])


_EMPATHETIC = "conv_id,utterance_idx,context,prompt,speaker_idx,utterance"


def read_empathetic(source: Source) -> Iterator[Dialogue]:
    """A table that is no CSV: a comma inside of a cell is `_comma_`, and quotes are text."""

    def rows() -> Iterator[tuple[int, list[str]]]:
        for number, line in source.text_lines():
            cells = line.split(",")
            if number == 1 and cells[0] == "conv_id":
                continue
            if not line.strip():
                continue
            if len(cells) < 6 or not cells[1].isdecimal():
                source.problem(number, f"not a row of {_EMPATHETIC}")
                continue
            yield number, [cell.replace("_comma_", ",") for cell in cells]

    for _, group in groupby(rows(), key=lambda row: row[1][0]):
        kept = sorted(group, key=lambda row: int(row[1][1][:9]))
        turns, speakers = [cells[5].strip() for _, cells in kept], [cells[4] for _, cells in kept]
        yield Dialogue(turns, None, speakers, min(number for number, _ in kept))


_NUMBERED = re.compile(r"(\d+) (.*)", re.DOTALL)
_PERSONA = re.compile(r"(?:your|partner's) persona: ")
SILENCE = "__SILENCE__"


def read_personachat(source: Source) -> Iterator[Dialogue]:
    """Numbered lines: personas, which are no turns; then text, tab, reply, and candidates, which are not either."""
    turns: list[str] = []
    speakers: list[str] = []
    begun = before = 0
    for number, line in source.text_lines():
        match = _NUMBERED.fullmatch(line)
        if match is None:
            if line.strip():
                source.problem(number, 'not a numbered line, such as "3 hi , how are you ?<tab>fine ."')
            continue
        place = int(match[1][:9])
        if place <= before and turns:
            yield Dialogue(turns, None, speakers, begun)
            turns, speakers = [], []
        before = place
        if _PERSONA.match(match[2]):
            continue
        begun = begun if turns else number
        for speaker, text in zip(("partner", "self"), match[2].split("\t")[:2]):  # noqa: B905  # a last one may lack
            if text.strip() not in ("", SILENCE):
                turns.append(tidied(text))
                speakers.append(speaker)
    if turns:
        yield Dialogue(turns, None, speakers, begun)


def read_blended(source: Source) -> Iterator[Dialogue]:
    """An array: what was said before, then what the two say in turns, one free and one guided; personas are none."""
    yield from told(source, _blended(source))


def _blended(source: Source) -> Iterator[Dialogue]:
    with source.json() as stream:
        for line in stream.elements():
            content = stream.value()
            try:
                yield Dialogue(*_blended_turns(content), line=line)
            except DialogueError as error:
                source.problem(line, str(error))
        stream.end()


_BLENDED = ("previous_utterance", "free_messages", "guided_messages")


def _blended_turns(content: Any) -> tuple[list[str], None, list[str]]:
    if type(content) is not dict:
        raise DialogueError("not an object")
    dialog = content.get("dialog")
    if type(dialog) is list and all(type(pair) is list and len(pair) == 2 and type(pair[1]) is str for pair in dialog):
        return [text for _, text in dialog], None, [str(speaker) for speaker, _ in dialog]
    before, free, guided = (content.get(name) or [] for name in _BLENDED)
    if not all(type(part) is list and texts(part) for part in (before, free, guided)):
        raise DialogueError('no lists of texts under "free_messages" and "guided_messages"')
    if not 0 <= len(free) - len(guided) <= 1:
        raise DialogueError(f"{len(free)} free and {len(guided)} guided messages, which do not take turns")
    said = [text for pair in zip(free, [*guided, ""], strict=False) for text in pair]
    turns = [*before, *said[: len(free) + len(guided)]]
    if any(not turn.strip() for turn in before):
        turns = [turn for turn in before if turn.strip()] + turns[len(before) :]
    first = (len(turns) - len(free) - len(guided)) % 2
    return turns, None, [("free", "guided")[(number + first) % 2] for number in range(len(turns))]


FIELDS = " +++$+++ "
CORNELL_LINES, CORNELL_CONVERSATIONS = "movie_lines.txt", "movie_conversations.txt"


def read_cornell(source: Source) -> Iterator[Dialogue]:
    """Two files in one folder, in ISO-8859-1: what was said by its name, and the names of what each dialogue has."""
    folder = source.path if source.path.is_dir() else source.path.parent
    missing = [name for name in (CORNELL_LINES, CORNELL_CONVERSATIONS) if not (folder / name).is_file()]
    if missing:
        raise DialogueError(f"{folder} holds no {' and no '.join(missing)}; the Cornell corpus is these two files")
    with _Lines(source.other(folder / CORNELL_LINES)) as said:
        yield from _cornell(source, folder, said)


def _cornell(source: Source, folder: Path, said: _Lines) -> Iterator[Dialogue]:
    for number, line in source.other(folder / CORNELL_CONVERSATIONS).lines():
        fields = line.decode("latin-1").split(FIELDS)
        if len(fields) != 4:
            if line:
                source.problem(number, f"{CORNELL_CONVERSATIONS}: {len(fields)} fields, expected 4")
            continue
        try:
            names = ast.literal_eval(fields[3].strip())
            pairs = [said[name] for name in names]
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            source.problem(number, f"{CORNELL_CONVERSATIONS}: no list of the names of lines")
        except KeyError as error:
            source.problem(number, f"{CORNELL_CONVERSATIONS}: there is no line {error.args[0]} in {CORNELL_LINES}")
        else:
            kept = [(who, text) for who, text in pairs if text]
            yield Dialogue([text for _, text in kept], None, [who for who, _ in kept], number)


class _Lines:
    """Where each line of the corpus stands in its file: 12 bytes a line, not the text."""

    LIMIT = 4_000_000  # lines; the corpus has 304,713

    def __init__(self, source: Source) -> None:
        self.file = opened(source.path)
        self.places, numbers = array("q"), []
        place = 0
        for raw in iter(lambda: self.file.readline(LINE_LIMIT), b""):
            name = raw.split(b" ", 1)[0]
            if name[:1] == b"L" and name[1:].isdigit() and len(name) < 12:
                numbers.append(int(name[1:]))
                self.places.append(place)
            place += len(raw)
            source.on_bytes(len(raw))
            if len(numbers) > self.LIMIT:
                raise DialogueError(f"{source.path} has more than {self.LIMIT:,} lines; the Cornell corpus has 304,713")
        self.where = dict(zip(numbers, self.places, strict=True))

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getitem__(self, name: str) -> tuple[str, str]:
        """Who says a line, and what; KeyError where there is none of that name."""
        if not isinstance(name, str) or not name[1:].isdecimal() or int(name[1:12]) not in self.where:
            raise KeyError(name)
        self.file.seek(self.where[int(name[1:])])
        fields = self.file.readline(LINE_LIMIT).decode("latin-1").rstrip("\r\n").split(FIELDS.rstrip())
        if len(fields) != 5:
            raise KeyError(name)
        return fields[3].strip(), " ".join(fields[4].split())


def read_topical(source: Source) -> Iterator[Dialogue]:
    """One object with a dialogue under each name: {"t_1": {"content": [{"message", "agent"}]}}."""
    yield from told(source, _topical(source))


def _topical(source: Source) -> Iterator[Dialogue]:
    with source.json() as stream:
        for name in stream.members():
            line, content = stream.line, stream.value()
            listed = content.get("content") if type(content) is dict else None
            messages = listed if type(listed) is list else [None]
            pairs: list[Any] = [(m.get("agent"), m.get("message")) if type(m) is dict else (0, 0) for m in messages]
            if all(type(agent) is str and type(text) is str for agent, text in pairs):
                yield Dialogue([text.strip() for _, text in pairs], None, [agent for agent, _ in pairs], line)
            else:
                source.problem(line, f'{name[:50]}: no list of messages under "content"')
        stream.end()


def _line_of(head: Head) -> str:
    return head.lines[0] if head.lines else ""


def _is_cornell(head: Head) -> bool:
    if head.names:
        return {CORNELL_LINES, CORNELL_CONVERSATIONS} <= head.names
    return FIELDS.strip() in _line_of(head)


def _is_personachat(head: Head) -> bool:
    numbered = [_NUMBERED.fullmatch(line) for line in head.lines]
    begins = bool(numbered) and numbered[0] is not None and all(numbered[1:3])
    return begins and any(_PERSONA.match(m[2]) or "\t" in m[2] for m in numbered if m)


KINDS = (
    Kind(
        "dailydialog",
        "DailyDialog: a dialogue a line, __eou__ behind every turn",
        lambda head: END_OF_UTTERANCE in _line_of(head),
        line_reader(parse_daily),
        parse_daily,
    ),
    Kind(
        "empathetic",
        "EmpatheticDialogues' table",
        lambda head: _line_of(head).startswith(_EMPATHETIC),
        each(read_empathetic),
    ),
    Kind("personachat", "PersonaChat and ConvAI2 as ParlAI has them", _is_personachat, each(read_personachat)),
    Kind(
        "blended-skill-talk",
        "BlendedSkillTalk's JSON",
        lambda head: head.has(1, "free_messages", "guided_messages") or head.has(1, "personas", "dialog"),
        each(read_blended),
    ),
    Kind("cornell", "the Cornell movie dialogues: the folder of its two files", _is_cornell, each(read_cornell)),
    Kind(
        "topical-chat",
        "Topical-Chat's JSON",
        lambda head: head.has(2, "content") and head.has(3, "message", "agent"),
        each(read_topical),
    ),
)
