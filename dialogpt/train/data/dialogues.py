"""How dialogues are read for training: the settings of `dialogpt.data`, and what a model can use of them.

Formats, and what is done to dialogues, are left to `dialogpt.data`, turning text into ids to `prepare`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dialogpt.data import Dialogue, Reading
from dialogpt.data.read import share_of
from dialogpt.data.transform import Transformer

ALL = (0.0, 1.0)  # every dialogue


@dataclass(frozen=True)
class Format:
    """How some files are to be read.

    Attributes:
        window: the most tokens that the model sees at once; a turn that is longer is reported.
        fewest_turns: dialogues with fewer have nothing to learn.
        reverse: whether dialogues are turned round.
        reading: their kind, and what is done to them.
        share: which dialogues are taken, by `share_of`: from the first number on, below the second. Those that are held
            out have one share, those that are learned the other, whatever data is added later.
    """

    window: int
    fewest_turns: int = 2
    reverse: bool = False
    reading: Reading = field(default_factory=Reading)
    share: tuple[float, float] = ALL

    def transformer(self) -> Transformer:
        """What applies it to each dialogue."""
        return Transformer(self.reading, min_turns=self.fewest_turns, reverse=self.reverse)

    def takes(self, dialogue: Dialogue) -> bool:
        """Whether a dialogue is in the share."""
        return self.share == ALL or self.share[0] <= share_of(dialogue) < self.share[1]
