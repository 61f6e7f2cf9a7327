"""Files that this program wrote itself, read as carefully as files from elsewhere: a disk, a sync or an editor may have
damaged them since.

A schema says which kind each field has; the kinds are those of settings. What the fields mean is left to the callers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dialogpt.errors import DialogueError, SettingsError
from dialogpt.files import json_input
from dialogpt.files.plain_file import require_plain_file
from dialogpt.settings import Kind, is_integer, is_number, problems_of_values

MAX_COUNT = 1 << 53  # what JSON's numbers hold exactly
LINE_LIMIT = 8 << 20  # bytes of a line, or of a file that is read whole; longer ones are not parsed

Schema = Mapping[str, Kind]


def _kind(accepts: Any, expected: str) -> Kind:
    return Kind(accepts, expected, str)


def listed(kind: Kind, expected: str) -> Kind:
    """A list of values of a kind."""
    return _kind(lambda value: isinstance(value, list) and all(map(kind.accepts, value)), expected)


def optional(kind: Kind) -> Kind:
    """A value of a kind, or null."""
    return _kind(lambda value: value is None or kind.accepts(value), f"{kind.expected}, or null")


TEXT = _kind(lambda value: isinstance(value, str), "a text")
TEXTS = listed(TEXT, "a list of texts")
OBJECT = _kind(lambda value: isinstance(value, dict), "an object")
TEXT_BY_TEXT = _kind(
    lambda value: isinstance(value, dict) and all(map(TEXT.accepts, value.values())), "an object of texts"
)
TEXTS_BY_TEXT = _kind(
    lambda value: isinstance(value, dict) and all(map(TEXTS.accepts, value.values())), "an object of lists of texts"
)
COUNT = _kind(lambda value: is_integer(value, 0, MAX_COUNT), "a non-negative integer")
AT_LEAST_ONE = _kind(lambda value: is_integer(value, 1, MAX_COUNT), "a positive integer")
NUMBER = _kind(lambda value: is_number(value) or (isinstance(value, float) and math.isfinite(value)), "a finite number")
SECONDS = _kind(lambda value: NUMBER.accepts(value) and value >= 0, "a non-negative number")


def require(content: Mapping[str, Any], schema: Schema, what: str) -> None:
    """Raise unless all fields of a schema are there with values of their kinds; other fields are left alone.

    Args:
        content: what was read.
        schema: the kind of each field; one that may be null may be missing too.
        what: the beginning of the sentence, the name of a file.

    Raises:
        DialogueError: every field that is not as expected.
    """
    problems = problems_of_values(content, schema)
    if problems:
        raise DialogueError(f"{what} is damaged: {SettingsError(problems)}")


def read_object(path: Path, schema: Schema) -> dict[str, Any]:
    """The object in a file.

    Raises:
        OSError: it cannot be read, or is no plain file.
        ValueError: as `parse_line`.
    """
    require_plain_file(path)
    with path.open("rb") as file:
        return parse_line(file.read(LINE_LIMIT + 1), schema)


def parse_line(line: bytes, schema: Schema) -> dict[str, Any]:
    """The object on a line of a file.

    Raises:
        ValueError: it is not JSON in UTF-8, not an object, too large, or a field is not of its kind.
    """
    if len(line) > LINE_LIMIT:
        raise ValueError(f"it is longer than {LINE_LIMIT >> 20} MiB")
    content = json_input.parse(line.decode())
    if not isinstance(content, dict):
        raise ValueError("it is not an object")
    require(content, schema, "it")
    return content
