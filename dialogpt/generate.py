"""Replies from token ids: one row as a stream, or many rows at once. Thin callers of `dialogpt.decoder`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from dialogpt.decoder import Decoder, Row, Step, fresh_generator
from dialogpt.errors import DialogueError
from dialogpt.generation_config import GenerationConfig
from model import GPT2, KVCache


@dataclass(frozen=True)
class Reply:
    """What one row said.

    Attributes:
        ids: without the end token.
        finish_reason: "stop" (it ended its turn) or "length" (`max_new_tokens` did).
        score: sum of the network's own log-probabilities of these tokens, and of the end token where there was one.
    """

    ids: list[int]
    finish_reason: str
    score: float


def generate(
    model: GPT2,
    prompt_ids: Sequence[int],
    config: GenerationConfig,
    *,
    generator: torch.Generator | None = None,
    cache: KVCache | None = None,
) -> Iterator[Step]:
    """Say one reply, token by token; the end token is not yielded.

    With the same seed in `generator`, the tokens are those of transformers' ``model.generate`` after
    ``torch.manual_seed``. Nothing is computed for a token that nobody asks for.

    Args:
        model: the network.
        prompt_ids: at least one token.
        config: `num_return_sequences` must be 1.
        generator: None draws from a fresh one.
        cache: one row; tokens that it shares with the prompt are not computed again, and it holds what was read
            afterwards.

    Raises:
        DialogueError: the prompt cannot be used; see `Decoder.add`.
        GenerationError: while stepping; see `Decoder.step`.
    """
    if config.num_return_sequences != 1:
        raise DialogueError("generate says one reply; for num_return_sequences above 1 call generate_batch")
    decoder = Decoder(model)
    return _stream(decoder, decoder.add(prompt_ids, config, generator=generator, cache=cache))


def _stream(decoder: Decoder, row: Row) -> Iterator[Step]:
    while row.finish_reason is None:
        (step,) = decoder.step()
        if row.finish_reason != "stop":
            yield step


def generate_batch(
    model: GPT2,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> list[list[Reply]]:
    """Reply to many prompts of different lengths at once: `num_return_sequences` replies to each.

    Args:
        model: the network.
        prompts: each of at least one token. A prompt with several replies is read once.
        config: for all rows.
        generator: one for the whole call, as transformers draws (one draw over all rows); or one a row, prompt by
            prompt, so that no row's tokens depend on the others. None is a fresh one for the whole call.

    Raises:
        DialogueError: a prompt cannot be used, or the generators are not as many as the rows.
        GenerationError: see `Decoder.step`.
    """
    number = len(prompts) * config.num_return_sequences
    if generator is None:
        generator = fresh_generator(model.token_embedding.weight.device)
    generators = [generator] * number if isinstance(generator, torch.Generator) else list(generator)
    if len(generators) != number:
        raise DialogueError(f"{len(generators)} generators were given for {number} rows; expected one for each, or one")
    if config.eos_token_id is None:  # once, so that all rows share one config and are processed together
        config = replace(config, eos_token_id=model.config.eos_token_id)
    decoder = Decoder(model)
    rows = [
        decoder.add(prompt, config, generator=generators[place * config.num_return_sequences + copy])
        for place, prompt in enumerate(prompts)
        for copy in range(config.num_return_sequences)
    ]
    scores = dict.fromkeys(map(id, rows), 0.0)
    while steps := decoder.step():
        for step in steps:
            scores[id(step.row)] += step.log_probability
    replies = [Reply(row.new_ids, row.finish_reason or "length", scores[id(row)]) for row in rows]
    return [
        replies[start : start + config.num_return_sequences] for start in range(0, number, config.num_return_sequences)
    ]
