"""One sequence that is being decoded: its tokens, its resolved settings, and when it is finished.

`SequenceFactory` checks a prompt and resolves its settings; what is computed for a sequence is left to
`dialogpt.decoding.loop`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from dialogpt.decoding.noise import fresh_generator
from dialogpt.decoding.stop_strings import StopStrings
from dialogpt.errors import DialogueError, Problem, SettingsError
from dialogpt.generation_config import GenerationConfig, several
from dialogpt.history import Prompt
from dialogpt.logits.known_tokens import check_tokens
from dialogpt.logits.processors import Seen
from dialogpt.model import GPT2
from dialogpt.tokenizer import Tokenizer

MAX_CACHED_SETTINGS = 256  # resolved ones per decoder; a server's decoder never ends


class Outcome(NamedTuple):
    """Whether a sequence is finished: None, "stop" or "length"; and whether its last token is an end token."""

    finish_reason: str | None
    has_end_token: bool


@dataclass(eq=False)  # sequences are keys: each equals only itself
class TokenSequence:
    """A prompt and the reply that is generated after it.

    Attributes:
        ids: the prompt and the generated tokens.
        prompt_length: how many of them are the prompt.
        config: resolved settings: end tokens and bad words are token ids.
        generator: what its tokens are sampled from; sequences may share one.
        own_turns: the bot's turns in the prompt, for settings that need them.
        stop_strings: detects the texts that end it, if the settings name any.
        deadline: when it must end, in seconds of `time.monotonic`.
        finish_reason: None while it is unfinished; then "stop" (an end token or a stop string) or "length" (maximum
            length or time).
        has_end_token: whether the last token is an end token.
    """

    ids: list[int]
    prompt_length: int
    config: GenerationConfig
    generator: torch.Generator | None
    own_turns: Sequence[Sequence[int]] = ()
    stop_strings: StopStrings | None = None
    deadline: float = math.inf
    finish_reason: str | None = None
    has_end_token: bool = False

    @property
    def new_ids(self) -> list[int]:
        """The generated tokens without the end token."""
        return self.ids[self.prompt_length : len(self.ids) - self.has_end_token]

    @property
    def seen(self) -> Seen:
        """What logits processors look at."""
        return Seen(self.ids, self.prompt_length, self.own_turns)

    def append(self, token: int) -> None:
        """Append a generated token, and update whether the sequence is finished."""
        self.ids.append(token)
        self.finish_reason, self.has_end_token = self.outcome(self.ids)

    def outcome(self, ids: Sequence[int]) -> Outcome:
        """Return whether this sequence would be finished if it held these ids."""
        if ids[-1] in self.config.end_ids:
            return Outcome("stop", True)
        if self.stop_strings is not None and self.stop_strings.end(ids):
            return Outcome("stop", False)
        full = len(ids) - self.prompt_length >= self.config.reply_limit(self.prompt_length)
        return Outcome("length" if full or self.is_late else None, False)

    @property
    def is_late(self) -> bool:
        """Whether its deadline has passed."""
        return time.monotonic() > self.deadline

    def restart(self) -> None:
        """Remove the generated tokens; the generator goes on, so that the next ones differ."""
        del self.ids[self.prompt_length :]
        self.finish_reason, self.has_end_token = None, False


class SequenceFactory:
    """Makes sequences for one network: checks prompts and resolves settings."""

    def __init__(self, model: GPT2, tokenizer: Tokenizer | None = None, stops_in_prompt: bool = True) -> None:
        """Prepare for a network; with `stops_in_prompt`, a stop string may begin in the prompt, as in transformers."""
        self._model, self._tokenizer, self._stops_in_prompt = model, tokenizer, stops_in_prompt
        self._resolved: dict[GenerationConfig, GenerationConfig] = {}

    def create(
        self, prompt_ids: Prompt | Sequence[int], config: GenerationConfig, generator: torch.Generator | None
    ) -> TokenSequence:
        """Make a sequence; arguments and errors are those of `Decoder.add`."""
        prompt = prompt_ids if isinstance(prompt_ids, Prompt) else Prompt(list(prompt_ids), 0, 0)
        ids = list(prompt.ids)
        self._check_prompt(ids, config)
        # Equal settings are resolved once, to one object: `process_logits` is faster for rows that share it.
        resolved = self._resolved.get(config)
        if resolved is None:
            if len(self._resolved) >= MAX_CACHED_SETTINGS:
                self._resolved.clear()
            resolved = self._resolved[config] = self._resolve(config)
        if generator is None and config.do_sample:
            generator = fresh_generator(self._model.device)
        sequence = TokenSequence(ids, len(ids), resolved, generator)
        if config.no_repeat_reply or config.repetition_scope == "own":
            known = prompt.own_turns
            sequence.own_turns = infer_own_turns(ids, self._turn_ends(resolved)) if known is None else known
        if config.stop_strings:
            begin = 0 if self._stops_in_prompt else len(ids)
            sequence.stop_strings = StopStrings(config.stop_strings, self._require_tokenizer("stop_strings"), begin)
        if config.max_time is not None:
            sequence.deadline = time.monotonic() + config.max_time
        return sequence

    def _check_prompt(self, ids: list[int], config: GenerationConfig) -> None:
        limits = self._model.config
        if not ids:
            raise DialogueError("the prompt is empty; expected at least one token")
        if not all(0 <= token < limits.vocab_size for token in ids):
            raise DialogueError(f"the prompt holds ids outside the vocabulary of {limits.vocab_size:,} tokens")
        new_tokens = config.reply_limit(len(ids))
        if new_tokens < 1:
            above = f"above {len(ids)}, the tokens of the prompt, to leave room for a reply"
            raise SettingsError([Problem("max_length", config.max_length, above)])
        if len(ids) + new_tokens > limits.n_positions:
            name = "max_length" if config.max_new_tokens is None else "max_new_tokens"
            room = f"the network's {limits.n_positions} positions: a prompt of {len(ids)} tokens and {new_tokens} new"
            raise SettingsError([Problem(name, getattr(config, name), f"smaller or the prompt shorter, to fit {room}")])

    def _resolve(self, config: GenerationConfig) -> GenerationConfig:
        """Fill in what depends on the network and the vocabulary: end tokens, and bad words as token ids."""
        if config.eos_token_id is None:
            config = replace(config, eos_token_id=self._model.config.eos_token_id)
        if config.bad_words:
            tokenizer = self._require_tokenizer("bad_words")
            spelled = tuple(dict.fromkeys(ids for word in config.bad_words for ids in spellings(word, tokenizer)))
            config = replace(config, bad_words_ids=(*(config.bad_words_ids or ()), *spelled), bad_words=None)
        check_tokens(config, self._model.config.vocab_size)
        return config

    def _turn_ends(self, config: GenerationConfig) -> Sequence[int]:
        """Return the tokens that end turns; the settings may name others that end a reply."""
        if self._tokenizer is not None:
            return [self._tokenizer.eos_id]
        return several(self._model.config.eos_token_id) or config.end_ids

    def _require_tokenizer(self, setting: str) -> Tokenizer:
        if self._tokenizer is None:
            raise DialogueError(f"{setting} needs tokenizer=, as it holds texts")
        return self._tokenizer


def infer_own_turns(prompt: Sequence[int], end_ids: Sequence[int]) -> list[list[int]]:
    """Return the bot's turns in bare ids: a and c of the turns a b c d, as speakers alternate and the user is last."""
    turns: list[list[int]] = [[]]
    for token in prompt:
        if token in end_ids:
            turns.append([])
        else:
            turns[-1].append(token)
    if not turns[-1]:  # the prompt ends with the end of a turn
        turns.pop()
    return turns[-2::-2][::-1]


def spellings(word: str, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """Return the token sequences that spell a word: after a space or not, as it stands or capitalized."""
    forms = dict.fromkeys(space + form for form in (word, word[:1].upper() + word[1:]) for space in ("", " "))
    return [tuple(tokenizer.encode(form)) for form in forms]


class GenerationError(DialogueError):
    """No token can be chosen; the message says why.

    Attributes:
        sequences: those that failed, where that is known; the others can continue without them.
    """

    def __init__(self, message: str, sequences: Sequence[TokenSequence] = ()) -> None:
        super().__init__(message)
        self.sequences = sequences


class NotFinite(GenerationError):
    """The logits contain NaN or infinity: the weights are damaged."""
