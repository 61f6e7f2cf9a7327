"""The settings of generation: transformers' `GenerationConfig`, with its names and meanings, and a few for dialogue.

The settings that transformers does not have are off by default. `dialogpt.sampler` applies those that change scores,
`dialogpt.decoding.sequence` those that end a reply, and `dialogpt.decoding.beam_search` those of beams. This file
imports no torch, as the command line builds its flags from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from dialogpt.errors import DialogueError, Problem, SettingsError
from dialogpt.settings import (
    ABOVE_0,
    BIASES,
    DECAY,
    EARLY_STOPPING,
    END_TOKENS,
    NON_NEGATIVE,
    NUMBER,
    POSITIVE,
    SEQUENCES,
    SHARE,
    SHARE_ABOVE_0,
    SHARE_BELOW_1,
    SWITCH,
    TEXTS,
    TOKENS,
    changed_fields,
    choice,
    kinds_of,
    number,
    problems_of,
    setting,
)

DEFAULT_NEW_TOKENS = 20
DEFAULT_CANDIDATES = 16  # for a reranker, as in DialoGPT's paper
_PENALTY = number(minimum=-2, maximum=2)  # OpenAI's range


@dataclass(frozen=True, kw_only=True, repr=False)
class GenerationConfig:
    """The settings of one generation; the defaults are transformers'. A setting of None takes its default.

    Raises:
        SettingsError: values are out of range or, where none is, contradict each other; all of them are named.
    """

    # Length. max_new_tokens overrides max_length, and min_new_tokens, even 0, overrides min_length.
    max_new_tokens: int | None = setting(
        None, POSITIVE, f"maximum tokens of a reply (unset: {DEFAULT_NEW_TOKENS}; chat: 64)"
    )
    max_length: int | None = setting(None, POSITIVE, "maximum tokens of prompt and reply together")
    min_new_tokens: int | None = setting(None, NON_NEGATIVE, "minimum tokens of a reply before it may end")
    min_length: int = setting(0, NON_NEGATIVE, "minimum tokens of prompt and reply together before it may end")
    eos_token_id: int | tuple[int, ...] | None = setting(
        None, END_TOKENS, "the end token of a reply, or several: 3,17 (unset: the checkpoint's)"
    )
    stop_strings: tuple[str, ...] | None = setting(
        None, TEXTS, "a text that ends a reply and is part of it, or several"
    )
    max_time: float | None = setting(None, ABOVE_0, "seconds after which no further token is generated")

    # Decoding.
    do_sample: bool = setting(False, SWITCH, "sample the next token instead of taking the most probable one")
    num_beams: int = setting(1, POSITIVE, "beams of a beam search; 1 is no beam search")
    length_penalty: float = setting(1.0, NUMBER, "beams: above 0 favors long replies, below 0 short ones")
    early_stopping: bool | str = setting(
        False, EARLY_STOPPING, "beams: stop once num_beams are finished; never: only when none can improve"
    )
    num_return_sequences: int = setting(1, POSITIVE, "replies per prompt")

    # Logits processors, in transformers' order; presence_penalty and frequency_penalty are OpenAI's.
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] | None = setting(
        None, BIASES, "add to the logits of token sequences: [[[3], 2.5], [[17, 4], -1.0]]"
    )
    repetition_penalty: float = setting(1.0, ABOVE_0, "above 1, makes tokens in repetition_scope less likely; 1 is off")
    presence_penalty: float = setting(0.0, _PENALTY, "subtract from the logits of generated tokens; 0 is off")
    frequency_penalty: float = setting(0.0, _PENALTY, "the same, for each time that a token was generated; 0 is off")
    no_repeat_ngram_size: int = setting(0, NON_NEGATIVE, "never repeat a run of n tokens of repetition_scope; 0 is off")
    bad_words_ids: tuple[tuple[int, ...], ...] | None = setting(
        None, SEQUENCES, "token sequences that are never generated: [[3], [17, 4]]"
    )
    forced_bos_token_id: int | None = setting(None, NON_NEGATIVE, "the token after a prompt of one token")
    forced_eos_token_id: int | tuple[int, ...] | None = setting(
        None, END_TOKENS, "the last token of a reply of maximum length, unless it is banned"
    )
    remove_invalid_values: bool = setting(False, SWITCH, "replace NaN and infinity in the logits by finite numbers")
    exponential_decay_length_penalty: tuple[int, float] | None = setting(
        None, DECAY, "raise the end token's logit by a growing factor after so many tokens: [20, 1.05]"
    )
    suppress_tokens: tuple[int, ...] | None = setting(None, TOKENS, "tokens that are never generated: 3,17")
    begin_suppress_tokens: tuple[int, ...] | None = setting(None, TOKENS, "tokens that no reply begins with: 3,17")

    # Logits warpers, with do_sample only, in transformers' order; renormalize_logits follows in any case.
    temperature: float = setting(
        1.0,
        number(above=0, note=" (for greedy decoding, do_sample off)"),
        "divides the logits: below 1 sharpens the distribution, above 1 flattens it",
    )
    top_h: float | None = setting(None, SHARE_ABOVE_0, "keep the top tokens that hold this share of the entropy")
    top_k: int = setting(50, NON_NEGATIVE, "keep the k most probable tokens; 0 is off")
    top_p: float = setting(1.0, SHARE, "keep the most probable tokens that hold this probability")
    min_p: float | None = setting(None, SHARE, "keep tokens at least this many times as probable as the most probable")
    typical_p: float = setting(1.0, SHARE_ABOVE_0, "keep the tokens of typical surprise that hold this probability")
    epsilon_cutoff: float = setting(0.0, SHARE_BELOW_1, "keep tokens of at least this probability")
    eta_cutoff: float = setting(0.0, SHARE_BELOW_1, "the same, with a lower bound where the entropy is high")
    renormalize_logits: bool = setting(False, SWITCH, "normalize the processed logits to log-probabilities")

    # For dialogue; not in transformers either.
    repetition_scope: str = setting(
        "all",
        choice("all", "own", "reply"),
        "where repetition counts: all (prompt too, as in transformers), own (the bot's turns), reply (this one)",
    )
    no_repeat_reply: bool = setting(False, SWITCH, "do not end a reply where it equals the bot's last turn")
    bad_words: tuple[str, ...] | None = setting(
        None, TEXTS, 'a word that is never generated, capitalized or not, or several: ["a", "b"]'
    )

    def __post_init__(self) -> None:
        for declared in fields(self):
            value = getattr(self, declared.name)
            # Lists of JSON become tuples: equal settings have one hash.
            value = declared.default if value is None else declared.metadata["kind"].freeze(value)
            object.__setattr__(self, declared.name, value)
        if self.max_new_tokens is None and self.max_length is None:
            object.__setattr__(self, "max_new_tokens", DEFAULT_NEW_TOKENS)
        problems = problems_of(self, kinds_of(self)) or self._contradictions()
        if problems:
            raise SettingsError(problems)

    __repr__ = changed_fields

    def _contradictions(self) -> list[Problem]:
        """Return the problems between values that are valid alone; `Problem.worded` replaces the names in braces."""
        problems, replies = [], self.num_return_sequences
        if self.max_new_tokens is not None and (self.min_new_tokens or 0) > self.max_new_tokens:
            limit = f"at most {{max_new_tokens}}, {self.max_new_tokens}"
            problems.append(Problem("min_new_tokens", self.min_new_tokens, limit))
        if replies > 1 and not self.do_sample and self.num_beams == 1:
            expected = "1 without {do_sample}, as all replies to a prompt would be the same"
            problems.append(Problem("num_return_sequences", replies, expected))
        if replies > self.num_beams > 1:
            problems.append(Problem("num_return_sequences", replies, f"at most {{num_beams}}, {self.num_beams}"))
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            forced = several(getattr(self, name))
            if forced and {*forced} <= {*(self.suppress_tokens or ())}:
                problems.append(Problem(name, getattr(self, name), "a token that {suppress_tokens} does not ban"))
        return problems

    @classmethod
    def chat(cls, own: Mapping[str, Any] | None = None) -> GenerationConfig:
        """Return the preset for a conversation.

        It samples, because greedy replies loop; it cuts the tail of the distribution, because one improbable token
        derails a short reply; and the bot repeats no run of four tokens of its own, nor its last turn (the first
        tiny did in 15 % of its replies in long dialogues). Three tokens would ban a second "I don't". A checkpoint may
        set otherwise, as today's tiny does: temperature 0.2, and repeats allowed.

        Args:
            own: what a checkpoint's ``config.json`` sets otherwise.

        Raises:
            DialogueError: `own` names an unknown setting, or a value is out of range.
        """
        preset = cls(
            do_sample=True,
            temperature=0.8,
            top_k=50,
            top_p=0.9,
            max_new_tokens=64,
            min_new_tokens=1,
            no_repeat_ngram_size=4,
            repetition_scope="own",
            no_repeat_reply=True,
        )
        unknown = sorted((own or {}).keys() - kinds_of(cls).keys())
        if unknown:
            raise DialogueError(f"the checkpoint has chat settings that do not exist: {', '.join(unknown)}")
        return preset.merged(own or {})

    def fitted(self, n_positions: int) -> GenerationConfig:
        """Return these settings for a small network: `max_new_tokens` at most half its positions, `max_length` all."""
        if self.max_new_tokens is None:
            assert self.max_length is not None
            return replace(self, max_length=min(self.max_length, n_positions))
        maximum = max(1, min(self.max_new_tokens, n_positions // 2))
        minimum = None if self.min_new_tokens is None else min(self.min_new_tokens, maximum)
        return replace(self, max_new_tokens=maximum, min_new_tokens=minimum)

    def greedy(self) -> GenerationConfig:
        """Return these settings for greedy decoding: `BANS`, and what ends a reply or sets its length, stay."""
        return replace(self, do_sample=False, num_beams=1, num_return_sequences=1, **RESET_BY_GREEDY)

    def merged(self, given: Mapping[str, Any]) -> GenerationConfig:
        """Apply what a user gave on top of these defaults.

        Flags, ``/set``, request bodies and Python callers share this one rule. A temperature of 0 is greedy decoding
        without penalties (`greedy`); `do_sample` off keeps them; a temperature above 0 samples, unless `do_sample` is
        given too. `max_length` counts unless `max_new_tokens` is given. None resets a setting to transformers' default.

        Raises:
            DialogueError: values are out of range or contradict each other.
        """
        defaults, given = self, dict(given)
        if given.get("temperature") == 0:
            if given.pop("do_sample", None):
                raise DialogueError("do_sample is true, which contradicts temperature 0; omit one of them")
            del given["temperature"]
            defaults = self.greedy()
        elif given.get("temperature") is not None:
            given.setdefault("do_sample", True)
        if given.get("max_length") is not None:
            given.setdefault("max_new_tokens", None)
        return replace(defaults, **given)

    def with_end_token(self, token: int) -> GenerationConfig:
        """Add the end of a dialogue's turns to `eos_token_id`; where that is None, it alone ends a reply."""
        return self if token in self.end_ids else replace(self, eos_token_id=(token, *self.end_ids))

    def with_replies(self, number: int) -> GenerationConfig:
        """Return these settings for so many replies."""
        return self if self.num_return_sequences == number else replace(self, num_return_sequences=number)

    def reply_limit(self, prompt_length: int) -> int:
        """Return the maximum length of a reply to a prompt of so many tokens."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        assert self.max_length is not None
        return self.max_length - prompt_length

    def prompt_room(self, n_positions: int) -> int:
        """Return the length of the longest prompt that leaves room for a reply in a network of so many positions."""
        if self.max_new_tokens is not None:
            return n_positions - self.max_new_tokens
        assert self.max_length is not None
        return min(self.max_length, n_positions) - 1

    @property
    def end_ids(self) -> Sequence[int]:
        """The tokens that end a reply, as a sequence; none where `eos_token_id` is unset."""
        return several(self.eos_token_id)

    @property
    def tokens_to_keep(self) -> int:
        """How many tokens a warper keeps at least; a beam needs one more than the end tokens, to continue."""
        if self.num_beams == 1:
            return 1
        return 2 if self.eos_token_id is None else len(self.end_ids) + 1


def several(ids: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """Return token ids as a tuple, which may be given as one or as none."""
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else ids


# All settings of how a token is chosen, at the value that changes nothing: the default, but for top_k. Excluded by
# name: what ends a reply and how long it is, beams, how many replies there are, and sampling itself.
NEUTRAL: dict[str, Any] = {
    declared.name: declared.default
    for declared in fields(GenerationConfig)
    if declared.name
    not in (
        "max_new_tokens", "max_length", "min_new_tokens", "min_length", "eos_token_id", "stop_strings", "max_time",
        "do_sample", "num_beams", "length_penalty", "early_stopping", "num_return_sequences",
    )
} | {"top_k": 0}  # fmt: skip

# What the operator of a chat or a server bans or biases: a server's client cannot remove it (`dialogpt.serve.schemas`).
BANS = ("sequence_bias", "bad_words_ids", "bad_words", "suppress_tokens", "begin_suppress_tokens")
RESET_BY_GREEDY = {name: value for name, value in NEUTRAL.items() if name not in BANS}
OFF = NEUTRAL | {"min_length": 0, "min_new_tokens": None}  # with the minimum lengths, which change scores, too
