"""Speculative decoding: a fast network guesses a few tokens ahead, and the network itself reads them all in one pass.

A pass over five tokens takes hardly longer than over one, as the time goes into reading the weights. Guess and answer
are drawn with the same random numbers, so that they are often the same (Daliri, Musco and Suresh, "Coupling without
Communication and Drafter-Invariant Speculative Decoding", 2024). The tokens are those that the network would have said
alone, with the same seed, whatever was guessed: guesses make it faster, or slower, and nothing else.

For one row. Where several are decoded together, weights are read once for all of them, and there is less to gain.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor

from dialogpt.decoding.loop import (
    Decoder,
    GenerationError,
    Row,
    Step,
    Stop,
    Stopped,
    choose,
    log_sum_exp,
    processed,
    require_finite,
)
from dialogpt.errors import DialogueError
from dialogpt.generation_config import GenerationConfig
from dialogpt.history import Prompt
from dialogpt.model import GPT2, KVCache, shared_prefix
from dialogpt.tokenizer import Tokenizer
from dialogpt.weights import Source, load, open_checkpoint
from dialogpt.weights.load import device_of

FIRST, MOST = 4, 8  # tokens that are guessed in a pass: at first, and at most
logger = logging.getLogger(__name__)


class Draft:
    """The network that guesses, and what it has read of a dialogue; for one conversation at a time.

    Attributes:
        model: of the same vocabulary as the network that it guesses for.
        guessed: how many of its guesses were judged, since it was made.
        right: how many of them the network said.
    """

    def __init__(self, model: GPT2) -> None:
        """Begin with nothing read."""
        self.model = model
        self.guessed, self.right = 0, 0
        self._cache = KVCache.for_model(model)
        self._ahead = FIRST
        self._damaged = False

    @classmethod
    def load(
        cls, source: Source, tokenizer: Tokenizer, *, dtype: str | None = None, device: str | torch.device = "cpu"
    ) -> Draft:
        """Open the checkpoint of a network that guesses.

        Args:
            source: see `dialogpt.weights.load`; the checkpoint of the network itself will do.
            tokenizer: of the network that it guesses for.
            dtype: None is what is fast: int8 on a CPU, float16 elsewhere. No reply depends on it.
            device: where it runs.

        Raises:
            CheckpointError: it cannot be used.
            DialogueError: its vocabulary is another one, or it was not trained to write.
        """
        checkpoint = open_checkpoint(source)
        if checkpoint.ranking_head is not None:
            raise DialogueError(f"{checkpoint.path} is a DialogRPT, which was not trained to write; it cannot guess")
        tokenizer.require_same(checkpoint)
        fast = "int8" if device_of(device).type == "cpu" else "float16"
        return cls(load(checkpoint, dtype=dtype or fast, device=device))

    def require_fits(self, model: GPT2) -> None:
        """Refuse a network that it cannot guess for.

        Raises:
            DialogueError: as said.
        """
        own, other = self.model.config.vocab_size, model.config.vocab_size
        if own != other:
            raise DialogueError(f"the draft has {own:,} embedding rows and the network {other:,}; expected as many")
        if self.model.device != model.device:
            raise DialogueError(f"the draft is on {self.model.device} and the network on {model.device}")

    @torch.inference_mode()
    def guess(self, row: Row, most: int) -> list[int]:
        """The tokens that a row may say next, at most so many; the row is left as it is.

        Where there is nothing to be guessed from, there are fewer; the row itself will say what is wrong.
        """
        imagined = replace(row, ids=list(row.ids), generator=_copied(row.generator), cache=None)
        most = min(most, self._ahead, self.model.config.n_positions - len(row.ids) + 1)
        while not self._damaged and len(imagined.ids) - len(row.ids) < most and imagined.finish_reason is None:
            logits = logits_after(self.model, imagined.ids, self._cache, 1)  # (1, V)
            self._damaged = not torch.isfinite(logits).all()
            if self._damaged:
                logger.warning("the draft's output holds NaN or infinity; it guesses nothing from here on")
                break
            try:
                (token,) = choose(processed(logits, [imagined]), [imagined], [imagined])
            except GenerationError:
                break
            imagined.say(token)
        return imagined.ids[len(row.ids) :]

    def learn(self, guessed: int, right: int) -> None:
        """Hear how many of the last guesses were right, and guess two more next time, or as many as were right."""
        self.guessed, self.right = self.guessed + guessed, self.right + right
        if guessed:
            self._ahead = min(self._ahead + 2, MOST) if right == guessed else max(right, 1)


class SpeculativeDecoder(Decoder):
    """Decodes one row, one token a step; most steps need no pass of the network."""

    def __init__(
        self,
        model: GPT2,
        draft: Draft,
        tokenizer: Tokenizer | None = None,
        stop: Stop | None = None,
    ) -> None:
        """Begin without a row.

        Args:
            model: the network.
            draft: guesses for it.
            tokenizer: as for `Decoder`.
            stop: as for `Decoder`.

        Raises:
            DialogueError: the draft is on another device, or has another vocabulary.
        """
        super().__init__(model, tokenizer, stop)
        draft.require_fits(model)
        self.draft = draft
        self._guesses: list[int] = []
        self._logits: Tensor | None = None  # (1 + guesses, V): after the row, and after each guess
        self._place = 0  # of the logits that the next token is chosen from

    def add(
        self,
        prompt_ids: Prompt | Sequence[int],
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
        self._logits = None
        return row

    @torch.inference_mode()
    def step(self) -> list[Step]:
        """Choose one token for the row, if it is not finished; errors are those of `Decoder.step`."""
        if self.stop is not None and self.stop():
            raise Stopped
        if not self.rows or self.rows[0].finish_reason is not None:
            return []
        row = self.rows[0]
        if self._logits is None:
            self._logits, self._place = self._read_ahead(row), 0
            self._normalizers = cache(partial(log_sum_exp, self._logits))
        here = self._logits[self._place : self._place + 1]  # (1, V)
        if not row.config.remove_invalid_values:
            require_finite(here, [row])
        (token,) = choose(processed(here, [row]), [row], [row])
        step = Step(row, token, here[0], self._normalizers, self._place)
        row.say(token)
        right = [token] == self._guesses[self._place : self._place + 1]
        if right and row.finish_reason is None:
            self._place += 1
        else:
            self.draft.learn(len(self._guesses), self._place + right)
            self._logits = None
        return [step]

    def _read_ahead(self, row: Row) -> Tensor:
        """Let the draft guess, and read what the row has not read yet with all guesses: (1 + guesses, V)."""
        assert row.cache is not None
        said = len(row.ids) - row.prompt_length
        most = row.config.reply_limit(row.prompt_length) - said - 1
        self._guesses = self.draft.guess(row, most) if said else []  # the first token waits for no one
        return logits_after(self.model, [*row.ids, *self._guesses], row.cache, 1 + len(self._guesses))


def logits_after(model: GPT2, ids: Sequence[int], held: KVCache, number: int) -> Tensor:
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
