"""What values a setting takes, and how a typed value is parsed: the framework under the three configurations.

`GenerationConfig` and `TrainConfig` declare a `Kind` with each field, `GPT2Config` in a table beside them;
`problems_of` checks all fields. It imports no torch, as the command line builds its flags from these declarations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from dialogpt.errors import Problem, SettingsError, did_you_mean

MAX_INTEGER = (1 << 63) - 1  # what torch takes


@dataclass(frozen=True)
class Kind:
    """What values a setting takes.

    Attributes:
        accepts: whether a value is valid.
        expected: the valid values in words, to follow "must be".
        parse: makes a value of typed text; raises ValueError or KeyError.
        freeze: turns the lists of JSON into tuples.
        choices: the names to choose from, where there are a few.
    """

    accepts: Callable[[Any], bool]
    expected: str
    parse: Callable[[str], Any]
    freeze: Callable[[Any], Any] = lambda value: value
    choices: tuple[str, ...] = ()


def setting(default: Any, kind: Kind, purpose: str) -> Any:
    """Declare a field of a configuration: its default, its kind, and its help text."""
    return field(default=default, metadata={"kind": kind, "help": purpose})


def kinds_of(config: Any) -> dict[str, Kind]:
    """Return the kind of each field of a configuration or its class, by name."""
    return {declared.name: declared.metadata["kind"] for declared in fields(config)}


def changed_fields(config: Any) -> str:
    """Return a configuration as the call that makes it: the fields that differ from their defaults."""
    values = ((declared, getattr(config, declared.name)) for declared in fields(config))
    arguments = [f"{declared.name}={value!r}" for declared, value in values if value != declared.default]
    return f"{type(config).__name__}({', '.join(arguments)})"


def problems_of(config: Any, kinds: Mapping[str, Kind]) -> list[Problem]:
    """Return the fields whose values are not of their kind. A field whose default is None may be None."""
    optional = {declared.name for declared in fields(config) if declared.default is None}
    values = {name: getattr(config, name) for name in kinds}
    return [
        Problem(name, values[name], kind.expected)
        for name, kind in kinds.items()
        if not (values[name] is None and name in optional) and not kind.accepts(values[name])
    ]


def problems_of_values(values: Mapping[str, Any], kinds: Mapping[str, Kind]) -> list[Problem]:
    """Return the named values that are missing or not of their kind, as `problems_of` does for a configuration."""
    return [
        Problem(name, values.get(name), kind.expected)
        for name, kind in kinds.items()
        if not kind.accepts(values.get(name))
    ]


def parsed(name: str, text: str, kind: Kind) -> Any:
    """Parse the value of a setting as a person types it; "none" unsets it. Ranges are checked later.

    Raises:
        SettingsError: the text is no value of this kind.
    """
    if text.lower() in ("none", "unset"):
        return None
    try:
        return kind.freeze(kind.parse(text))
    except (KeyError, ValueError, RecursionError):
        raise SettingsError([Problem(name, text, kind.expected)]) from None


def required(name: str, value: Any, kind: Kind) -> Any:
    """Return a value that stands alone, outside a configuration, if it is of a kind.

    Raises:
        SettingsError: it is not.
    """
    if not kind.accepts(value):
        raise SettingsError([Problem(name, value, kind.expected)])
    return value


def require_names(names: Iterable[str], config: Any, *others: str) -> None:
    """Refuse keyword arguments that are no fields of a configuration.

    Args:
        names: of the arguments.
        config: the configuration, or its class.
        others: further names that exist.

    Raises:
        TypeError: one is unknown; the nearest name is given.
    """
    known = [*kinds_of(config), *others]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
            raise TypeError(f"there is no setting {name!r}{hint}")


# ---- kinds ----


def is_integer(value: Any, minimum: int = 0, maximum: int = MAX_INTEGER) -> bool:
    """Whether a value is an integer within bounds; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; true and false are not."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= MAX_INTEGER and math.isfinite(value)


def is_ids(value: Any) -> bool:
    """Whether a value is a tuple of token ids, at least one."""
    return isinstance(value, tuple) and bool(value) and all(map(is_integer, value))


def integer(minimum: int = 0, maximum: int = MAX_INTEGER) -> Kind:
    """Return the kind of integers from `minimum` to `maximum`."""
    if maximum < MAX_INTEGER:
        expected = f"an integer from {minimum:,} to {maximum:,}"
    else:
        expected = {0: "a non-negative integer", 1: "a positive integer"}.get(minimum, f"an integer from {minimum} on")
    return Kind(lambda value: is_integer(value, minimum, maximum), expected, int)


def number(
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    note: str = "",
) -> Kind:
    """Return the kind of finite numbers within bounds.

    Args:
        minimum: the smallest valid number.
        above: all valid numbers are above it.
        maximum: the largest valid number.
        below: all valid numbers are below it.
        note: ends the description in an error.
    """
    bounds = (
        ("from", minimum),
        ("above", above),
        ("to" if minimum is not None else "up to", maximum),
        ("below", below),
    )
    words = " ".join(f"{word} {bound:,}" for word, bound in bounds if bound is not None)

    def accepts(value: Any) -> bool:
        return (
            is_number(value)
            and (minimum is None or value >= minimum)
            and (above is None or value > above)
            and (maximum is None or value <= maximum)
            and (below is None or value < below)
        )

    return Kind(accepts, f"a number {words}".rstrip() + note, float)


def choice(*values: str) -> Kind:
    """Return the kind of a few names."""
    return Kind(lambda value: value in values, " or ".join(values), str, choices=values)


def parse_switch(text: str) -> bool:
    """Parse true or false as a person types it."""
    return {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}[text.lower()]


SWITCH = Kind(lambda value: isinstance(value, bool), "true or false", parse_switch)
POSITIVE = integer(1)
NON_NEGATIVE = integer(0)


def typed_count(maximum: int = 999_999_999) -> Kind:
    """Return the kind of counts that people type: plain digits."""
    return replace(integer(1, maximum), parse=_parse_count)


def _parse_count(text: str) -> int:
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise ValueError
    return int(text)


TYPED_COUNT = typed_count()


# ---- kinds of generation settings ----


def _freeze(value: Any) -> Any:
    """Turn lists into tuples, and a dictionary into pairs: `sequence_bias` may be either, as in transformers."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_freeze, value))
    if isinstance(value, Mapping):
        return tuple((_freeze(key), entry) for key, entry in value.items())
    return value


def _is_bias(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and is_ids(value[0]) and type(value[1]) is float


def _is_decay(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and is_integer(value[0]) and ABOVE_0.accepts(value[1])


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _parse_ids(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _tuple_of(accepts: Any, expected: str, parse: Any = json.loads, freeze: Any = _freeze) -> Kind:
    """Return the kind of tuples of at least one entry."""
    return Kind(
        lambda value: isinstance(value, tuple) and bool(value) and all(map(accepts, value)), expected, parse, freeze
    )


ABOVE_0 = number(above=0)
NUMBER = number()
SHARE = number(minimum=0, maximum=1)
SHARE_ABOVE_0 = number(above=0, maximum=1)
SHARE_BELOW_1 = number(minimum=0, below=1)
END_TOKENS = Kind(lambda value: is_integer(value) or is_ids(value), "a token id, or several", _parse_ids, _freeze)
TOKENS = Kind(is_ids, "token ids: 3,17", _parse_ids, _freeze)
SEQUENCES = _tuple_of(is_ids, "lists of token ids: [[3], [17, 4]]")
BIASES = _tuple_of(_is_bias, "pairs of token ids and a number with a point: [[[3], 2.5], [[17, 4], -1.0]]")
TEXTS = _tuple_of(
    _is_text,
    'a text, or several: ["a", "b"]',
    lambda text: _freeze(json.loads(text)) if text.startswith("[") else (text,),
    lambda value: (value,) if isinstance(value, str) else _freeze(value),
)
DECAY = Kind(_is_decay, "a token count and a factor above 0: [20, 1.05]", json.loads, _freeze)
EARLY_STOPPING = Kind(
    lambda value: isinstance(value, bool) or value == "never",
    'true, false or "never"',
    lambda text: text if text == "never" else parse_switch(text),
)
