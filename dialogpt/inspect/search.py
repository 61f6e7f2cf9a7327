"""What was considered beside the reply: candidates with their ranks, the tree of a beam search, draft tokens.

The reply itself comes from `dialogpt.replies`; a beam search, which tells nobody what it dropped, is run once more with
a decoder that takes notes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dialogpt.decoding.beam_search import EXCLUDED, beam_search
from dialogpt.decoding.loop import Decoder
from dialogpt.decoding.sequence import TokenSequence
from dialogpt.decoding.speculative import Draft
from dialogpt.decoding.stop import Stop
from dialogpt.decoding.stop_strings import StopStrings
from dialogpt.generation import Reply
from dialogpt.generation_config import GenerationConfig
from dialogpt.history import Prompt
from dialogpt.model import GPT2
from dialogpt.ranking.scoring import score
from dialogpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Branch:
    """A token that a beam search kept for one step at least.

    Attributes:
        step: how many tokens of the reply come before it.
        token: its id.
        parent: index of the branch that it goes on from; None at the root.
        log_probability: of the reply up to and with it, by the network; a natural logarithm.
    """

    step: int
    token: int
    parent: int | None
    log_probability: float


@dataclass(frozen=True)
class DraftRound:
    """Tokens that a draft suggested together.

    Attributes:
        start: how many tokens of the reply come before them.
        tokens: what was suggested.
        accepted: how many of them the network generated too.
    """

    start: int
    tokens: list[int]
    accepted: int


@dataclass(frozen=True)
class Considered:
    """What was considered beside a reply; parts that the settings do not use are empty.

    Attributes:
        candidates: replies to choose from, the best first, the chosen one among them.
        branches: of a beam search, parents before children.
        beams: the replies that it finished, the best first.
        rounds: of a draft, in order.
    """

    candidates: Sequence[Reply] = ()
    branches: Sequence[Branch] = ()
    beams: Sequence[Reply] = ()
    rounds: Sequence[DraftRound] = ()


class _BeamRecorder(Decoder):
    """A decoder that keeps which beam went on from which, and with what token."""

    def __init__(self, model: GPT2, tokenizer: Tokenizer, stop: Stop | None) -> None:
        super().__init__(model, tokenizer, stop)
        self.branches: list[Branch] = []
        self._branch_of: dict[int, int | None] = {}  # the last branch of each sequence
        self._log_probabilities: dict[int, Tensor] = {}

    def next_logits(self) -> tuple[list[TokenSequence], Tensor]:
        active, logits = super().next_logits()
        rows = logits.log_softmax(dim=-1)  # (B, V)
        self._log_probabilities = {id(row): rows[place] for place, row in enumerate(active)}
        return active, logits

    def reorder(self, choices: Sequence[tuple[TokenSequence, TokenSequence, int]]) -> None:
        made: dict[tuple[int | None, int], int] = {}
        before = dict(self._branch_of)
        for row, parent, token in choices:
            origin = before.get(id(parent))
            if (origin, token) not in made:
                made[origin, token] = len(self.branches)
                so_far = 0.0 if origin is None else self.branches[origin].log_probability
                added = float(self._log_probabilities[id(parent)][token])
                step = len(parent.ids) - parent.prompt_length
                self.branches.append(Branch(step, token, origin, so_far + added))
            self._branch_of[id(row)] = made[origin, token]
        super().reorder(choices)


@torch.inference_mode()
def record_beams(
    model: GPT2,
    tokenizer: Tokenizer,
    config: GenerationConfig,
    prompt: Prompt,
    generator: torch.Generator,
    stop: Stop | None = None,
) -> tuple[list[Branch], list[Reply]]:
    """Run a beam search, and return its tree and the replies that it finished, the best first.

    The search keeps no beam for a reply's last token, so it is added to the tree afterwards, with an end token where
    that ended the reply.

    Args:
        model: the network.
        tokenizer: of the same checkpoint.
        config: with `num_beams` above 1.
        prompt: what is answered.
        generator: where beam sampling draws from, in the state in which the reply's search began.
        stop: asked before every step; true ends it.

    Raises:
        Stopped: `stop` returned true.
        DialogueError: see `beam_search`.
    """
    recorder = _BeamRecorder(model, tokenizer, stop)
    (beams,) = beam_search(recorder, [prompt], replace(config, num_return_sequences=config.num_beams), [generator])
    finished = [Reply(beam.ids, beam.finish_reason, beam.score) for beam in beams if beam.score > EXCLUDED / 2]
    ends = ([tokenizer.eos_id] if ended_by_token(config, tokenizer, reply) else [] for reply in finished)
    whole = [ids for reply, end in zip(finished, ends, strict=True) if (ids := [*reply.ids, *end])]
    scores = score(model, [[*prompt.ids, *ids] for ids in whole], [len(prompt.ids)] * len(whole), stop=stop)
    for ids, found in zip(whole, scores, strict=True):
        _add_path(recorder.branches, ids, found.log_probabilities)
    return recorder.branches, finished


def ended_by_token(config: GenerationConfig, tokenizer: Tokenizer, reply: Reply) -> bool:
    """Whether the end token ended a reply, rather than a stop string or its length."""
    return reply.finish_reason == "stop" and not stopped_by_text(config, tokenizer, reply.ids)


def stopped_by_text(config: GenerationConfig, tokenizer: Tokenizer, ids: Sequence[int]) -> bool:
    """Whether a stop string ended these tokens of a reply."""
    texts = config.stop_strings
    return bool(texts and ids) and StopStrings(texts or (), tokenizer).end(ids)


def _add_path(branches: list[Branch], ids: Sequence[int], log_probabilities: Sequence[float]) -> None:
    """Add what a tree lacks of a reply, in place; `log_probabilities` are each token's own."""
    known = {(branch.parent, branch.token): place for place, branch in enumerate(branches)}
    parent: int | None = None
    total = 0.0
    for step, (token, added) in enumerate(zip(ids, log_probabilities, strict=True)):
        total += added
        if (parent, token) not in known:
            known[parent, token] = len(branches)
            branches.append(Branch(step, token, parent, total))
        parent = known[parent, token]


class RecordingDraft(Draft):
    """A draft that keeps what it suggested for the reply under way.

    Attributes:
        rounds: of the last reply; those of a blank one that was generated anew are forgotten.
    """

    def __init__(self, draft: Draft) -> None:
        """Suggest what another draft would."""
        super().__init__(draft.model, compared=draft.compared)
        self.rounds: list[DraftRound] = []
        self._pending: tuple[int, list[int]] = (0, [])

    def propose(self, sequence: TokenSequence, max_tokens: int, vocab_size: int) -> list[int]:
        """See `Draft.propose`."""
        start = len(sequence.ids) - sequence.prompt_length
        if self.rounds and start <= self.rounds[-1].start:
            self.rounds.clear()
        tokens = super().propose(sequence, max_tokens, vocab_size)
        self._pending = (start, tokens)
        return tokens

    def record(self, proposed: int, accepted: int) -> None:
        """See `Draft.record`."""
        super().record(proposed, accepted)
        start, tokens = self._pending
        if proposed:
            self.rounds.append(DraftRound(start, tokens, accepted))
