"""The one reply pipeline, under `Chat`, ``reply --batch`` and the server.

It alone knows how many samples a reply takes, what each is seeded with, that a blank one is resampled, and when that
ends. Replies that are known at their end only are left to `dialogpt.whole_replies`, prompts to `dialogpt.history`,
tokens to `dialogpt.decoding`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from dialogpt.decoding.loop import StepDecoder, decoder_for
from dialogpt.decoding.noise import fresh_generator
from dialogpt.decoding.speculative import Draft
from dialogpt.decoding.step import Step
from dialogpt.decoding.stop import Stop, Stopped
from dialogpt.generation_config import DEFAULT_CANDIDATES, GenerationConfig
from dialogpt.history import Prompt
from dialogpt.model import GPT2, KVCache
from dialogpt.ranking.rerankers import Reranker
from dialogpt.settings import Kind, required
from dialogpt.text.stream_decoder import StreamDecoder
from dialogpt.tokenizer import Tokenizer

MAX_ATTEMPTS = 5  # at one sample before a blank one is accepted
MAX_SEED = 1 << 64
SEED = Kind(lambda value: isinstance(value, int) and not isinstance(value, bool), "an integer", int)
Kept = TypeVar("Kept")  # what a caller wants of each token: its id in a chat, an event in the server


@dataclass(frozen=True)
class Plan:
    """How the replies to a dialogue are made: for example `num_replies` 2, the best of `num_samples` 16.

    Attributes:
        config: of each sample; with beams or a reranker, `num_return_sequences` is `num_samples`.
        num_replies: how many replies are returned.
        num_samples: how many are generated, each a candidate; more than are returned where a reranker chooses.
        max_attempts: how often a sample that is blank (white space only) is generated before it is accepted.
        withholds_blank: whether white space that begins a streamed reply is withheld until other text follows, or until
            the reply ends. So nothing was shown of a blank attempt that is replaced.
        reranker: puts the best sample first; None keeps the order of their seeds.
    """

    config: GenerationConfig
    num_replies: int = 1
    num_samples: int = 1
    max_attempts: int = 1
    withholds_blank: bool = False
    reranker: Reranker | None = None

    @classmethod
    def of(
        cls,
        config: GenerationConfig,
        eos_id: int,
        *,
        num_replies: int = 1,
        reranker: Reranker | None = None,
        num_candidates: int = DEFAULT_CANDIDATES,
        resample: bool = True,
    ) -> Plan:
        """Derive the plan from what was asked for.

        Args:
            config: what was asked for.
            eos_id: the end of a turn, which always ends a reply.
            num_replies: how many are wanted.
            reranker: chooses them among `num_candidates`.
            num_candidates: how many samples a reranker chooses among.
            resample: whether a blank reply is sampled again; false for text that is continued.

        Raises:
            DialogueError: without sampling all candidates would be the same, or there are fewer beams than candidates.
        """
        num_samples = num_replies if reranker is None else max(num_replies, num_candidates)
        config = config.with_end_token(eos_id)
        if reranker is not None or config.num_beams > 1:
            # Beams return this many, and equal candidates are refused. Without either, a server may give equal replies.
            config = config.with_replies(num_samples)
        sampled = config.do_sample and config.num_beams == 1
        attempts = MAX_ATTEMPTS if resample and sampled else 1
        return cls(config, num_replies, num_samples, attempts, withholds_blank=resample, reranker=reranker)

    @property
    def streams(self) -> bool:
        """Whether tokens are known as they are generated; beams and candidates are known at their end only."""
        return self.reranker is None and self.config.num_beams == 1


class Seeds:
    """The generators of the samples of one dialogue: sample k has its own, seeded with seed + k.

    Sample k of the next reply goes on with generator k, so that a conversation is seeded once.
    """

    def __init__(self, device: torch.device | str, seed: int | None = None) -> None:
        """Begin at a seed; None is another one each time.

        Raises:
            SettingsError: the seed is no integer.
        """
        self._device = device
        if seed is not None:
            required("seed", seed, SEED)
        self._seed = fresh_generator(device).initial_seed() if seed is None else seed
        self._made: list[torch.Generator] = []

    def generators(self, count: int) -> list[torch.Generator]:
        """Return the generators of the first `count` samples."""
        for k in range(len(self._made), count):
            self._made.append(fresh_generator(self._device, (self._seed + k) % MAX_SEED))
        return self._made[:count]


@dataclass(frozen=True)
class Dialogue:
    """A dialogue to reply to.

    Attributes:
        prompt: what the network is shown of it.
        turns: all of it, without end tokens, for a reranker.
        seeds: of its samples.
    """

    prompt: Prompt
    turns: Sequence[Sequence[int]]
    seeds: Seeds


@dataclass
class Statistics:
    """What a reply cost.

    Attributes:
        prompt_tokens: the length of the prompt.
        computed_tokens: how many of them were not cached; the last one never is.
        new_tokens: how many were generated, without end tokens, those of blank attempts too; of candidates, the best's.
        first_seconds: from the start to the first token.
        seconds: from the start to the last token.
    """

    prompt_tokens: int = 0
    computed_tokens: int = 0
    new_tokens: int = 0
    first_seconds: float = 0.0
    seconds: float = 0.0

    def count_token(self, seconds: float) -> None:
        """Count a token that was generated `seconds` after the start."""
        if self.new_tokens == 0:
            self.first_seconds = seconds
        self.new_tokens += 1
        self.seconds = seconds


class Sample(Generic[Kept]):
    """One sample that a decoder generates: withheld while it is blank, and resampled if it stays blank.

    Attributes:
        sequence: the one that the decoder extends; the same for all attempts.
        attempt: which attempt this is, from 1 on.
    """

    def __init__(
        self,
        decoder: StepDecoder,
        tokenizer: Tokenizer,
        plan: Plan,
        prompt: Prompt,
        generator: torch.Generator,
        keep: Callable[[Step], Kept],
        cache: KVCache | None = None,
    ) -> None:
        """Add the sample to a decoder.

        Args:
            decoder: decodes it, perhaps together with others.
            tokenizer: tells white space from text.
            plan: its settings, and the number of attempts.
            prompt: what is answered.
            generator: what its tokens are sampled from, attempt after attempt.
            keep: returns what the caller wants of each token, which is withheld until it may be shown.
            cache: see `Decoder.add`.

        Raises:
            DialogueError: see `Decoder.add`.
        """
        self.sequence = decoder.add(prompt, plan.config, generator=generator, cache=cache)
        self._tokenizer, self._plan, self._keep = tokenizer, plan, keep
        self.attempt = 0
        self._begin()

    def _begin(self) -> None:
        self.attempt += 1
        # Its text, only to see whether it is blank; whoever shows the tokens spells them again.
        self._text, self._blank = StreamDecoder(self._tokenizer, reply=True), True
        self._withheld: list[Kept] = []

    def advance(self, step: Step) -> list[Kept]:
        """Handle the token that the decoder has just generated, and return what may be shown now.

        The reply is complete once `sequence` has a finish reason afterwards.
        """
        if not self.sequence.has_end_token:
            self._withheld.append(self._keep(step))
            self._blank = self._blank and not self._text.feed(step.id).strip()  # fed until its first letter only
        if self.sequence.finish_reason is None:
            return [] if self._blank and self._plan.withholds_blank else self.release()
        self._blank = self._blank and not self._text.finish().strip()
        if self._blank and self.attempt < self._plan.max_attempts and not self.sequence.is_late:
            self.sequence.restart()
            self._begin()
            return []
        return self.release()

    def release(self) -> list[Kept]:
        """Return what is withheld."""
        released, self._withheld = self._withheld, []
        return released


def stream_reply(
    model: GPT2,
    tokenizer: Tokenizer,
    plan: Plan,
    dialogue: Dialogue,
    cache: KVCache,
    *,
    on_token: Callable[[], None],
    draft: Draft | None = None,
    stop: Stop | None = None,
) -> Iterator[list[int]]:
    """Generate one reply, and yield its tokens as soon as they may be shown.

    Args:
        model: the network.
        tokenizer: of the same checkpoint.
        plan: for one reply, whose tokens are known as they are generated (`streams`).
        dialogue: what is answered.
        cache: one row; what the prompt shares with it is not computed again.
        on_token: called for every token but an end token, those of replaced attempts included.
        draft: drafts tokens, which makes one sample faster and changes none.
        stop: asked after every token but an end token; true ends the reply before that token is yielded.

    Raises:
        Stopped: `stop` returned true.
        DialogueError: see `Decoder.add` and `Decoder.step`.
    """
    decoder = decoder_for(model, tokenizer, 1, draft, screened=True)
    (generator,) = dialogue.seeds.generators(1)
    sample = Sample(decoder, tokenizer, plan, dialogue.prompt, generator, token_id, cache)
    while sample.sequence.finish_reason is None:
        (step,) = decoder.step()
        if not sample.sequence.has_end_token:
            on_token()
            if stop is not None and stop():
                raise Stopped
        if tokens := sample.advance(step):
            yield tokens


def token_id(step: Step) -> int:
    """Return the token: what is kept of a step in a chat."""
    return step.id
