"""What objects look like at a prompt: one line with what one wants to know, for each class that is named here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

_OF: dict[str, Callable[[Any], str]] = {
    "Chat": lambda chat: (
        f"<Chat: {chat.model.config.n_layer} layers, {chat.model.config.n_embd} wide, on {chat.model.device}; "
        f"{len(chat.history.turns)} turns, {chat.history_tokens} tokens of them shown>"
    ),
    "History": lambda history: f"<History: {len(history.turns)} turns, {sum(map(len, history.turns))} tokens>",
    "Tokenizer": lambda tokenizer: (
        f"<Tokenizer: {tokenizer.vocabulary.size:,} tokens, from {tokenizer.vocabulary.origin}; "
        f"{tokenizer.eos_id} ends a turn>"
    ),
    "GenerationConfig": lambda config: f"GenerationConfig({', '.join(_changed(config))})",
}


class Described:
    """The base of a class whose `repr` is in the table above."""

    def __repr__(self) -> str:
        describe = _OF.get(type(self).__name__)
        return super().__repr__() if describe is None else describe(self)


def _changed(config: Any) -> list[str]:
    """The fields of a dataclass that differ from their defaults, as arguments."""
    values = {each.name: getattr(config, each.name) for each in fields(config)}
    return [f"{each.name}={values[each.name]!r}" for each in fields(config) if values[each.name] != each.default]
