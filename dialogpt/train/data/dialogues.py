"""Dialogues from files, one a line: JSONL, or the TSV of DialoGPT's own training data.

A line gives a dialogue or the reason why it cannot be used; nothing is dropped in silence. Turning text into ids is
left to `dialogpt.train.data.prepare`. The TSV follows microsoft/DialoGPT, prepro.py, without guessing: there any first
word that Python reads as a number is taken for a weight ("20 years old", "nan").
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dialogpt.errors import DialogueError

LINE_LIMIT = 16 << 20  # bytes; the longest conversation of chitchat-dataset has 60 kB
BETWEEN_TURNS = " EOS "
_WEIGHT = re.compile(r"(\d+(?:\.\d+)?) (.*)", re.DOTALL)


@dataclass(frozen=True)
class Dialogue:
    """What was said, oldest first.

    Attributes:
        turns: none of them blank.
        weights: one for each turn, at least 0: how much its tokens count in the loss; None counts all alike.
    """

    turns: list[str]
    weights: list[float] | None = None

    def reversed(self) -> Dialogue:
        """The dialogue from its end, for a model of the source given the reply (MMI; DialoGPT, section 3.2).

        A weight says how much the step to a reply counts. The same step backwards ends at the turn before, so that
        turn takes the weight: DialoGPT's sources, with their own 0.0, would all be masked otherwise.
        """
        if self.weights is None:
            return Dialogue(self.turns[::-1])
        return Dialogue(self.turns[::-1], [self.weights[-1], *self.weights[:0:-1]])


@dataclass(frozen=True)
class Format:
    """How the lines of some files are to be read.

    Attributes:
        tsv_weights: whether every turn of a TSV begins with its weight and a space, as DialoGPT's data has it.
        fewest_turns: dialogues with fewer have nothing to learn.
        reverse: whether dialogues are turned round.
        window: the most tokens that the model sees at once; a turn that is longer is reported.
    """

    window: int
    tsv_weights: bool = False
    fewest_turns: int = 2
    reverse: bool = False


def parser_of(path: Path, form: Format) -> Callable[[str], Dialogue]:
    """What reads the lines of a file, by its suffix.

    Raises:
        DialogueError: the suffix is not known.
    """
    if path.suffix.lower() in (".jsonl", ".json"):
        return parse_json
    if path.suffix.lower() == ".tsv":
        return parse_weighted_tsv if form.tsv_weights else parse_tsv
    raise DialogueError(
        f"{path} is neither .jsonl nor .tsv; expected one dialogue a line, as "
        f'{{"turns": ["Hi!", "Hello."]}} or as DialoGPT\'s TSV'
    )


def parse_line(data: bytes, parse: Callable[[str], Dialogue], form: Format) -> Dialogue:
    """One line as a dialogue that can be learned from.

    Raises:
        DialogueError: it cannot; the reason.
    """
    if len(data) > LINE_LIMIT:
        raise DialogueError(f"longer than {LINE_LIMIT >> 20} MiB")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise DialogueError(f"not UTF-8 (byte 0x{data[error.start]:02x} at place {error.start + 1})") from None
    dialogue = parse(text.rstrip("\r\n"))
    _check(dialogue, form)
    return dialogue.reversed() if form.reverse else dialogue


def _check(dialogue: Dialogue, form: Format) -> None:
    """Raise unless there is something to learn."""
    blank = next((n for n, turn in enumerate(dialogue.turns, 1) if not turn.strip()), None)
    if blank is not None:
        raise DialogueError(f"turn {blank} is blank")
    if len(dialogue.turns) < form.fewest_turns:
        raise DialogueError(f"{_counted(len(dialogue.turns), 'turn')}, at least {form.fewest_turns} needed")
    weights = dialogue.weights
    if weights is None:
        return
    if len(weights) != len(dialogue.turns):
        raise DialogueError(f"{_counted(len(weights), 'weight')} for {_counted(len(dialogue.turns), 'turn')}")
    wrong = [weight for weight in weights if not _is_weight(weight)]
    if wrong:
        raise DialogueError(f"a weight is {_shortened(wrong[0])}, expected 0 or 0.000001 to 1,000,000")
    learned = dialogue.reversed().weights if form.reverse else weights
    if not any((learned or [])[form.fewest_turns - 1 :]):
        raise DialogueError("every weight is 0, so nothing is learned")


def _is_weight(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and bool(value == 0 or 1e-6 <= value <= 1e6)


def _shortened(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) < 30 else f"{shown[:30]}..."


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def parse_json(line: str) -> Dialogue:
    """A line of JSONL: {"turns": [...], "weights": [...]}; weights may be left out, other keys are not looked at."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DialogueError(f"not valid JSON ({error})") from None
    turns = content.get("turns") if isinstance(content, dict) else None
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        raise DialogueError('no list of texts under "turns"')
    weights = content.get("weights")
    if weights is not None and not isinstance(weights, list):
        raise DialogueError('"weights" is not a list of numbers')
    return Dialogue(turns, weights)


def parse_tsv(line: str) -> Dialogue:
    """A line of TSV: the turns before the last, with " EOS " between them, a tab, and the last turn."""
    columns = line.split("\t")
    if len(columns) != 2:
        raise DialogueError(f"{_counted(len(columns), 'column')}, expected 2: source, tab, reply")
    return Dialogue([turn for column in columns for turn in column.split(BETWEEN_TURNS)])


def parse_weighted_tsv(line: str) -> Dialogue:
    """A line of TSV in which every turn begins with its weight: "0.0 hi EOS 1.0 hello", a tab, "1.0 bye"."""
    matches = [(_WEIGHT.fullmatch(turn), turn) for turn in parse_tsv(line).turns]
    missing = next((turn for match, turn in matches if match is None), None)
    if missing is not None:
        raise DialogueError(f"the turn {missing[:30]!r} does not begin with a weight")
    parts = [match.groups() for match, _ in matches if match is not None]
    return Dialogue([text for _, text in parts], [float(weight) for weight, _ in parts])
