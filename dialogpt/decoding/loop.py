"""The decoding loop: sequences that prefill a prompt and generate one token a step, each with its own settings.

`replies.stream_reply` runs it for a chat, `whole_replies` for replies that are known at their end, the server for those
that come and go, `generation` for Python callers; beam search and speculative decoding have loops of their own.
Prompts are token ids here; `dialogpt.sampler` processes logits, `dialogpt.decoding.batch` holds the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from dialogpt.decoding.batch import RunningBatch
from dialogpt.decoding.prefill import prefill_sequence
from dialogpt.decoding.prefill_batch import prefill_chunk, prefill_sequences
from dialogpt.decoding.sampling import choose_tokens, process_logits, take_rows
from dialogpt.decoding.screened import needed_logits
from dialogpt.decoding.sequence import SequenceFactory, TokenSequence
from dialogpt.decoding.speculative import Draft, SpeculativeDecoder
from dialogpt.decoding.step import Step, all_logits
from dialogpt.decoding.stop import Stop, Stopped
from dialogpt.errors import DialogueError
from dialogpt.generation_config import GenerationConfig
from dialogpt.history import Prompt
from dialogpt.model import GPT2, KVCache
from dialogpt.model.precision.packed import screens
from dialogpt.tokenizer import Tokenizer


class Decoder:
    """Decodes sequences together.

    Sequences that share a generator are sampled as `model.generate` of transformers does: from one noise matrix, in
    which a finished sequence keeps its row until it is dropped.
    """

    def __init__(
        self,
        model: GPT2,
        tokenizer: Tokenizer | None = None,
        stop: Stop | None = None,
        prefill_budget: int | None = None,
        stops_in_prompt: bool = True,
        screened: bool = False,
    ) -> None:
        """Begin without sequences.

        Args:
            model: the network.
            tokenizer: of the same checkpoint, for settings that hold texts (`stop_strings`, `bad_words`).
            stop: asked before every step; true cancels decoding with `Stopped`.
            prefill_budget: the most tokens of prompts that are prefilled per step, so that running sequences do not
                wait long for a new one; None prefills whole prompts at once.
            stops_in_prompt: whether a stop string may begin in the prompt, as in transformers.
            screened: whether a large head in float32 may compute, for a single sequence, only the logits that matter
                (`dialogpt.decoding.screened`). It pays where `Step.logits`, which computes all, is hardly ever read.
        """
        self.model, self.stop, self.prefill_budget = model, stop, prefill_budget
        self.screened = screened and screens(model)
        self.sequences: list[TokenSequence] = []
        self._factory = SequenceFactory(model, tokenizer, stops_in_prompt)
        self._batch = RunningBatch(model)
        self._waiting_caches: dict[TokenSequence, KVCache] = {}  # of sequences that are not prefilled yet

    def add(
        self,
        prompt_ids: Prompt | Sequence[int],
        config: GenerationConfig,
        *,
        generator: torch.Generator | None = None,
        cache: KVCache | None = None,
    ) -> TokenSequence:
        """Add a sequence, whose prompt is prefilled at the next step, once for several with equal prompts.

        Args:
            prompt_ids: at least one token. A `Prompt` knows which turns are the bot's; in bare ids speakers alternate.
            config: its settings; without `eos_token_id` the network's own ends the reply.
            generator: what tokens are sampled from; None is a fresh one.
            cache: of one row, which may hold a prefix of the prompt. A sequence that is decoded alone uses this very
                cache, several use copies.

        Raises:
            DialogueError: the prompt is empty, holds unknown ids or leaves no room for the reply; the settings name
                unknown tokens; or the cache has other than one row.
        """
        if cache is not None and len(cache.ids) != 1:
            raise DialogueError(f"the cache has {len(cache.ids)} rows; expected one")
        sequence = self._factory.create(prompt_ids, config, generator)
        if cache is not None:
            self._waiting_caches[sequence] = cache
        self.sequences.append(sequence)
        return sequence

    def drop(self, sequence: TokenSequence) -> None:
        """Remove a sequence, finished or not; its cache row is freed at the next step of others."""
        self.sequences.remove(sequence)
        self._waiting_caches.pop(sequence, None)

    def cache_of(self, sequence: TokenSequence) -> KVCache | None:
        """Return a copy of what is cached of a sequence that is running or has just finished; None if nothing is."""
        return self._batch.cache_of(sequence)

    @torch.inference_mode()
    def step(self) -> list[Step]:
        """Generate one token for every unfinished sequence, prefilling prompts first, within `prefill_budget`.

        Raises:
            GenerationError: logits are not finite, or every token of a sampled sequence is banned (a greedy one
                generates token 0 then, as in transformers).
            Stopped: the caller cancelled.
        """
        active, hidden = self.next_hidden()  # (B, C)
        if not active:
            return []
        needed = needed_logits(self.model, hidden, active) if self.screened else None  # (1, V), -inf where not needed
        logits = all_logits(self.model, hidden, active) if needed is None else needed
        scores = process_logits(logits, active)  # (B, V)
        stepping = {*active}
        # Finished sequences keep their row of a shared generator's noise, as in transformers.
        sharing_noise = [each for each in self.sequences if each.finish_reason is not None or each in stepping]
        tokens = choose_tokens(scores, active, sharing_noise)
        for sequence, token in zip(active, tokens, strict=True):
            sequence.append(token)
        # Where few logits were needed, all are computed if somebody asks for them: a chat never does.
        of_row = logits.__getitem__ if needed is None else lambda row: self.model.logits(hidden)[row].float()
        return [
            Step(sequence, token, functools.partial(of_row, row))
            for row, (sequence, token) in enumerate(zip(active, tokens, strict=True))
        ]

    def next_logits(self) -> tuple[list[TokenSequence], Tensor]:
        """Compute the logits after every sequence that takes part in this step, prefilling prompts first.

        Returns:
            These sequences, and their logits, (B, V) in float32.

        Raises:
            GenerationError: logits are not finite.
            Stopped: the caller cancelled.
        """
        active, hidden = self.next_hidden()
        return active, all_logits(self.model, hidden, active)

    def next_hidden(self) -> tuple[list[TokenSequence], Tensor]:
        """Compute the hidden state of the last token of each such sequence, (B, C); see `next_logits`."""
        if self.stop is not None and self.stop():
            raise Stopped
        active = [each for each in self.sequences if each.finish_reason is None]
        if self.prefill_budget is not None:
            # Running ones, and waiting ones while the budget lasts; of the next waiting one a chunk is prefilled.
            running = self._batch.sequences
            active = prefill_chunk(self.model, active, running, self._waiting_caches, self.prefill_budget)
        if not active:
            return active, torch.empty(0, self.model.config.n_embd)
        self._batch.retain({*active})
        of_running = self._batch.last_hidden()  # (B, C)
        parts = [] if of_running is None else [of_running]
        if waiting := [each for each in active if each not in self._batch.sequences]:
            if len(waiting) == 1:
                prefilled = prefill_sequence(self.model, waiting[0], self._waiting_caches.get(waiting[0]))
            else:
                prefilled = prefill_sequences(self.model, waiting, self._waiting_caches)
            parts.append(prefilled.hidden)
            self._batch.admit(prefilled)
            for sequence in waiting:
                self._waiting_caches.pop(sequence, None)
        # The rows are those of the batch: the running ones, then those admitted.
        row_of = {sequence: row for row, sequence in enumerate(self._batch.sequences)}
        hidden = parts[0] if len(parts) == 1 else torch.cat(parts)
        return active, take_rows(hidden, [row_of[each] for each in active])  # (B, C)

    def reorder(self, choices: Sequence[tuple[TokenSequence, TokenSequence, int]]) -> None:
        """Continue beams; see `RunningBatch.reorder`."""
        self._batch.reorder(choices)


StepDecoder: TypeAlias = Decoder | SpeculativeDecoder  # what generates replies token by token


def decoder_for(
    model: GPT2,
    tokenizer: Tokenizer | None,
    num_sequences: int,
    draft: Draft | None,
    stop: Stop | None = None,
    stops_in_prompt: bool = True,
    screened: bool = False,
) -> StepDecoder:
    """Return a decoder for so many sequences; a draft serves a single one."""
    if draft is not None and num_sequences == 1:
        return SpeculativeDecoder(model, draft, tokenizer, stop, stops_in_prompt)
    return Decoder(model, tokenizer, stop, stops_in_prompt=stops_in_prompt, screened=screened)
