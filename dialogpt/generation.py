"""Replies from token ids, for callers in Python: one sequence as a stream, or many at once.

A chat and the server do not pass here but through `dialogpt.replies`, which knows blank replies and ranking.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from dialogpt.decoding.beam_search import beam_search
from dialogpt.decoding.loop import Decoder, StepDecoder, decoder_for
from dialogpt.decoding.noise import fresh_generator
from dialogpt.decoding.sequence import TokenSequence
from dialogpt.decoding.speculative import Draft
from dialogpt.decoding.step import Step
from dialogpt.decoding.stop import Stop
from dialogpt.errors import DialogueError
from dialogpt.generation_config import GenerationConfig
from dialogpt.history import Prompt
from dialogpt.model import GPT2, KVCache
from dialogpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Reply:
    """One generated reply.

    Attributes:
        ids: without the end token.
        finish_reason: "stop" (an end token or a stop string) or "length" (maximum length or time).
        score: sum of the network's log-probabilities of these tokens, and of the end token if there is one; of beams,
            transformers' `sequences_scores`.
        rank: a reranker's score, the best highest; None without one.
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
    """Generate one reply, token by token, without the end token.

    With the same seed in `generator`, the tokens are those of transformers' ``model.generate`` after
    ``torch.manual_seed``. This is a lazy iterator: each token is computed when it is requested.

    Args:
        model: the network.
        prompt_ids: see `Decoder.add`.
        config: with 1 as `num_return_sequences` and `num_beams`.
        generator: what tokens are sampled from; None is a fresh one.
        cache: of one row. What it shares with the prompt is not computed again; afterwards it holds the prompt and all
            that was generated but for the last token, which mostly is the end token.
        tokenizer: for settings that hold texts.
        draft: makes it faster and changes no token; see `dialogpt.decoding.speculative`.

    Raises:
        DialogueError: the prompt cannot be used; see `Decoder.add`.
        GenerationError: while stepping; see `Decoder.step`.
    """
    if config.num_return_sequences != 1:
        raise DialogueError("generate returns one reply; for num_return_sequences above 1 call generate_batch")
    if config.num_beams != 1:
        raise DialogueError("generate streams tokens, and beams are known at the end only; call generate_batch")
    decoder = decoder_for(model, tokenizer, 1, draft, screened=True)
    return _stream(decoder, decoder.add(prompt_ids, config, generator=generator, cache=cache))


def _stream(decoder: StepDecoder, sequence: TokenSequence) -> Iterator[Step]:
    while sequence.finish_reason is None:
        (step,) = decoder.step()
        if not sequence.has_end_token:
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
    """Generate `num_return_sequences` replies to each of several prompts of different lengths.

    Args:
        model: the network.
        prompts: see `Decoder.add`. A prompt with several replies is computed once.
        config: for all sequences.
        generator: one for the whole call, as in transformers; or one per sequence, prompt by prompt (with beams, one
            per prompt), so that no reply depends on the others. None is a fresh one each.
        cache: of one row, which is copied; what a prompt shares with it is not computed again.
        tokenizer: for settings that hold texts.
        stop: asked before every step; true cancels.
        draft: used for a single sequence without beams; see `generate`.
        stops_in_prompt: see `Decoder`.

    Raises:
        Stopped: `stop` returned true.
        DialogueError: a prompt cannot be used, or there are not as many generators as sequences.
        GenerationError: see `Decoder.step`.
    """
    copies = config.num_return_sequences if config.num_beams == 1 else 1
    count = len(prompts) * copies
    if generator is None:
        generator = [fresh_generator(model.device) for _ in range(count)]
    generators = [generator] * count if isinstance(generator, torch.Generator) else list(generator)
    if len(generators) != count:
        raise DialogueError(f"{len(generators)} generators were given for {count} sequences; expected one each, or one")
    if config.num_beams > 1:
        decoder = Decoder(model, tokenizer, stop, stops_in_prompt=stops_in_prompt)
        found = beam_search(decoder, prompts, config, generators, cache)
        return [[Reply(each.ids, each.finish_reason, each.score) for each in hypotheses] for hypotheses in found]
    stepper = decoder_for(model, tokenizer, count, draft, stop, stops_in_prompt)
    sequences = [
        stepper.add(prompt, config, generator=generators[index * copies + copy], cache=cache)
        for index, prompt in enumerate(prompts)
        for copy in range(copies)
    ]
    scores: dict[TokenSequence, float] = defaultdict(float)
    while steps := stepper.step():
        for step in steps:
            scores[step.sequence] += step.log_probability
    replies = [Reply(each.new_ids, each.finish_reason or "length", scores[each]) for each in sequences]
    return [replies[start : start + copies] for start in range(0, count, copies)]
