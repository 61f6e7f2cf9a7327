"""What every reader gives: a dialogue, a message of a chat, or the reason why something is left out.

Reading files is left to `formats`, what is done to dialogues to `transform`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dialogpt.errors import DialogueError

MAX_MESSAGES = 10_000  # of one dialogue; a chat without a pause is cut there, so that memory stays flat


@dataclass(slots=True)
class Dialogue:
    """What was said, oldest first.

    Attributes:
        turns: none of them blank.
        weights: one for each turn, at least 0: how much its tokens count in the loss; None counts all alike.
        speakers: one for each turn, or None where nobody says who speaks: then two take turns.
        line: where it begins in its file, from 1; of a table, its row.
        references: what people replied to the last turn, where the file has that beside the turns and
            `Reading.references` asks for it.
    """

    turns: list[str]
    weights: list[float] | None = None
    speakers: list[str] | None = None
    line: int = field(default=0, compare=False)
    references: Sequence[str] = ()

    def reversed(self) -> Dialogue:
        """The dialogue from its end, for a model of the source given the reply (MMI; DialoGPT, section 3.2).

        A weight says how much the step to a reply counts. The same step backwards ends at the turn before, so that
        turn takes the weight: DialoGPT's sources, with their own 0.0, would all be masked otherwise.
        """
        weights = None if self.weights is None else [self.weights[-1], *self.weights[:0:-1]]
        speakers = None if self.speakers is None else self.speakers[::-1]
        return Dialogue(self.turns[::-1], weights, speakers, self.line)


class Message(NamedTuple):
    """One message of a chat: the line it begins at, who wrote it, when (seconds, of any clock), and what."""

    line: int
    speaker: str
    seconds: float | None
    text: str


class Problem(NamedTuple):
    """What was left out: of which file, at which line (0 is all of it), and why."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        place = f", line {self.line}" if self.line else ""
        return f"{self.path}{place}: {self.reason}"


def grouped(messages: Iterable[Message], gap_seconds: float | None) -> Iterator[Dialogue]:
    """Cut the messages of a chat into dialogues, at every silence that is longer than the gap.

    Consecutive messages of one person stay apart here; `transform` makes one turn of them.

    Args:
        messages: in the order of time.
        gap_seconds: None cuts nowhere but after `MAX_MESSAGES`.
    """
    turns: list[str] = []
    speakers: list[str] = []
    line, before = 0, None
    for message in messages:
        silent = (
            gap_seconds is not None
            and before is not None
            and message.seconds is not None
            and message.seconds - before > gap_seconds
        )
        if turns and (silent or len(turns) >= MAX_MESSAGES):
            yield Dialogue(turns, None, speakers, line)
            turns, speakers = [], []
        if not turns:
            line = message.line
        turns.append(message.text)
        speakers.append(message.speaker)
        before = message.seconds if message.seconds is not None else before
    if turns:
        yield Dialogue(turns, None, speakers, line)


def check_values(dialogue: Dialogue) -> None:
    """Raise unless turns, references, speakers and weights are what `Dialogue` says.

    Raises:
        DialogueError: the reason.
    """
    turns, weights = dialogue.turns, dialogue.weights
    _check_texts("turn", turns)
    if dialogue.references:
        _check_texts("reference", dialogue.references)
    if dialogue.speakers is not None and _holds_surrogate("".join(dialogue.speakers)):
        raise DialogueError("a speaker's name holds half a character (\\ud800 to \\udfff alone)")
    if weights is None:
        return
    if len(weights) != len(turns):
        raise DialogueError(f"{counted(len(weights), 'weight')} for {counted(len(turns), 'turn')}")
    if {*map(type, weights)} <= {int, float} and {*weights} <= {0, 1}:
        return  # mostly
    for weight in weights:
        if not _is_weight(weight):
            raise DialogueError(f"a weight is {_shortened(weight)}, expected 0 or 0.000001 to 1,000,000")


def check_enough(dialogue: Dialogue, *, min_turns: int, reverse: bool = False, trains: bool = True) -> None:
    """Raise unless there is something to learn.

    Args:
        dialogue: of checked values.
        min_turns: dialogues with fewer have nothing to learn.
        reverse: whether it will be learned backwards, as it then has its weights at other turns.
        trains: whether it is training data, of which some turn must have a weight.

    Raises:
        DialogueError: the reason.
    """
    turns, weights = dialogue.turns, dialogue.weights
    if len(turns) < min_turns:
        raise DialogueError(f"{counted(len(turns), 'turn')}, at least {min_turns} needed")
    if weights is None or not trains or not min_turns:
        return
    targets = dialogue.reversed().weights if reverse else weights
    if not any((targets or [])[1 if min_turns > 1 else 0 :]):
        raise DialogueError("every weight is 0, so nothing is learned")


def _check_texts(what: str, texts: Sequence[str]) -> None:
    """Refuse blank texts and halves of characters; all at once, as mostly none is there."""
    if all(map(str.strip, texts)) and not _holds_surrogate("".join(texts)):
        return
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise DialogueError(f"{what} {number} is blank")
        if _holds_surrogate(text):
            raise DialogueError(f"{what} {number} holds half a character (\\ud800 to \\udfff alone)")


def _holds_surrogate(text: str) -> bool:
    try:
        text.encode()  # ten times as fast as a search
    except UnicodeEncodeError:
        return True
    return False


def _is_weight(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and bool(value == 0 or 1e-6 <= value <= 1e6)


def _shortened(value: Any) -> str:
    try:
        shown = repr(value)
    except ValueError:  # Python prints no whole number of more than 4,300 digits
        return "a number of thousands of digits"
    return shown if len(shown) < 30 else f"{shown[:30]}..."


def counted(number: int, thing: str) -> str:
    """A number of things, in words: "1 turn", "2 turns"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def texts(values: Sequence[Any]) -> bool:
    """Whether all values are texts."""
    try:
        "".join(values)  # four times as fast as a look at each type
    except TypeError:
        return False
    return True
