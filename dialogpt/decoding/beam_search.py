"""Beam search: follow several beginnings of a reply at once, and keep those whose tokens are likeliest together.

It follows `_beam_search` of transformers (generation/utils.py) step by step, in float32 as there, with beam sampling as
its variant that draws the continuations. `dialogpt.decoding.loop` reads the rows and reorders their cache.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dialogpt.decoding.loop import (
    NOISE_WITHOUT_ZEROS,
    NOT_A_NUMBER,
    NOTHING_LEFT,
    Decoder,
    GenerationError,
    Row,
    processed,
    without_zeros,
)
from dialogpt.errors import DialogueError
from dialogpt.generation_config import GenerationConfig
from dialogpt.history import Prompt
from dialogpt.model import KVCache

NEVER = -1e9  # added to what must not win; not infinity, so that two of them can still be compared


@dataclass(frozen=True)
class Beam:
    """A finished sequence, or the place of one.

    Attributes:
        ids: what was said, without the end token.
        finish_reason: "stop" or "length".
        score: sum of its log-probabilities, divided by a power of its length; `NEVER` while the place is free.
    """

    ids: list[int]
    finish_reason: str
    score: float


class Search:
    """The beams of one prompt.

    Attributes:
        rows: the sequences that go on, best first.
        finished: as many places, best first.
        done: whether nothing can come that would be kept.
    """

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.config = rows[0].config
        number = len(rows)
        self.scores = torch.tensor([0.0] + [NEVER] * (number - 1))  # only one of equal beginnings may go on
        self.finished = [Beam([], "length", NEVER)] * number
        self.is_finished = torch.zeros(number, dtype=torch.bool)
        self.improvable = True
        self.done = False

    @property
    def candidates(self) -> int:
        """How many continuations are looked at: enough that as many as beams go on if all others end."""
        return max(2, 1 + len(self.config.end_ids)) * len(self.rows)

    def advance(self, totals: Tensor, index: Tensor) -> list[tuple[Row, Row, int]]:
        """Take one step.

        Args:
            totals: (candidates,) each candidate's sum of log-probabilities.
            index: (candidates,) its beam times V, plus its token.

        Returns:
            For each row: the row, which one it goes on from, and with what token.
        """
        if torch.isnan(totals).any():
            raise GenerationError(NOT_A_NUMBER)
        V = self._vocabulary
        parents, tokens = (index // V).tolist(), (index % V).tolist()
        outcomes = [self.rows[p].outcome([*self.rows[p].ids, t]) for p, t in zip(parents, tokens, strict=True)]
        ends = torch.tensor([reason is not None for reason, _ in outcomes])
        self._keep_finished(totals, ends, parents, tokens, outcomes)
        going_on = totals + ends * NEVER
        best = going_on.topk(len(self.rows)).indices
        self.scores = going_on[best]
        chosen = [
            (row, self.rows[parents[place]], tokens[place]) for row, place in zip(self.rows, best.tolist(), strict=True)
        ]
        self._judge(bool(ends.all()))
        return chosen

    def _keep_finished(
        self,
        totals: Tensor,
        ends: Tensor,
        parents: list[int],
        tokens: list[int],
        outcomes: list[tuple[str | None, bool]],
    ) -> None:
        """Let the best candidates that end, among as many as there are beams, take places of finished ones."""
        number = len(self.rows)
        allowed = ends & (torch.arange(len(ends)) < number)
        said = len(self.rows[0].ids) + 1 - self.rows[0].prompt_length
        scores = totals / _power(said, self.config.length_penalty)
        scores += float(self.is_finished.all() and self.config.early_stopping is True) * NEVER
        scores += float(not self.improvable) * NEVER
        scores += ~allowed * NEVER
        merged = torch.cat((torch.tensor([beam.score for beam in self.finished]), scores))
        best = merged.topk(number).indices
        self.is_finished = torch.cat((self.is_finished, allowed))[best]
        kept = []
        for place, score in zip(best.tolist(), merged[best].tolist(), strict=True):
            if place < number:
                kept.append(Beam(self.finished[place].ids, self.finished[place].finish_reason, score))
                continue
            parent = self.rows[parents[place - number]]
            reason, ended = outcomes[place - number]
            ids = [*parent.ids[parent.prompt_length :], *([] if ended else [tokens[place - number]])]
            kept.append(Beam(ids, reason or "length", score))
        self.finished = kept

    def _judge(self, all_end: bool) -> None:
        """Decide whether the search goes on: something better may come, a place is free, something goes on."""
        config, row = self.config, self.rows[0]
        said = len(row.ids) + 1 - row.prompt_length
        longest = config.early_stopping == "never" and config.length_penalty > 0
        length = config.reply_limit(row.prompt_length) if longest else said
        possible = self.scores[:1] / _power(length, config.length_penalty)
        worst = torch.where(self.is_finished, min(beam.score for beam in self.finished), NEVER)
        self.improvable = self.improvable and bool((possible > worst).any())
        full = bool(self.is_finished.all()) and config.early_stopping is True
        self.done = not self.improvable or full or all_end

    def totals(self, log_probabilities: Tensor) -> Tensor:
        """Each continuation's sum of log-probabilities: (beams, V) -> (beams * V,)."""
        self._vocabulary = log_probabilities.size(1)
        return (log_probabilities + self.scores[:, None].to(log_probabilities.device)).reshape(-1)


def _power(length: int, penalty: float) -> float:
    """The divisor of a sum of log-probabilities; as far as numbers go."""
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
) -> list[list[Beam]]:
    """The best `num_return_sequences` replies to each prompt.

    Args:
        decoder: without rows.
        prompts: see `Decoder.add`.
        config: for all; `do_sample` draws the continuations, without replacement.
        generators: one for each prompt; prompts that share one are drawn for together, as transformers does.
        cache: see `generate_batch`.

    Raises:
        DialogueError: a prompt cannot be used, or the vocabulary is too small for so many beams.
        GenerationError: see `Decoder.step`.
    """
    searches = [
        Search([decoder.add(prompt, config, generator=generator, cache=cache) for _ in range(config.num_beams)])
        for prompt, generator in zip(prompts, generators, strict=True)
    ]
    if searches and searches[0].candidates > config.num_beams * decoder.model.config.vocab_size:
        raise DialogueError("there are more end tokens than other tokens, which leaves beams nothing to go on with")
    while going := [search for search in searches if not search.done]:
        _, logits = decoder.read()
        scores = processed(logits.log_softmax(dim=-1), [row for search in going for row in search.rows])
        totals = {
            id(search): search.totals(part)
            for search, part in zip(going, torch.split(scores, config.num_beams), strict=True)
        }
        choices = []
        for search, (values, index) in zip(going, _candidates(searches, generators, totals), strict=True):
            choices += search.advance(values.cpu(), index.cpu())
        decoder.follow(choices)
        for search in going:
            for row in search.rows if search.done else ():
                decoder.drop(row)
    return [search.finished[: config.num_return_sequences] for search in searches]


def _candidates(
    searches: Sequence[Search], generators: Sequence[torch.Generator], totals: dict[int, Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Of each search that goes on, the best continuations or those drawn: their sums and their places."""
    chosen: dict[int, Tensor] = {}
    number = searches[0].candidates
    if not searches[0].config.do_sample:
        return [tuple(total.topk(number)) for total in totals.values()]  # type: ignore[misc]
    for generator in dict(zip(map(id, generators), generators, strict=True)).values():
        sharing = [search for search, own in zip(searches, generators, strict=True) if own is generator]
        if not any(id(search) in totals for search in sharing):
            continue
        some = next(iter(totals.values()))
        matrix = some.new_zeros(len(sharing), some.size(0))
        matrix[:, :number] = 1  # a search that is done draws too, and nothing comes of it
        for place, search in enumerate(sharing):
            if id(search) in totals:
                matrix[place] = totals[id(search)].softmax(dim=-1)
        if torch.isnan(matrix).any():
            raise GenerationError(NOTHING_LEFT)
        for search, drawn in zip(sharing, drawn_from(matrix, number, generator), strict=True):
            chosen[id(search)] = drawn
    return [(total[chosen[key]], chosen[key]) for key, total in totals.items()]


def drawn_from(probabilities: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Draw places without replacement, as `torch.multinomial` does: (B, N) -> (B, number).

    It divides by the same noise, too; only where that may hold zeros is it done here, without them.
    """
    if probabilities.device.type in NOISE_WITHOUT_ZEROS:
        return torch.multinomial(probabilities, number, generator=generator)
    noise = without_zeros(torch.empty_like(probabilities).exponential_(generator=generator))  # (B, N)
    return probabilities.div(noise).topk(number).indices
