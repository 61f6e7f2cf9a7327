"""Small text files from elsewhere: JSON and lines, with a bound on what they may make of memory.

What their content means is left to `vocabulary.py` and `checkpoint.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dialogpt.files import json_input
from dialogpt.files.json_input import require_bounded
from dialogpt.files.plain_file import require_plain_file
from dialogpt.weights.formats.tensors import CheckpointError

MAX_TEXT_BYTES = 8 << 20  # GPT-2's tokenizer.json has 3.6 MB


def read_text(path: Path) -> str:
    """Read a small text file.

    Raises:
        CheckpointError: it is missing, not a plain file, too large, unreadable, or not UTF-8.
    """
    try:
        require_plain_file(path)
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise CheckpointError(f"{path} is larger than {MAX_TEXT_BYTES >> 20} MiB; expected a small text file")
        text = path.read_text(encoding="utf-8-sig")  # Windows' editors begin files with a byte order mark
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is not UTF-8 text; fetch it again") from None
    try:
        require_bounded(text)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {error}; expected a small text file") from None
    return text


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: as `read_text`, or it is not JSON, or not an object.
    """
    return parse_json(read_text(path), path)


def parse_json(text: str, path: Path) -> dict[str, Any]:
    """The JSON object in a text; keys are there once.

    Raises:
        CheckpointError: it is not JSON, or not an object.
    """
    try:
        content = json_input.parse(text, unique_keys=True)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}; expected an object {{...}}")
    return content
