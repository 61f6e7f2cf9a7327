"""How dialogues are read for training: the reading settings of `dialogpt.data`, and the limits that a model sets.

File formats and transformations are left to `dialogpt.data`, tokenizing to `prepare`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dialogpt.data import Dialogue, Reading
from dialogpt.data.read import share_of
from dialogpt.data.transform import Transformer

ALL = (0.0, 1.0)  # every dialogue


@dataclass(frozen=True)
class Format:
    """How files are read.

    Attributes:
        window: the maximum number of tokens of a row; longer turns are reported.
        fewest_turns: dialogues with fewer turns have no targets and are skipped.
        reverse: whether the order of turns is reversed.
        reading: their kind, and the transformations.
        share: the half-open range of `share_of` in which dialogues are selected. Held-out dialogues have one range and
            training dialogues the other, and stay there when data is added.
    """

    window: int
    fewest_turns: int = 2
    reverse: bool = False
    reading: Reading = field(default_factory=Reading)
    share: tuple[float, float] = ALL

    def transformer(self) -> Transformer:
        """Return the transformer that is applied to each dialogue."""
        return Transformer(self.reading, min_turns=self.fewest_turns, reverse=self.reverse)

    def takes(self, dialogue: Dialogue) -> bool:
        """Return whether a dialogue falls into the share."""
        return self.share == ALL or self.share[0] <= share_of(dialogue) < self.share[1]
