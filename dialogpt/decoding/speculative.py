"""Speculative decoding: a fast network drafts a few tokens, and the network itself checks them in one pass.

A pass over five tokens takes about as long as over one, as it mostly waits for the weights to be read. Both networks
sample with the same random numbers, so that they often agree (Daliri, Musco and Suresh, "Coupling without Communication
and Drafter-Invariant Speculative Decoding", 2024). The tokens are those that the network would generate alone with the
same seed: a draft changes only the speed.

It decodes one sequence: a batch reads the weights once for all of its sequences already.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dialogpt.decoding.prefill import logits_after
from dialogpt.decoding.sampling import choose_tokens, process_logits, require_finite
from dialogpt.decoding.sequence import GenerationError, SequenceFactory, TokenSequence
from dialogpt.decoding.step import Step
from dialogpt.decoding.stop import Stop, Stopped
from dialogpt.errors import DialogueError
from dialogpt.generation_config import GenerationConfig
from dialogpt.history import Prompt
from dialogpt.model import GPT2, KVCache
from dialogpt.networks import require_same_vocabulary
from dialogpt.tokenizer import Tokenizer
from dialogpt.weights import Source, load, open_checkpoint
from dialogpt.weights.load import device_of

INITIAL_DRAFT_TOKENS, MAX_DRAFT_TOKENS = 4, 8  # in a pass
logger = logging.getLogger(__name__)


class Draft:
    """The draft network and its cache, for one conversation at a time.

    Attributes:
        model: of the same vocabulary as the network that it drafts for.
        compared: whether its vocabulary was found to extend that of the network, or the other way round.
        proposed: how many draft tokens were checked so far.
        accepted: how many of them the network generated too.
    """

    def __init__(self, model: GPT2, *, compared: bool = False) -> None:
        """Begin with an empty cache.

        Args:
            model: the draft network.
            compared: whether its vocabulary is known to extend the network's, or the other way round; their embeddings
                may then differ in rows.
        """
        self.model = model
        self.compared = compared
        self.proposed, self.accepted = 0, 0
        self._cache = KVCache.for_model(model)
        self._num_tokens = INITIAL_DRAFT_TOKENS
        self._damaged = False
        self._lock = threading.Lock()  # chats of several threads may share a draft, one proposal after the other

    @classmethod
    def load(
        cls, source: Source, tokenizer: Tokenizer, *, dtype: str | None = None, device: str | torch.device = "cpu"
    ) -> Draft:
        """Open the checkpoint of a draft network.

        Args:
            source: see `dialogpt.weights.load`; the checkpoint of the network itself works too.
            tokenizer: of the network that it drafts for.
            dtype: None is a fast one: int8 on a CPU, float16 elsewhere. No reply depends on it.
            device: where it runs.

        Raises:
            CheckpointError: it cannot be used.
            DialogueError: it has another vocabulary, or was not trained to generate text.
        """
        checkpoint = open_checkpoint(source)
        if checkpoint.ranking_head is not None:
            raise DialogueError(f"{checkpoint.path} is a DialogRPT, which does not generate text; name another draft")
        require_same_vocabulary(tokenizer, checkpoint)
        fast = "int8" if device_of(device).type == "cpu" else "float16"
        return cls(load(checkpoint, dtype=dtype or fast, device=device), compared=True)

    def require_fits(self, model: GPT2) -> None:
        """Refuse a network that it cannot draft for.

        Raises:
            DialogueError: it has another vocabulary, or is on another device.
        """
        own, other = self.model.config.vocab_size, model.config.vocab_size
        if own != other and not self.compared:
            raise DialogueError(f"the draft has {own:,} embedding rows and the network {other:,}; expected as many")
        if self.model.device != model.device:
            raise DialogueError(f"the draft is on {self.model.device} and the network on {model.device}")

    @torch.inference_mode()
    def propose(self, sequence: TokenSequence, max_tokens: int, vocab_size: int) -> list[int]:
        """Return draft tokens for a sequence, which is not changed.

        There are fewer where the draft cannot choose one; the network will report the reason itself.

        Args:
            sequence: what is continued.
            max_tokens: how many at most.
            vocab_size: V of the network that it drafts for.
        """
        with self._lock:
            return self._propose(sequence, max_tokens, vocab_size)

    def _propose(self, sequence: TokenSequence, max_tokens: int, vocab_size: int) -> list[int]:
        drafted = replace(sequence, ids=list(sequence.ids), generator=_copied_generator(sequence.generator))
        limit = min(max_tokens, self._num_tokens, self.model.config.n_positions - len(sequence.ids) + 1)
        while not self._damaged and len(drafted.ids) - len(sequence.ids) < limit and drafted.finish_reason is None:
            logits = logits_after(self.model, self._known(drafted.ids), self._cache, 1)  # (1, own V)
            self._damaged = not torch.isfinite(logits).all()
            if self._damaged:
                logger.warning("the draft's logits contain NaN or infinity; it proposes nothing from here on")
                break
            try:
                logits = _resized(logits, vocab_size)  # (1, V)
                (token,) = choose_tokens(process_logits(logits, [drafted]), [drafted], [drafted])
            except GenerationError:
                break
            drafted.append(token)
        return drafted.ids[len(sequence.ids) :]

    def _known(self, ids: list[int]) -> list[int]:
        """The ids with the draft's last token for those that it has no row for; what it proposes changes no reply."""
        last = self.model.config.vocab_size - 1
        return ids if max(ids) <= last else [min(token, last) for token in ids]

    def record(self, proposed: int, accepted: int) -> None:
        """Count draft tokens, and propose two more next time if all were accepted, else as many as were."""
        self.proposed, self.accepted = self.proposed + proposed, self.accepted + accepted
        if proposed:
            self._num_tokens = min(self._num_tokens + 2, MAX_DRAFT_TOKENS) if accepted == proposed else max(accepted, 1)


def _resized(logits: Tensor, vocab_size: int) -> Tensor:
    """Logits of as many tokens as the network has: what the draft lacks cannot be drafted, the rest is left out."""
    missing = vocab_size - logits.size(-1)
    return logits if not missing else torch.nn.functional.pad(logits, (0, missing), value=float("-inf"))  # (1, V)


class _Checked:
    """The logits of one pass: after a sequence, and after each of its draft tokens."""

    def __init__(self, logits: Tensor, draft_tokens: list[int]) -> None:
        self.logits = logits  # (1 + draft tokens, V)
        self.draft_tokens = draft_tokens
        self.accepted = 0

    def accepts(self, token: int) -> bool:
        """Compare a token with the draft's at this position; if they agree, move to the next position."""
        agrees = self.draft_tokens[self.accepted : self.accepted + 1] == [token]  # false behind the last draft token
        self.accepted += agrees
        return agrees


class SpeculativeDecoder:
    """Decodes one sequence, one token a step; most steps need no pass of the network."""

    def __init__(
        self,
        model: GPT2,
        draft: Draft,
        tokenizer: Tokenizer | None = None,
        stop: Stop | None = None,
        stops_in_prompt: bool = True,
    ) -> None:
        """Begin without a sequence; arguments are those of `Decoder`.

        Raises:
            DialogueError: the draft is on another device, or has another vocabulary.
        """
        draft.require_fits(model)
        self.model, self.draft, self.stop = model, draft, stop
        self._factory = SequenceFactory(model, tokenizer, stops_in_prompt)
        self._sequence: TokenSequence | None = None
        self._cache = KVCache.for_model(model)
        self._checked: _Checked | None = None  # None: the next step needs a pass

    def add(
        self,
        prompt_ids: Prompt | Sequence[int],
        config: GenerationConfig,
        *,
        generator: torch.Generator | None = None,
        cache: KVCache | None = None,
    ) -> TokenSequence:
        """Set the sequence; see `Decoder.add`. A second one is a DialogueError, too."""
        if self._sequence is not None:
            raise DialogueError("speculative decoding is for one sequence; decode several with a plain Decoder")
        if cache is not None and len(cache.ids) != 1:
            raise DialogueError(f"the cache has {len(cache.ids)} rows; expected one")
        self._cache = cache or self._cache
        self._sequence = self._factory.create(prompt_ids, config, generator)
        return self._sequence

    @torch.inference_mode()
    def step(self) -> list[Step]:
        """Generate one token, if the sequence is not finished; errors are those of `Decoder.step`."""
        if self.stop is not None and self.stop():
            raise Stopped
        sequence = self._sequence
        if sequence is None or sequence.finish_reason is not None:
            return []
        checked = self._checked or self._check(sequence)
        self._checked = checked
        logits = checked.logits[checked.accepted : checked.accepted + 1]  # (1, V)
        require_finite(logits, [sequence])
        (token,) = choose_tokens(process_logits(logits, [sequence]), [sequence], [sequence])
        sequence.append(token)
        if not checked.accepts(token) or sequence.finish_reason is not None:
            self.draft.record(len(checked.draft_tokens), checked.accepted)
            self._checked = None
        return [Step(sequence, token, lambda: logits[0])]

    def _check(self, sequence: TokenSequence) -> _Checked:
        """Compute the logits of a sequence and of draft tokens after it in one pass."""
        generated = len(sequence.ids) - sequence.prompt_length
        limit = sequence.config.reply_limit(sequence.prompt_length) - generated - 1
        V = self.model.config.vocab_size
        draft_tokens = (
            self.draft.propose(sequence, limit, V) if generated else []
        )  # the first token comes without delay
        ids = [*sequence.ids, *draft_tokens]
        return _Checked(logits_after(self.model, ids, self._cache, 1 + len(draft_tokens)), draft_tokens)


def _copied_generator(generator: torch.Generator | None) -> torch.Generator | None:
    """Return a generator that will give the numbers which another one will give."""
    if generator is None:
        return None
    copy = torch.Generator(generator.device)
    copy.set_state(generator.get_state())
    return copy
