"""Objects in request bodies, whose unknown fields are kept and named: a misspelt field is a warning, never silence."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

MAX_WARNINGS = 5  # of one request; a body may hold thousands of unknown fields


class Fields(BaseModel):
    """An object in a body.

    Attributes:
        also_known: the fields that it may have without declaring them.
    """

    model_config = ConfigDict(extra="allow")

    also_known: ClassVar[Collection[str]] = ()

    @classmethod
    def known_fields(cls) -> list[str]:
        """Return the names that it may have in a body."""
        return [*(field.alias or name for name, field in cls.model_fields.items()), *cls.also_known]


def unknown_fields(body: Fields) -> list[str]:
    """Return a sentence for each unknown field of a body and of the objects in it, with the name that may be meant."""
    sentences: list[str] = []
    for holder, path, name in _unknown(body, ""):
        near = difflib.get_close_matches(name[:50], holder.known_fields(), n=1)
        sentences.append(f"{path + name[:50]!a} is unknown{f'; is {near[0]!r} meant?' if near else ''}")
        if len(sentences) == MAX_WARNINGS:
            break
    return sentences


def _unknown(holder: Fields, path: str) -> Iterator[tuple[Fields, str, str]]:
    """Yield each unknown field: the object that has it, the path of that object, and its name."""
    if holder.model_extra:
        known = {*holder.known_fields()}
        yield from ((holder, path, name) for name in holder.model_extra if name not in known)
    for name, value in holder.__dict__.items():  # the declared fields
        if isinstance(value, Fields):
            yield from _unknown(value, f"{path}{name}.")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, Fields):
                    yield from _unknown(item, f"{path}{name}[{index}].")
