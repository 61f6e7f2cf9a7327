"""Beam search: follow the most probable beginnings of a reply together, and return the best finished ones.

It follows `_beam_search` of transformers (generation/utils.py) step by step, in float32 as there; beam sampling is its
variant that samples the continuations. `dialogpt.decoding.loop` computes logits and reorders the cache.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dialogpt.decoding.loop import Decoder
from dialogpt.decoding.noise import sample_without_replacement
from dialogpt.decoding.sampling import NOT_A_NUMBER, NOTHING_LEFT, process_logits
from dialogpt.decoding.sequence import GenerationError, Outcome, TokenSequence
from dialogpt.errors import DialogueError
from dialogpt.generation_config import GenerationConfig
from dialogpt.history import Prompt
from dialogpt.model import KVCache

EXCLUDED = -1e9  # a score that never wins; finite, so that two of them can be compared, as in transformers


@dataclass(frozen=True)
class Hypothesis:
    """A finished reply of a beam search.

    Attributes:
        ids: the generated tokens without the end token.
        finish_reason: "stop" or "length".
        score: sum of log-probabilities divided by a power of the length; `EXCLUDED` for a placeholder.
    """

    ids: list[int]
    finish_reason: str
    score: float


class BeamSearch:
    """The beams of one prompt.

    Attributes:
        beams: unfinished sequences, best first.
        finished: as many hypotheses, best first; placeholders at the beginning.
        done: whether no continuation can change `finished` any more.
    """

    def __init__(self, beams: list[TokenSequence]) -> None:
        """Begin with equal sequences; the first step continues only the first, as all would be continued alike."""
        self.beams = beams
        self.config = beams[0].config
        self.scores = torch.tensor([0.0] + [EXCLUDED] * (len(beams) - 1))
        self.finished = [Hypothesis([], "length", EXCLUDED)] * len(beams)
        self.is_finished = torch.zeros(len(beams), dtype=torch.bool)
        self.improvable = True
        self.done = False

    @property
    def num_candidates(self) -> int:
        """How many continuations are considered: enough to fill all beams if the others end."""
        return max(2, 1 + len(self.config.end_ids)) * len(self.beams)

    def advance(
        self, totals: Tensor, parents: list[int], tokens: list[int]
    ) -> list[tuple[TokenSequence, TokenSequence, int]]:
        """Take one step.

        Args:
            totals: (candidates,) the sum of log-probabilities of each candidate.
            parents: the index of the beam that each continues.
            tokens: the token that each appends.

        Returns:
            For each beam: its sequence, the sequence that it continues, and the appended token.
        """
        if torch.isnan(totals).any():
            raise GenerationError(NOT_A_NUMBER)
        outcomes = [self.beams[p].outcome([*self.beams[p].ids, t]) for p, t in zip(parents, tokens, strict=True)]
        ends = torch.tensor([outcome.finish_reason is not None for outcome in outcomes])
        self._keep_finished(totals, ends, parents, tokens, outcomes)
        unfinished = totals + ends * EXCLUDED
        best = unfinished.topk(len(self.beams)).indices
        self.scores = unfinished[best]
        chosen = [
            (beam, self.beams[parents[index]], tokens[index])
            for beam, index in zip(self.beams, best.tolist(), strict=True)
        ]
        self._update_done(bool(ends.all()))
        return chosen

    def _keep_finished(
        self, totals: Tensor, ends: Tensor, parents: list[int], tokens: list[int], outcomes: list[Outcome]
    ) -> None:
        """Merge the candidates that end, of the best `num_beams`, into the finished hypotheses."""
        count = len(self.beams)
        allowed = ends & (torch.arange(len(ends)) < count)
        length = len(self.beams[0].ids) + 1 - self.beams[0].prompt_length
        scores = totals / _power(length, self.config.length_penalty)
        scores += float(self.is_finished.all() and self.config.early_stopping is True) * EXCLUDED  # enough are found
        scores += float(not self.improvable) * EXCLUDED  # none can be better than those that are found
        scores += ~allowed * EXCLUDED  # unfinished, or not among the best
        merged = torch.cat((torch.tensor([hypothesis.score for hypothesis in self.finished]), scores))
        best = merged.topk(count).indices
        self.is_finished = torch.cat((self.is_finished, allowed))[best]
        kept = []
        for index, score in zip(best.tolist(), merged[best].tolist(), strict=True):
            if index < count:
                kept.append(Hypothesis(self.finished[index].ids, self.finished[index].finish_reason, score))
                continue
            parent, outcome = self.beams[parents[index - count]], outcomes[index - count]
            ids = [*parent.ids[parent.prompt_length :], *([] if outcome.has_end_token else [tokens[index - count]])]
            kept.append(Hypothesis(ids, outcome.finish_reason or "length", score))
        self.finished = kept

    def _update_done(self, all_end: bool) -> None:
        """Decide whether the search continues: a better hypothesis is possible, or one is missing."""
        config, beam = self.config, self.beams[0]
        length = len(beam.ids) + 1 - beam.prompt_length
        if config.early_stopping == "never" and config.length_penalty > 0:
            length = config.reply_limit(beam.prompt_length)
        possible = self.scores[:1] / _power(length, config.length_penalty)
        worst = torch.where(self.is_finished, min(hypothesis.score for hypothesis in self.finished), EXCLUDED)
        self.improvable = self.improvable and bool((possible > worst).any())
        full = bool(self.is_finished.all()) and config.early_stopping is True
        self.done = not self.improvable or full or all_end

    def totals(self, log_probabilities: Tensor) -> Tensor:
        """Add the log-probabilities of each continuation to its beam's: (beams, V) -> (beams * V,)."""
        return (log_probabilities + self.scores[:, None].to(log_probabilities.device)).reshape(-1)


def _power(length: int, penalty: float) -> float:
    """Return the divisor of a sum of log-probabilities, at most the largest float."""
    try:
        return float(length**penalty)
    except OverflowError:
        return sys.float_info.max


@torch.inference_mode()
def beam_search(
    decoder: Decoder,
    prompts: Sequence[Prompt | Sequence[int]],
    config: GenerationConfig,
    generators: Sequence[torch.Generator],
    cache: KVCache | None = None,
) -> list[list[Hypothesis]]:
    """Return the best `num_return_sequences` replies to each prompt.

    Args:
        decoder: without sequences.
        prompts: see `Decoder.add`.
        config: for all prompts; `do_sample` samples the continuations, without replacement.
        generators: one for each prompt; prompts that share one are sampled together, as transformers does.
        cache: see `generate_batch`.

    Raises:
        DialogueError: a prompt cannot be used, or the vocabulary is too small for so many beams.
        GenerationError: see `Decoder.step`.
    """
    searches = [
        BeamSearch([decoder.add(prompt, config, generator=generator, cache=cache) for _ in range(config.num_beams)])
        for prompt, generator in zip(prompts, generators, strict=True)
    ]
    V = decoder.model.config.vocab_size
    if searches and searches[0].num_candidates > config.num_beams * V:
        raise DialogueError("there are more end tokens than other tokens, so that beams cannot continue; remove some")
    while unfinished := [search for search in searches if not search.done]:
        _, logits = decoder.next_logits()
        scores = process_logits(logits.log_softmax(dim=-1), [beam for search in unfinished for beam in search.beams])
        totals = {
            search: search.totals(own)
            for search, own in zip(unfinished, torch.split(scores, config.num_beams), strict=True)
        }
        choices = []
        for search, index in _candidates(searches, generators, totals).items():
            choices += search.advance(totals[search][index].cpu(), (index // V).tolist(), (index % V).tolist())
        decoder.reorder(choices)
        for search in unfinished:
            for beam in search.beams if search.done else ():
                decoder.drop(beam)
    return [search.finished[: config.num_return_sequences] for search in searches]


def _candidates(
    searches: Sequence[BeamSearch], generators: Sequence[torch.Generator], totals: dict[BeamSearch, Tensor]
) -> dict[BeamSearch, Tensor]:
    """Return the best or the sampled continuations of each unfinished search, as indices into its totals."""
    count = searches[0].num_candidates
    if not searches[0].config.do_sample:
        return {search: total.topk(count).indices for search, total in totals.items()}
    chosen: dict[BeamSearch, Tensor] = {}
    for generator in dict.fromkeys(generators):
        sharing = [search for search, own in zip(searches, generators, strict=True) if own is generator]
        if not any(search in totals for search in sharing):
            continue
        like = next(iter(totals.values()))
        matrix = like.new_zeros(len(sharing), like.size(0))
        matrix[:, :count] = 1  # a finished search is sampled too, and the sample discarded
        for row, search in enumerate(sharing):
            if search in totals:
                matrix[row] = totals[search].softmax(dim=-1)
        if torch.isnan(matrix).any():
            raise GenerationError(NOTHING_LEFT)
        chosen |= zip(sharing, sample_without_replacement(matrix, count, generator), strict=True)
    return {search: chosen[search] for search in totals}
