"""Replies from token ids: one row as a stream, or many rows at once. Thin callers of `dialogpt.decoding.loop`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from dialogpt.decoding.beam_search import beam_search
from dialogpt.decoding.loop import Decoder, Row, Step, Stop, fresh_generator
from dialogpt.decoding.speculative import Draft, SpeculativeDecoder
from dialogpt.errors import DialogueError
from dialogpt.generation_config import GenerationConfig
from dialogpt.history import Prompt
from dialogpt.model import GPT2, KVCache
from dialogpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Reply:
    """What one row said.

    Attributes:
        ids: without the end token.
        finish_reason: "stop" (it ended its turn, or a stop string did) or "length" (its most tokens or `max_time` did).
        score: sum of the network's own log-probabilities of these tokens, and of the end token where there was one; of
            beams, transformers' `sequences_scores`.
        rank: what a reranker makes of it, the best highest; None without one.
    """

    ids: list[int]
    finish_reason: str
    score: float
    rank: float | None = None


def generate(
    model: GPT2,
    prompt_ids: Prompt | Sequence[int],
    config: GenerationConfig,
    *,
    generator: torch.Generator | None = None,
    cache: KVCache | None = None,
    tokenizer: Tokenizer | None = None,
    draft: Draft | None = None,
) -> Iterator[Step]:
    """Say one reply, token by token; the end token is not yielded.

    With the same seed in `generator`, the tokens are those of transformers' ``model.generate`` after
    ``torch.manual_seed``. Nothing is computed for a token that nobody asks for, but by a draft, which guesses ahead.

    Args:
        model: the network.
        prompt_ids: see `Decoder.add`.
        config: `num_return_sequences` and `num_beams` must be 1.
        generator: None draws from a fresh one.
        cache: one row; tokens that it shares with the prompt are not computed again, and it holds what was read
            afterwards.
        tokenizer: for settings that name texts.
        draft: guesses, which makes it faster and changes no token; see `dialogpt.decoding.speculative`.

    Raises:
        DialogueError: the prompt cannot be used; see `Decoder.add`.
        GenerationError: while stepping; see `Decoder.step`.
    """
    if config.num_return_sequences != 1:
        raise DialogueError("generate says one reply; for num_return_sequences above 1 call generate_batch")
    if config.num_beams != 1:
        raise DialogueError("generate says token by token, and beams are known at the end only; call generate_batch")
    decoder = Decoder(model, tokenizer) if draft is None else SpeculativeDecoder(model, draft, tokenizer)
    return _stream(decoder, decoder.add(prompt_ids, config, generator=generator, cache=cache))


def _stream(decoder: Decoder, row: Row) -> Iterator[Step]:
    while row.finish_reason is None:
        (step,) = decoder.step()
        if not row.ended:
            yield step


def generate_batch(
    model: GPT2,
    prompts: Sequence[Prompt | Sequence[int]],
    config: GenerationConfig,
    *,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    cache: KVCache | None = None,
    tokenizer: Tokenizer | None = None,
    stop: Stop | None = None,
    draft: Draft | None = None,
    stops_in_prompt: bool = True,
) -> list[list[Reply]]:
    """Reply to many prompts of different lengths at once: `num_return_sequences` replies to each.

    Args:
        model: the network.
        prompts: see `Decoder.add`. A prompt with several replies is read once.
        config: for all rows.
        generator: one for the whole call, as transformers draws (one draw over all rows); or one a row, prompt by
            prompt, so that no row's tokens depend on the others (with beams, one a prompt). None is a fresh one each.
        cache: one row, which is copied; what a prompt shares with it is not computed again.
        tokenizer: for settings that name texts.
        stop: asked before every step; true ends it all.
        draft: guesses where there is one row, and no beams; see `generate`.
        stops_in_prompt: see `Decoder`.

    Raises:
        Stopped: `stop` said so.
        DialogueError: a prompt cannot be used, or the generators are not as many as the rows.
        GenerationError: see `Decoder.step`.
    """
    copies = config.num_return_sequences if config.num_beams == 1 else 1
    number = len(prompts) * copies
    if generator is None:
        generator = [fresh_generator(model.device) for _ in range(number)]
    generators = [generator] * number if isinstance(generator, torch.Generator) else list(generator)
    if len(generators) != number:
        raise DialogueError(f"{len(generators)} generators were given for {number} rows; expected one for each, or one")
    if draft is not None and number == 1 and config.num_beams == 1:
        decoder: Decoder = SpeculativeDecoder(model, draft, tokenizer, stop)
    else:
        decoder = Decoder(model, tokenizer, stop)
    decoder.stops_in_prompt = stops_in_prompt
    if config.num_beams > 1:
        found = beam_search(decoder, prompts, config, generators, cache)
        return [[Reply(beam.ids, beam.finish_reason, beam.score) for beam in beams] for beams in found]
    rows = [
        decoder.add(prompt, config, generator=generators[place * copies + copy], cache=cache)
        for place, prompt in enumerate(prompts)
        for copy in range(copies)
    ]
    scores = dict.fromkeys(map(id, rows), 0.0)
    while steps := decoder.step():
        for step in steps:
            scores[id(step.row)] += step.log_probability
    replies = [Reply(row.new_ids, row.finish_reason or "length", scores[id(row)]) for row in rows]
    return [replies[start : start + copies] for start in range(0, number, copies)]
