"""Rerankers of candidate replies: a reverse model (MMI), or a model of how people would rate them (DialogRPT).

MMI follows Zhang et al., "DialoGPT" (2020), section 3.2: the candidate wins after which a model that was
trained on reversed dialogues gives the user's turn the highest probability. DialogRPT follows Gao et al., "Dialogue
Response Ranking Training with Large-Scale Human Feedback Data" (2020), and golsun/DialogRPT, src/score.py. Sampling
the candidates is left to `dialogpt.replies`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from dialogpt.decoding.sequence import Stop, Stopped
from dialogpt.errors import DialogueError
from dialogpt.generation import Reply
from dialogpt.model import GPT2
from dialogpt.ranking.scoring import MICRO_BATCH, score
from dialogpt.tokenizer import Tokenizer
from dialogpt.weights import Source, load, load_ranking_head, open_checkpoint

logger = logging.getLogger(__name__)
HUMAN = ("human_vs_rand", "human_vs_machine")  # heads that predict whether a reply is human, not how good it is
HEADS = (*HUMAN, "updown", "width", "depth")


class Reranker(Protocol):
    """Scores candidate replies to one dialogue."""

    def scores(
        self, turns: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], stop: Stop | None = None
    ) -> list[float]:
        """Return a score for each reply, the best highest.

        Args:
            turns: the dialogue, oldest first, without end tokens; its last turn is answered.
            replies: candidates, without end tokens.
            stop: asked before every pass; true cancels.

        Raises:
            Stopped: `stop` said so.
        """
        ...


def ranked(
    reranker: Reranker, turns: Sequence[Sequence[int]], replies: Sequence[Reply], stop: Stop | None = None
) -> list[Reply]:
    """Return the replies with their ranks, the best first; equal ones keep their order.

    Raises:
        Stopped: `stop` said so.
    """
    ranks = reranker.scores(turns, [reply.ids for reply in replies], stop)
    order = sorted(range(len(ranks)), key=lambda index: -ranks[index])
    return [replace(replies[index], rank=ranks[index]) for index in order]


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
        model = _load(checkpoint, tokenizer)
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


@dataclass(frozen=True)
class Head:
    """One of DialogRPT's models.

    Attributes:
        name: what it predicts, one of `HEADS`.
        weight: of its prediction among those of its kind.
        model, head: the network, and (1, C), its last layer.
    """

    name: str
    weight: float
    model: GPT2
    head: Tensor


@dataclass(frozen=True)
class DialogRPT:
    """How much people would like a reply: the weighted predictions of one or several heads.

    A score is the product of two factors: the weighted mean of the heads in `HUMAN`, and the weighted sum of all other
    heads; a factor without heads is 1. The sum is not divided by the sum of its weights, as in DialogRPT's
    own code: a negative sum would reverse the order.

    Attributes:
        heads: the models.
        eos_id: ends every turn.
        micro_batch: how many candidates are scored per pass.
    """

    heads: tuple[Head, ...]
    eos_id: int
    micro_batch: int = MICRO_BATCH

    @classmethod
    def load(cls, sources: Sequence[tuple[str, float, Source]], tokenizer: Tokenizer) -> DialogRPT:
        """Open its models.

        Args:
            sources: name, weight and checkpoint of each.
            tokenizer: of the model whose replies are scored.

        Raises:
            CheckpointError: one cannot be used, or has no ranking head.
            DialogueError: a name is unknown, or a vocabulary is another one.
        """
        names = [name for name, _, _ in sources]
        for name, weight, _ in sources:
            if name not in HEADS:
                raise DialogueError(f"there is no ranking head {name!r}; there are {', '.join(HEADS)}")
            if names.count(name) > 1:
                raise DialogueError(f"the ranking head {name!r} is named twice; name it once")
            if not math.isfinite(weight):
                raise DialogueError(f"the weight of {name!r} is {weight}; expected a number")
        if any(name in HUMAN for name in names) and not sum(weight for name, weight, _ in sources if name in HUMAN) > 0:
            raise DialogueError(f"the weights of {' and '.join(HUMAN)} must have a sum above 0; they make a mean")
        heads = []
        for name, weight, source in sources:
            checkpoint = open_checkpoint(source)
            heads.append(Head(name, weight, _load(checkpoint, tokenizer), load_ranking_head(checkpoint)))
        return cls(tuple(heads), tokenizer.eos_id)

    def scores(
        self, turns: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], stop: Stop | None = None
    ) -> list[float]:
        """See `Reranker`."""
        predictions = {head.name: self.predict(head, turns, replies, stop) for head in self.heads}
        humans = [head for head in self.heads if head.name in HUMAN]
        others = [head for head in self.heads if head.name not in HUMAN]
        total = torch.ones(len(replies))
        if humans:
            weights = sum(head.weight for head in humans)
            total = total * torch.stack([predictions[head.name] * head.weight for head in humans]).sum(dim=0) / weights
        if others:
            total = total * torch.stack([predictions[head.name] * head.weight for head in others]).sum(dim=0)
        return [float(value) for value in total]

    @torch.inference_mode()
    def predict(
        self,
        head: Head,
        turns: Sequence[Sequence[int]],
        replies: Sequence[Sequence[int]],
        stop: Stop | None = None,
    ) -> Tensor:
        """Predict each reply by one head, 0 to 1: (replies,); arguments and errors are those of `scores`.

        Every turn of the dialogue has its end token, the reply has none; the state of its last token is what counts.
        """
        context = [token for turn in turns for token in (*turn, self.eos_id)]
        room = head.model.config.n_positions
        sequences = []
        for reply in replies:
            said = list(reply[-room:]) or [self.eos_id]
            sequences.append(
                [*context[len(context) + len(said) - room if len(context) + len(said) > room else 0 :], *said]
            )
        found = []
        for first in range(0, len(sequences), self.micro_batch):
            if stop is not None and stop():
                raise Stopped
            part = sequences[first : first + self.micro_batch]
            lengths = torch.tensor([len(ids) for ids in part])
            padded = torch.tensor(
                [ids + [0] * (int(lengths.max()) - len(ids)) for ids in part], device=head.head.device
            )
            hidden = head.model.hidden(padded, lengths=lengths)  # (B, T, C)
            last = hidden[torch.arange(len(part)), lengths - 1]  # (B, C)
            found.append(torch.sigmoid(last @ head.head.T)[:, 0].float().cpu())
        return torch.cat(found) if found else torch.empty(0)


def load_reranker(sources: Sequence[tuple[str, float, Source]], tokenizer: Tokenizer) -> Reranker:
    """Open what `--rerank` names: one reverse model, "mmi", or DialogRPT heads; see their `load`."""
    return MMI.load(sources[0][2], tokenizer) if sources[0][0] == "mmi" else DialogRPT.load(sources, tokenizer)


def _load(source: Source, tokenizer: Tokenizer) -> GPT2:
    """Load a network with the same vocabulary as the replies'."""
    checkpoint = open_checkpoint(source)
    tokenizer.require_same(checkpoint)
    return load(checkpoint)
