"""What was read, in numbers: how much, by whom, how long, and what looks wrong with it.

Counts are of everything; what needs a closer look at turns is judged by a sample of dialogues, evenly spread, so that
it costs nothing on a large file. Statistics of parts of the data add up to those of the whole.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from dialogpt.data.dialogue import Dialogue
from dialogpt.data.transform import END_OF_TEXT

SAMPLED = 2000  # dialogues that are kept to be looked at
SHOWN_SPEAKERS = 10
MAX_SPEAKERS = 10_000  # that are counted apart
MANY = 0.5  # of the sampled replies, when one of them is "most"
MIN_DIALOGUES = 20  # dialogues; of fewer nothing is concluded
BAR = 40  # letters of the longest bar
_WORD = re.compile(r"\w+")
_NUMBER_FIRST = re.compile(r"\d+(?:\.\d+)? ")


@dataclass
class Statistics:
    """Counts of dialogues, and a sample of them.

    Attributes:
        dialogues, turns, targets: how many; targets are turns that are learned: not the first, and of a weight.
        speakers: turns of each, where names are known.
        end_of_text: dialogues that hold the letters <|endoftext|>.
        sample: the turns of every `stride`-th dialogue.
    """

    dialogues: int = 0
    turns: int = 0
    targets: int = 0
    speakers: Counter[str] = field(default_factory=Counter)
    end_of_text: int = 0
    sample: list[list[str]] = field(default_factory=list)
    stride: int = 1

    def add(self, dialogues: Sequence[Dialogue]) -> None:
        """Count dialogues; many at once cost a third of what they do one by one."""
        turns = [dialogue.turns for dialogue in dialogues]
        self.sample += turns[-self.dialogues % self.stride :: self.stride]
        self._thin()
        self.dialogues += len(turns)
        count = sum(map(len, turns))
        self.turns += count
        self.targets += count - len(turns)
        for weights in [dialogue.weights for dialogue in dialogues if dialogue.weights is not None]:
            self.targets -= weights.count(0) - (weights[0] == 0)
        self.speakers.update(chain.from_iterable([dialogue.speakers for dialogue in dialogues if dialogue.speakers]))
        if END_OF_TEXT in "\n".join(chain.from_iterable(turns)):
            self.end_of_text += sum(END_OF_TEXT in "\n".join(own) for own in turns)
        if len(self.speakers) > 2 * MAX_SPEAKERS:
            self.speakers = Counter(dict(self.speakers.most_common(MAX_SPEAKERS)))

    def merge(self, other: Statistics) -> None:
        """Add the counts of another part of the data."""
        for name in ("dialogues", "turns", "targets", "end_of_text"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.speakers.update(other.speakers)
        while self.stride < other.stride:
            self.stride, self.sample = 2 * self.stride, self.sample[::2]
        self.sample += other.sample[:: max(1, self.stride // other.stride)]
        self._thin()

    def _thin(self) -> None:
        while len(self.sample) > SAMPLED:
            self.stride, self.sample = 2 * self.stride, self.sample[::2]

    def warnings(self) -> list[str]:
        """What looks wrong with the data, a sentence each; mostly nothing."""
        found = []
        if self.end_of_text:
            found.append(
                f"{self.end_of_text:,} dialogues hold the letters {END_OF_TEXT}, which are text and end no turn; "
                f"if they are meant to, pass --eos-in-text split"
            )
        judged = [turns for turns in self.sample if turns]
        if len(judged) < MIN_DIALOGUES:
            return found
        if all(_NUMBER_FIRST.match(turn) for turns in judged for turn in turns):
            found.append(
                "every turn begins with a number, which is read as text; if these are DialoGPT's weights, pass "
                "--tsv-weights"
            )
        replies = {_words(turns[-1]): turns[-1] for turns in judged}
        words, count = Counter(_words(turns[-1]) for turns in judged).most_common(1)[0]
        if count > MANY * len(judged):
            found.append(
                f"{count / len(judged):.0%} of the last replies are {replies[words][:40]!r}, whatever its case and "
                f"marks; a model that learns them says little else"
            )
        if len(self.speakers) == 1:
            found.append(f"all turns are by one speaker, {next(iter(self.speakers))!r}, so nobody is answered")
        return found


def _words(text: str) -> str:
    """A text without its case and punctuation, unless it has nothing else."""
    return " ".join(_WORD.findall(text.casefold())) or text


def histogram(lengths: Sequence[int]) -> list[str]:
    """Bars of how many tokens turns have, in classes that double: 1-4, 5-8, 9-16, ..."""
    if not lengths:
        return []
    classes: Counter[int] = Counter(max(2, (length - 1).bit_length()) for length in lengths)
    most = max(classes.values())
    rows = []
    for power in range(min(classes), max(classes) + 1):
        low = 1 if power == 2 else (1 << (power - 1)) + 1
        count = classes[power]
        share = f"{count / len(lengths):.0%}"
        rows.append(f"  {f'{low}-{1 << power}':>11}  {share:>4}  {'#' * round(BAR * count / most)}".rstrip())
    return rows


def described(statistics: Statistics, lengths_of: Callable[[Sequence[str]], list[int]] | None) -> list[str]:
    """The report, line by line.

    Args:
        statistics: of all that was kept.
        lengths_of: counts the tokens of turns; without it no histogram is shown.
    """
    rows = [
        f"{statistics.dialogues:,} dialogues, {statistics.turns:,} turns "
        f"({statistics.turns / max(1, statistics.dialogues):.1f} a dialogue), {statistics.targets:,} of them learned"
    ]
    if statistics.speakers:
        listed = statistics.speakers.most_common(SHOWN_SPEAKERS)
        more = len(statistics.speakers) - len(listed)
        names = ", ".join(f"{name[:40]!r} {count:,}" for name, count in listed)
        rows.append(f"speakers and their turns: {names}{f', and {more:,} more' if more else ''}")
    turns = [turn for sampled in statistics.sample for turn in sampled][: 5 * SAMPLED]
    if lengths_of is not None and turns:
        lengths = sorted(lengths_of(turns))
        of = "" if statistics.stride == 1 and len(turns) == statistics.turns else f", of {len(turns):,} of them"
        rows.append(f"tokens a turn{of}: median {lengths[len(lengths) // 2]:,}, longest {lengths[-1]:,}")
        rows += histogram(lengths)
    return rows
