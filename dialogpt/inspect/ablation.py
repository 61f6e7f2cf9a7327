"""What earlier turns are worth to a reply: its log-probability without them, which attention weights cannot say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dialogpt.decoding.stop import Stop
from dialogpt.model import GPT2
from dialogpt.ranking.scoring import score


@dataclass(frozen=True)
class Ablation:
    """A reply to a dialogue from which turns were removed.

    Attributes:
        removed: indices of the removed turns.
        log_probabilities: of each token of the reply then, natural logarithms.
    """

    removed: list[int]
    log_probabilities: list[float]


def ablate(
    model: GPT2, turns: Sequence[Sequence[int]], reply: Sequence[int], eos_id: int, stop: Stop | None = None
) -> list[Ablation]:
    """Score a reply without each turn alone, and, of three turns or more, without all but the last.

    Args:
        model: the network.
        turns: the turns that it was shown, each with its end token.
        reply: its tokens, the end token among them where it ended.
        eos_id: stands in for the dialogue where nothing of it is left.
        stop: asked before every pass; true ends it all.

    Raises:
        Stopped: `stop` returned true.
    """
    removals = [[place] for place in range(len(turns))]
    if len(turns) > 2:
        removals.append(list(range(len(turns) - 1)))
    prompts = [
        [token for place, turn in enumerate(turns) if place not in removed for token in turn] or [eos_id]
        for removed in removals
    ]
    scores = score(model, [[*prompt, *reply] for prompt in prompts], [len(prompt) for prompt in prompts], stop=stop)
    return [Ablation(removed, found.log_probabilities) for removed, found in zip(removals, scores, strict=True)]
