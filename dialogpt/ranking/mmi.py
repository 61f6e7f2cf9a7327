"""Maximum mutual information: a reverse model rates how well a reply predicts what was replied to.

Zhang et al., "DialoGPT" (2020), section 3.2: the candidate wins after which a model that was trained on reversed
dialogues gives the user's turn the highest probability.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from dialogpt.decoding.stop import Stop
from dialogpt.errors import DialogueError
from dialogpt.model import GPT2
from dialogpt.ranking.rerankers import load_helper
from dialogpt.ranking.scoring import MICRO_BATCH, score
from dialogpt.tokenizer import Tokenizer
from dialogpt.weights import Source, open_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MMI:
    """log P(source | reply), under a model of reversed dialogues; the source is what was replied to.

    Attributes:
        model: the reverse network.
        eos_id: ends every turn.
        turns: how many of the last turns are the source; None is all of them, the newest first.
        micro_batch: how many candidates are scored per pass.
    """

    model: GPT2
    eos_id: int
    turns: int | None = 1
    micro_batch: int = MICRO_BATCH

    @classmethod
    def load(cls, source: Source, tokenizer: Tokenizer, **settings: int | None) -> MMI:
        """Open a reverse model.

        Raises:
            CheckpointError: it cannot be used.
            DialogueError: it is no reverse model, or its vocabulary is another one.
        """
        checkpoint = open_checkpoint(source)
        if checkpoint.reverse is False:
            raise DialogueError(
                f"{checkpoint.shown_name} is a forward model, which was trained to answer; expected a reverse model, "
                f"which was trained with --reverse"
            )
        model = load_helper(checkpoint, tokenizer)
        if checkpoint.reverse is None:
            logger.warning(
                "%s does not say whether it is a reverse model; what was not trained with --reverse ranks badly",
                checkpoint.shown_name,
            )
        return cls(model, tokenizer.eos_id, **settings)  # type: ignore[arg-type]

    def scores(
        self, turns: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], stop: Stop | None = None
    ) -> list[float]:
        """See `Reranker`; a natural logarithm, 0 or below."""
        answered = (
            turns[-1:] if self.turns == 1 else turns[::-1] if self.turns is None else turns[: -self.turns - 1 : -1]
        )
        source = [token for turn in answered for token in (*turn, self.eos_id)]
        room = self.model.config.n_positions
        longest = min(max(map(len, replies), default=0) + 1, room - 1)
        source = source[: room - longest]  # equally long for all candidates, so that their sums compare
        sequences = [[*[*reply, self.eos_id][:longest], *source] for reply in replies]
        begins = [len(sequence) - len(source) for sequence in sequences]
        return [found.total for found in score(self.model, sequences, begins, micro_batch=self.micro_batch, stop=stop)]
