"""DialogRPT: models that predict how people would rate a reply.

Gao et al., "Dialogue Response Ranking Training with Large-Scale Human Feedback Data" (2020), and golsun/DialogRPT,
src/score.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dialogpt.decoding.stop import Stop, Stopped
from dialogpt.errors import DialogueError
from dialogpt.model import GPT2
from dialogpt.ranking.rerankers import load_helper
from dialogpt.ranking.scoring import MICRO_BATCH
from dialogpt.tokenizer import Tokenizer
from dialogpt.weights import Source, load_ranking_head, open_checkpoint

HUMAN = ("human_vs_rand", "human_vs_machine")  # heads that predict whether a reply is human, not how good it is
HEADS = (*HUMAN, "updown", "width", "depth")


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
            heads.append(Head(name, weight, load_helper(checkpoint, tokenizer), load_ranking_head(checkpoint)))
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
