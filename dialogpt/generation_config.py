"""How the next token is chosen: the settings of transformers' `GenerationConfig`, with its names and meanings.

Applying them is left to `dialogpt.sampler`. This file imports no torch, because the command line builds its flags here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from dialogpt.errors import DialogueError


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Settings of one generation; the defaults are transformers'. None means unset, and takes the default.

    Raises:
        DialogueError: a value is out of its range, or two contradict each other; all problems are named.
    """

    max_new_tokens: int = field(default=20, metadata={"help": "most tokens of a reply"})
    min_new_tokens: int = field(default=0, metadata={"help": "fewest tokens before a reply may end"})
    do_sample: bool = field(default=False, metadata={"help": "draw the next token rather than take the likeliest"})
    temperature: float = field(default=1.0, metadata={"help": "below 1 bolder in what is likely, above 1 more random"})
    top_k: int = field(default=50, metadata={"help": "draw from the k likeliest tokens only; 0 is off"})
    top_p: float = field(default=1.0, metadata={"help": "draw from the likeliest tokens that hold this probability"})
    repetition_penalty: float = field(
        default=1.0, metadata={"help": "divide the scores of all tokens seen, prompt included; 1 is off"}
    )
    no_repeat_ngram_size: int = field(
        default=0, metadata={"help": "never repeat n tokens in a row, prompt included; 0 is off"}
    )
    num_return_sequences: int = field(default=1, metadata={"help": "replies to one prompt"})
    eos_token_id: int | tuple[int, ...] | None = field(
        default=None, metadata={"help": "the token that ends a reply, or several: 3,17; unset is the network's own"}
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            if getattr(self, setting.name) is None:
                object.__setattr__(self, setting.name, setting.default)
        if isinstance(self.eos_token_id, list):
            object.__setattr__(self, "eos_token_id", tuple(self.eos_token_id))
        problems = [
            f"{name} is {getattr(self, name)!r}, expected {expected}"
            for name, (fits, expected) in _RANGES.items()
            if not fits(getattr(self, name))
        ]
        if not problems and self.min_new_tokens > self.max_new_tokens:
            problems.append(f"min_new_tokens {self.min_new_tokens} is above max_new_tokens {self.max_new_tokens}")
        if not problems and self.num_return_sequences > 1 and not self.do_sample:
            problems.append(
                f"{self.num_return_sequences} replies to one prompt would all be the same without do_sample"
            )
        if problems:
            raise DialogueError("; ".join(problems))

    @classmethod
    def chat(cls) -> GenerationConfig:
        """The preset for talking.

        Sampled, because greedy replies loop; the tail is cut, because an unlikely token early on derails a short
        reply; and a reply has at least one token.
        """
        return cls(do_sample=True, temperature=0.8, top_k=50, top_p=0.9, max_new_tokens=64, min_new_tokens=1)

    def fitted(self, n_positions: int) -> GenerationConfig:
        """The same settings, with at most half of a small network's positions for the reply."""
        most = max(1, min(self.max_new_tokens, n_positions // 2))
        return replace(self, max_new_tokens=most, min_new_tokens=min(self.min_new_tokens, most))

    def greedy(self) -> GenerationConfig:
        """The same settings with every processor neutral: the likeliest token, always."""
        return replace(self, do_sample=False, **NEUTRAL)

    @property
    def end_ids(self) -> Sequence[int]:
        """The tokens that end a reply, as a sequence; none where `eos_token_id` is unset."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else self.eos_token_id


def parse_value(name: str, text: str) -> Any:
    """The value of a setting from what a person typed.

    Raises:
        DialogueError: there is no such setting, or the text is no value of its kind; ranges are checked later.
    """
    kinds: dict[str, Callable[[str], Any]] = {
        setting.name: type(setting.default) for setting in fields(GenerationConfig)
    }
    if name not in kinds:
        raise DialogueError(f"there is no setting {name!r}; there are {', '.join(kinds).replace('_', '-')}")
    try:
        if kinds[name] is bool:
            return {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}[text.lower()]
        if name == "eos_token_id":
            return tuple(int(part) for part in text.split(","))
        return kinds[name](text)
    except (KeyError, ValueError):
        raise DialogueError(f"{name.replace('_', '-')} is {text!r}, expected {_RANGES[name][1]}") from None


def positive(name: str, text: str) -> int:
    """A whole number from 1 on, as a person typed it.

    Raises:
        DialogueError: it is none.
    """
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise DialogueError(f"{name.replace('_', '-')} is {text[:20]!r}, expected a whole number from 1 to 999999999")
    return int(text)


def parse_setting(config: GenerationConfig, name: str, text: str) -> GenerationConfig:
    """The settings with one of them changed as a person typed it; a temperature of 0 is greedy decoding.

    Raises:
        DialogueError: as `parse_value`, or the settings do not go together.
    """
    name = name.replace("-", "_")
    value = parse_value(name, text)
    return config.greedy() if name == "temperature" and value == 0 else replace(config, **{name: value})


# Each processor's value that changes nothing; with `do_sample` off this is plain greedy decoding.
NEUTRAL: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return _is_whole(value) and bool(value >= 0)


def _is_positive(value: Any) -> bool:
    return _is_whole(value) and bool(value >= 1)


def _is_end(value: Any) -> bool:
    return value is None or all(map(_is_count, value if isinstance(value, tuple) else (value,)))


_COUNT = (_is_count, "a whole number from 0 on")
_POSITIVE = (_is_positive, "a whole number from 1 on")
_FACTOR = (lambda value: _is_number(value) and value > 0, "a number above 0")
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": _POSITIVE,
    "min_new_tokens": _COUNT,
    "do_sample": (lambda value: isinstance(value, bool), "true or false"),
    "temperature": (_FACTOR[0], "a number above 0 (for greedy decoding, do_sample off)"),
    "top_k": _COUNT,
    "top_p": (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "repetition_penalty": _FACTOR,
    "no_repeat_ngram_size": _COUNT,
    "num_return_sequences": _POSITIVE,
    "eos_token_id": (_is_end, "a token id, or several"),
}
