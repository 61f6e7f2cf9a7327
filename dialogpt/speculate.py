"""Speculative decoding: a fast network guesses a few tokens ahead, and the network itself reads them all in one pass.

A pass over five tokens takes hardly longer than over one, as the time goes into reading the weights. Guess and answer
are drawn with the same random numbers, so that they are often the same (Daliri, Musco and Suresh, "Coupling without
Communication and Drafter-Invariant Speculative Decoding", 2024). The tokens are those that the network would have said
alone, with the same seed, whatever was guessed: guesses make it faster, or slower, and nothing else.

For one row. Where several are decoded together, weights are read once for all of them, and there is less to gain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor

from dialogpt.decoder import (
    Decoder,
    GenerationError,
    Row,
    Step,
    Stopped,
    choose,
    log_sum_exp,
    processed,
    require_finite,
)
from dialogpt.errors import DialogueError
from dialogpt.generation_config import GenerationConfig
from dialogpt.tokenizer import Tokenizer
from model import GPT2, KVCache, shared_prefix
from weights import load, open_checkpoint
from weights.checkpoint import Source
from weights.load import device_of

FIRST, MOST = 4, 8  # tokens that are guessed in a pass: at first, and at most


class Draft:
    """The network that guesses, and what it has read of a dialogue.

    Attributes:
        model: of the same vocabulary as the network that it guesses for.
        guessed: how many tokens it has guessed, since it was made.
        right: how many of them the network said.
    """

    def __init__(self, model: GPT2) -> None:
        """Begin with nothing read."""
        self.model = model
        self.guessed, self.right = 0, 0
        self._cache = KVCache.for_model(model)
        self._ahead = FIRST

    @classmethod
    def load(
        cls, source: Source, tokenizer: Tokenizer, *, dtype: str | None = None, device: str | torch.device = "cpu"
    ) -> Draft:
        """Open the checkpoint of a network that guesses.

        Args:
            source: see `weights.load`; the checkpoint of the network itself will do.
            tokenizer: of the network that it guesses for.
            dtype: None is what is fast: int8 on a CPU, float16 elsewhere. No reply depends on it.
            device: where it runs.

        Raises:
            CheckpointError: it cannot be used.
            DialogueError: its vocabulary is another one.
        """
        checkpoint = open_checkpoint(source)
        tokenizer.require_same(checkpoint)
        return cls(
            load(checkpoint, dtype=dtype or ("int8" if device_of(device).type == "cpu" else "float16"), device=device)
        )

    @torch.inference_mode()
    def guess(self, row: Row, most: int) -> list[int]:
        """The tokens that a row may say next, at most so many; the row is left as it is.

        Raises:
            GenerationError: the network's output is not finite.
        """
        imagined = replace(row, ids=list(row.ids), generator=_copied(row.generator), cache=None)
        most = min(most, self._ahead, self.model.config.n_positions - len(row.ids) + 1)
        while len(imagined.ids) - len(row.ids) < most and imagined.finish_reason is None:
            logits = read(self.model, imagined.ids, self._cache, 1)  # (1, V)
            require_finite(logits, [row], "draft")
            try:
                (token,) = choose(processed(logits, [imagined]), [imagined], [imagined])
            except GenerationError:  # the row itself says so where it comes to that
                break
            imagined.say(token)
        return imagined.ids[len(row.ids) :]

    def learn(self, guessed: int, right: int) -> None:
        """Hear how many of the last guesses were right, and guess two more next time, or as many as were right."""
        self.guessed, self.right = self.guessed + guessed, self.right + right
        if guessed:
            self._ahead = min(self._ahead + 2, MOST) if right == guessed else max(right, 1)


class SpeculativeDecoder(Decoder):
    """Decodes one row, one to several tokens a step."""

    def __init__(
        self,
        model: GPT2,
        draft: Draft,
        tokenizer: Tokenizer | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> None:
        """Begin without a row.

        Args:
            model: the network.
            draft: guesses for it.
            tokenizer: as for `Decoder`.
            stop: as for `Decoder`.

        Raises:
            DialogueError: the two networks do not have equally many tokens.
        """
        super().__init__(model, tokenizer, stop)
        if draft.model.config.vocab_size != model.config.vocab_size:
            raise DialogueError(
                f"the draft has {draft.model.config.vocab_size:,} tokens and the network "
                f"{model.config.vocab_size:,}; expected the same vocabulary"
            )
        self.draft = draft

    def add(
        self,
        prompt_ids: Sequence[int],
        config: GenerationConfig,
        *,
        generator: torch.Generator | None = None,
        cache: KVCache | None = None,
    ) -> Row:
        """Let the row join; see `Decoder.add`. A second one is a DialogueError, too."""
        if self.rows:
            raise DialogueError("guesses are for one row; decode several with a plain Decoder")
        row = super().add(prompt_ids, config, generator=generator, cache=cache)
        if row.cache is None:
            row.cache = KVCache.for_model(self.model)
        return row

    @torch.inference_mode()
    def step(self) -> list[Step]:
        """Choose one token or more for the row, if it is not finished; errors are those of `Decoder.step`."""
        if self.stop is not None and self.stop():
            raise Stopped
        if not self.rows or self.rows[0].finish_reason is not None:
            return []
        row, said = self.rows[0], len(self.rows[0].ids) - self.rows[0].prompt_length
        assert row.cache is not None
        most = row.config.reply_limit(row.prompt_length) - said - 1
        guesses = self.draft.guess(row, most) if said else []  # the first token waits for no one
        logits = read(self.model, [*row.ids, *guesses], row.cache, 1 + len(guesses))  # (1 + guesses, V)
        normalizers = cache(partial(log_sum_exp, logits))
        steps: list[Step] = []
        for place in range(len(logits)):
            try:
                (token,) = self._chosen(logits[place : place + 1], row)
            except GenerationError:
                if not steps:
                    raise
                break  # what was said before stands, and the next step says it again
            steps.append(Step(row, token, logits[place], normalizers, place))
            row.say(token)
            if row.finish_reason is not None or [token] != guesses[place : place + 1]:
                break
        self.draft.learn(len(guesses), sum(step.id == guess for step, guess in zip(steps, guesses, strict=False)))
        return steps

    def _chosen(self, logits: Tensor, row: Row) -> list[int]:
        if not row.config.remove_invalid_values:
            require_finite(logits, [row])
        return choose(processed(logits, [row]), [row], [row])


def read(model: GPT2, ids: Sequence[int], held: KVCache, number: int) -> Tensor:
    """Read what a cache of one row does not hold of these ids, and score what follows the last of them.

    Args:
        model: the network.
        ids: all of the row.
        held: what it has read before, of this row or of another one.
        number: how many places are scored.

    Returns:
        Logits after each of the last places: (number, V) in float32.
    """
    held.crop(0, min(shared_prefix(held.ids[0], ids), len(ids) - number))
    unread = torch.tensor([ids[len(held.ids[0]) :]], device=model.device)  # (1, T)
    return model.logits(model.hidden(unread, held)[0, -number:]).float()  # (number, V)


def _copied(generator: torch.Generator | None) -> torch.Generator | None:
    """A generator that gives the numbers which another one will give."""
    if generator is None:
        return None
    copy = torch.Generator(generator.device)
    copy.set_state(generator.get_state())
    return copy
