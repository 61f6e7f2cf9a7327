"""How the next token is chosen: the settings of transformers' `GenerationConfig`, with its names and meanings.

Below them stand a few that dialogue needs and transformers has not; they are off in `GenerationConfig()`. Applying them
is left to `dialogpt.sampler` and `dialogpt.decoding.beam_search`. This file imports no torch, as the command line
builds its flags here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from dialogpt.errors import DialogueError

DEFAULT_NEW_TOKENS = 20
DEFAULT_CANDIDATES = 16  # for a reranker to choose among, as in DialoGPT's paper
SCOPES = ("all", "own", "reply")


@dataclass(frozen=True)
class Kind:
    """What values a setting takes.

    Attributes:
        fits: whether a value is one.
        expected: in words.
        parse: makes one of what a person types; raises ValueError or KeyError for what is none.
        freeze: turns lists, as JSON has them, into tuples.
    """

    fits: Callable[[Any], bool]
    expected: str
    parse: Callable[[str], Any]
    freeze: Callable[[Any], Any] = lambda value: value


def _is_whole(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 63


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1 << 63 and math.isfinite(value)


def _are_ids(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(map(_is_whole, value))


def _is_end(value: Any) -> bool:
    return _is_whole(value) or _are_ids(value)


def _is_bias(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and _are_ids(value[0]) and type(value[1]) is float


def _is_decay(value: Any) -> bool:
    return (
        isinstance(value, tuple) and len(value) == 2 and _is_whole(value[0]) and _is_number(value[1]) and value[1] > 0
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(text, str) and text for text in value)


def _parse_switch(text: str) -> bool:
    return {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}[text.lower()]


def _parse_ids(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _parse_early_stopping(text: str) -> bool | str:
    return text if text == "never" else _parse_switch(text)


def _parse_texts(text: str) -> Any:
    return _freeze(json.loads(text)) if text.startswith("[") else (text,)


def _freeze(value: Any) -> Any:
    """Lists as tuples, all the way down, and a dictionary as pairs, as transformers' `sequence_bias` may be either."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_freeze, value))
    if isinstance(value, Mapping):
        return tuple((_freeze(key), entry) for key, entry in value.items())
    return value


def _freeze_texts(value: Any) -> Any:
    return (value,) if isinstance(value, str) else _freeze(value)


_SWITCH = Kind(lambda value: isinstance(value, bool), "true or false", _parse_switch)
_COUNT = Kind(_is_whole, "a whole number from 0 on", int)
_POSITIVE = Kind(lambda value: _is_whole(value, 1), "a whole number from 1 on", int)
_FACTOR = Kind(lambda value: _is_number(value) and value > 0, "a number above 0", float)
_NUMBER = Kind(_is_number, "a number", float)
_SHARE = Kind(lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1", float)
_SHARE_ABOVE_0 = Kind(lambda value: _is_number(value) and 0 < value <= 1, "a number above 0, up to 1", float)
_SHARE_BELOW_1 = Kind(lambda value: _is_number(value) and 0 <= value < 1, "a number from 0 to below 1", float)
_END = Kind(_is_end, "a token id, or several", _parse_ids, _freeze)
_IDS = Kind(_are_ids, "token ids: 3,17", _parse_ids, _freeze)
_SEQUENCES = Kind(
    lambda value: isinstance(value, tuple) and bool(value) and all(map(_are_ids, value)),
    "lists of token ids: [[3], [17, 4]]",
    json.loads,
    _freeze,
)
_BIASES = Kind(
    lambda value: isinstance(value, tuple) and bool(value) and all(map(_is_bias, value)),
    "pairs of token ids and a number with a point: [[[3], 2.5], [[17, 4], -1.0]]",
    json.loads,
    _freeze,
)
_TEXTS = Kind(_are_texts, 'a text, or several: ["a", "b"]', _parse_texts, _freeze_texts)


def _setting(default: Any, kind: Kind, purpose: str) -> Any:
    """A field of `GenerationConfig`: its default, its kind, and what it is for."""
    return field(default=default, metadata={"kind": kind, "help": purpose})


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Settings of one generation; the defaults are transformers'. None means unset, and takes the default.

    Raises:
        DialogueError: a value is out of its range, or two contradict each other; all problems are named.
    """

    # How long. Of max_new_tokens and max_length, min_new_tokens and min_length, the first counts if both are given, a
    # min_new_tokens of 0 too.
    max_new_tokens: int | None = _setting(None, _POSITIVE, f"most tokens of a reply (unset: {DEFAULT_NEW_TOKENS})")
    max_length: int | None = _setting(None, _POSITIVE, "most tokens of prompt and reply together")
    min_new_tokens: int | None = _setting(None, _COUNT, "fewest tokens before a reply may end")
    min_length: int = _setting(0, _COUNT, "fewest tokens of prompt and reply before it may end")
    eos_token_id: int | tuple[int, ...] | None = _setting(
        None, _END, "the token that ends a reply, or several: 3,17; unset is the network's own"
    )
    stop_strings: tuple[str, ...] | None = _setting(
        None, _TEXTS, "a text that ends a reply and stays in it, or several"
    )
    max_time: float | None = _setting(None, _FACTOR, "seconds after which no further token is begun")

    # How the choice is made.
    do_sample: bool = _setting(False, _SWITCH, "draw the next token rather than take the likeliest")
    num_beams: int = _setting(1, _POSITIVE, "sequences that beam search follows at once; 1 is no beam search")
    length_penalty: float = _setting(1.0, _NUMBER, "beams: above 0 favours long replies, below 0 short ones")
    early_stopping: bool | str = _setting(
        False,
        Kind(
            lambda value: isinstance(value, bool) or value == "never", 'true, false or "never"', _parse_early_stopping
        ),
        "beams: stop when as many are finished as beams; never: only when none can become better",
    )
    num_return_sequences: int = _setting(1, _POSITIVE, "replies to one prompt")

    # What changes the scores, in transformers' order.
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] | None = _setting(
        None, _BIASES, "add to the score of token sequences: [[[3], 2.5], [[17, 4], -1.0]]"
    )
    repetition_penalty: float = _setting(
        1.0, _FACTOR, "divide the scores of all tokens seen (repetition_scope); 1 is off"
    )
    no_repeat_ngram_size: int = _setting(0, _COUNT, "never repeat n tokens in a row (repetition_scope); 0 is off")
    bad_words_ids: tuple[tuple[int, ...], ...] | None = _setting(
        None, _SEQUENCES, "token sequences that are never said: [[3], [17, 4]]"
    )
    forced_bos_token_id: int | None = _setting(None, _COUNT, "the token after a prompt of one token")
    forced_eos_token_id: int | tuple[int, ...] | None = _setting(None, _END, "the token that comes last at full length")
    remove_invalid_values: bool = _setting(False, _SWITCH, "take NaN and infinity of the network for ordinary numbers")
    exponential_decay_length_penalty: tuple[int, float] | None = _setting(
        None,
        Kind(_is_decay, "a token count and a factor above 0: [20, 1.05]", json.loads, _freeze),
        "raise the end token's score more and more after so many tokens: [20, 1.05]",
    )
    suppress_tokens: tuple[int, ...] | None = _setting(None, _IDS, "tokens that are never said: 3,17")
    begin_suppress_tokens: tuple[int, ...] | None = _setting(None, _IDS, "tokens that no reply begins with: 3,17")
    temperature: float = _setting(
        1.0,
        Kind(_FACTOR.fits, "a number above 0 (for greedy decoding, do_sample off)", float),
        "below 1 bolder in what is likely, above 1 more random",
    )
    top_h: float | None = _setting(
        None, _SHARE_ABOVE_0, "draw from the likeliest tokens that hold this share of the entropy"
    )
    top_k: int = _setting(50, _COUNT, "draw from the k likeliest tokens only; 0 is off")
    top_p: float = _setting(1.0, _SHARE, "draw from the likeliest tokens that hold this probability")
    min_p: float | None = _setting(None, _SHARE, "draw from tokens at least this many times as likely as the likeliest")
    typical_p: float = _setting(
        1.0, _SHARE_ABOVE_0, "draw from the tokens of ordinary surprise that hold this probability"
    )
    epsilon_cutoff: float = _setting(0.0, _SHARE_BELOW_1, "draw from tokens of at least this probability")
    eta_cutoff: float = _setting(0.0, _SHARE_BELOW_1, "the same, with a lower bound where the choice is wide open")
    renormalize_logits: bool = _setting(False, _SWITCH, "make probabilities of the scores again at the end")

    # What dialogue needs beyond transformers.
    repetition_scope: str = _setting(
        "all",
        Kind(lambda value: value in SCOPES, "all, own or reply", str),
        "where repetition counts: all (prompt too, as in transformers), own (the bot's own turns), reply (this one)",
    )
    no_repeat_reply: bool = _setting(False, _SWITCH, "never say exactly the bot's last turn again")
    bad_words: tuple[str, ...] | None = _setting(
        None, _TEXTS, 'a word that is never said, with a capital or without, or several: ["a", "b"]'
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            value = setting.default if value is None else setting.metadata["kind"].freeze(value)
            object.__setattr__(self, setting.name, value)
        if self.max_new_tokens is None and self.max_length is None:
            object.__setattr__(self, "max_new_tokens", DEFAULT_NEW_TOKENS)
        problems = [
            f"{setting.name} is {_shown(value)}, expected {kind.expected}"
            for setting in fields(self)
            if (value := getattr(self, setting.name)) is not None and not (kind := setting.metadata["kind"]).fits(value)
        ]
        problems = problems or self._contradictions()
        if problems:
            raise DialogueError("; ".join(problems))

    def _contradictions(self) -> list[str]:
        """What is wrong with values that are right alone."""
        problems = []
        if self.max_new_tokens is not None and (self.min_new_tokens or 0) > self.max_new_tokens:
            problems.append(f"min_new_tokens {self.min_new_tokens} is above max_new_tokens {self.max_new_tokens}")
        if self.num_return_sequences > 1 and not self.do_sample and self.num_beams == 1:
            problems.append(
                f"{self.num_return_sequences} replies to one prompt would all be the same without do_sample"
            )
        if self.num_return_sequences > self.num_beams > 1:
            problems.append(f"num_return_sequences {self.num_return_sequences} is above num_beams {self.num_beams}")
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            forced = _several(getattr(self, name))
            if forced and {*forced} <= {*(self.suppress_tokens or ())}:
                problems.append(f"{name} forces {_shown(getattr(self, name))}, which suppress_tokens bans")
        return problems

    @classmethod
    def chat(cls, own: Mapping[str, Any] | None = None) -> GenerationConfig:
        """The preset for talking.

        Args:
            own: what a checkpoint's ``config.json`` sets otherwise, as it suits that network better.

        Raises:
            DialogueError: `own` holds what is no setting, or a value that is out of its range.

        Sampled, because greedy replies loop; the tail is cut, because an unlikely token early on derails a short
        reply; a reply has at least one token; and the bot does not repeat four tokens in a row, or a whole turn, of its
        own: with tiny 15 % of its replies in long dialogues did. Three would ban a second "I don't", and the person's
        own words may be taken up.
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
        unknown = sorted((own or {}).keys() - {setting.name for setting in fields(cls)})
        if unknown:
            raise DialogueError(f"the checkpoint has chat settings that do not exist: {', '.join(unknown)}")
        return preset.merged(own or {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenerationConfig:
        """The settings in a checkpoint's ``generation_config.json``, or such a dictionary from elsewhere.

        Raises:
            DialogueError: a value is out of its range, or asks for something that is not implemented; all are named.
        """
        if not isinstance(values, Mapping):
            raise DialogueError(f"settings are a {type(values).__name__}; expected a dictionary")
        values = {name: value for name, value in values.items() if value != []}  # as good as unset
        known = {setting.name for setting in fields(cls)}
        foreign = [
            f"{name} is {_shown(value)}, which is not implemented (leave it away)"
            for name, value in values.items()
            if name not in known and name not in WITHOUT_EFFECT and not _is_neutral(name, value)
        ]
        try:
            config = cls(**{name: value for name, value in values.items() if name in known})
        except DialogueError as error:
            raise DialogueError("; ".join([*foreign, str(error)])) from None
        if foreign:
            raise DialogueError("; ".join(foreign))
        return config

    def fitted(self, n_positions: int) -> GenerationConfig:
        """The same settings, with at most half of a small network's positions for the reply."""
        if self.max_new_tokens is None:
            assert self.max_length is not None
            return replace(self, max_length=min(self.max_length, n_positions))
        most = max(1, min(self.max_new_tokens, n_positions // 2))
        least = None if self.min_new_tokens is None else min(self.min_new_tokens, most)
        return replace(self, max_new_tokens=most, min_new_tokens=least)

    def greedy(self) -> GenerationConfig:
        """Return these settings for greedy decoding: every processor neutral, except those that ban or bias tokens."""
        return replace(self, do_sample=False, num_beams=1, num_return_sequences=1, **RESET_BY_GREEDY)

    def merged(self, given: Mapping[str, Any]) -> GenerationConfig:
        """Apply what a user gave on top of these defaults.

        Flags, ``/set``, request bodies and Python callers share this one rule. A temperature of 0 is greedy decoding; a
        temperature above 0 samples, unless `do_sample` is given too. `max_length` counts unless `max_new_tokens` is
        given too. None resets a setting to transformers' default.

        Raises:
            DialogueError: a value is out of its range, or two contradict each other; all problems are named.
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

    def with_bans_of(self, other: GenerationConfig) -> GenerationConfig:
        """Return these settings with everything added that another configuration bans or biases.

        A server's clients may add bans to the operator's and remove none. Where both bias the same tokens, the other
        configuration counts.
        """
        united: dict[str, Any] = {}
        for name in BANS:
            entries = (*(getattr(self, name) or ()), *(getattr(other, name) or ()))
            united[name] = tuple(dict(entries).items() if name == "sequence_bias" else dict.fromkeys(entries)) or None
        return replace(self, **united)

    def with_end_token(self, token: int) -> GenerationConfig:
        """Return these settings with one more token that ends a reply: the end of a turn, which no turn may hold."""
        return replace(self, eos_token_id=tuple(dict.fromkeys((token, *self.end_ids))))

    def reply_limit(self, prompt_length: int) -> int:
        """The most tokens that a reply to a prompt of so many tokens may have."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        assert self.max_length is not None
        return self.max_length - prompt_length

    def prompt_room(self, n_positions: int) -> int:
        """The longest prompt that leaves room for a reply among so many positions."""
        if self.max_new_tokens is not None:
            return n_positions - self.max_new_tokens
        assert self.max_length is not None
        return min(self.max_length, n_positions) - 1

    @property
    def end_ids(self) -> Sequence[int]:
        """The tokens that end a reply, as a sequence; none where `eos_token_id` is unset."""
        return _several(self.eos_token_id)

    @property
    def tokens_to_keep(self) -> int:
        """How many tokens no cut may go below; beams need one besides the end tokens, to go on with."""
        if self.num_beams == 1:
            return 1
        return 2 if self.eos_token_id is None else len(self.end_ids) + 1


def _several(ids: int | tuple[int, ...] | None) -> tuple[int, ...]:
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else ids


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def parse_value(name: str, text: str) -> Any:
    """The value of a setting from what a person typed.

    Raises:
        DialogueError: there is no such setting, or the text is no value of its kind; ranges are checked later. "none"
            unsets it.
    """
    kinds: dict[str, Kind] = {setting.name: setting.metadata["kind"] for setting in fields(GenerationConfig)}
    if name not in kinds:
        raise DialogueError(f"there is no setting {name!r}; there are {', '.join(kinds).replace('_', '-')}")
    if text.lower() in ("none", "unset"):
        return None
    try:
        return kinds[name].freeze(kinds[name].parse(text))
    except (KeyError, ValueError, RecursionError):
        raise DialogueError(f"{name.replace('_', '-')} is {text[:80]!r}, expected {kinds[name].expected}") from None


def is_switch(name: str) -> bool:
    """Whether a setting is either true or false, and nothing else."""
    return any(setting.name == name and setting.metadata["kind"] is _SWITCH for setting in fields(GenerationConfig))


def positive(name: str, text: str) -> int:
    """A whole number from 1 on, as a person typed it.

    Raises:
        DialogueError: it is none.
    """
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise DialogueError(f"{name.replace('_', '-')} is {text[:20]!r}, expected a whole number from 1 to 999999999")
    return int(text)


def parse_setting(config: GenerationConfig, name: str, text: str) -> GenerationConfig:
    """Change one setting as a person typed it; see `GenerationConfig.merged`.

    Raises:
        DialogueError: as `parse_value`, or the settings do not go together.
    """
    name = name.replace("-", "_")
    return config.merged({name: parse_value(name, text)})


# Each processor's value that changes nothing; with `do_sample` off this is plain greedy decoding.
NEUTRAL: dict[str, Any] = {
    setting.name: setting.default
    for setting in fields(GenerationConfig)
    if setting.name
    not in (
        "max_new_tokens", "max_length", "min_new_tokens", "eos_token_id", "stop_strings", "max_time", "do_sample",
        "num_beams", "length_penalty", "early_stopping", "num_return_sequences",
    )
} | {"top_k": 0}  # fmt: skip

# What the operator of a chat or a server forbids or favours. Greedy decoding keeps it, and a client cannot remove it.
BANS = ("sequence_bias", "bad_words_ids", "bad_words", "suppress_tokens", "begin_suppress_tokens")
RESET_BY_GREEDY = {name: value for name, value in NEUTRAL.items() if name not in BANS}

# Settings of transformers' that change no token here: notes, outputs, how its cache works, what other networks use.
WITHOUT_EFFECT = frozenset({
    "transformers_version", "_from_model_config", "bos_token_id", "pad_token_id", "decoder_start_token_id", "use_cache",
    "cache_implementation", "cache_config", "max_cache_len", "return_dict_in_generate", "output_scores",
    "output_logits", "output_attentions", "output_hidden_states", "return_legacy_cache", "is_assistant",
    "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "speculation_type",
    "assistant_ensemble_weight", "compile_config", "disable_compile", "continuous_batching_config",
    "prefill_chunk_size", "generation_kwargs",
})  # fmt: skip
_NEUTRAL_THERE = {  # transformers' settings that are not implemented, at the value where they do nothing
    "encoder_repetition_penalty": 1.0,
    "guidance_scale": 1.0,
    "diversity_penalty": 0.0,
    "num_beam_groups": 1,
}


def _is_neutral(name: str, value: Any) -> bool:
    return value is None or value is False or value == _NEUTRAL_THERE.get(name, 0)
