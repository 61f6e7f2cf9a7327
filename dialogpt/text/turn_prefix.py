"""What turns begin with in a fine-tune that was trained with speaker tokens: ``<speaker1> Hi!``, then ``<speaker2>``.

DialoGPT itself has no prefixes. Encoding them is left to `dialogpt.text.prefix_ids`, prompts to `dialogpt.history`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TurnPrefix:
    """What the turns of each speaker begin with, by their role.

    Attributes:
        ids: tokens in front of a turn; the prompt ends with those of the bot, and the network goes on from there.
        gaps: white space between them and the turn's text.
    """

    ids: dict[str, tuple[int, ...]] = field(default_factory=dict)
    gaps: dict[str, str] = field(default_factory=dict)

    def of(self, role: str) -> Sequence[int]:
        """The tokens in front of a speaker's turn; a system message has none."""
        return self.ids.get(role, ())

    def gap(self, role: str) -> str:
        """The white space in front of a speaker's text."""
        return self.gaps.get(role, "")


NO_PREFIX = TurnPrefix()


def strip_gap(text: str, gap: str) -> tuple[str, str]:
    """Remove the gap from the start of a streamed text; return the rest, and the part of the gap yet to come."""
    overlap = min(len(text), len(gap))
    shared = next((n for n in range(overlap) if text[n] != gap[n]), overlap)
    return text[shared:], gap[shared:] if shared == len(text) else ""
