"""Which kind a file has, by looking at its beginning.

A file that two kinds fit is asked about; of one that none fits, the sentence says what its first line looks like. The
name of a file decides only where its content does not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from dialogpt.data.formats import KINDS, Head, Kind
from dialogpt.data.settings import AUTO, Reading
from dialogpt.data.source import opened
from dialogpt.errors import DialogueError

HEAD_BYTES = 1 << 16
HEAD_LINES = 20
_JSON_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(:)?|[{}\[\]]', re.DOTALL)
_SUFFIXES = {".jsonl": "turns", ".json": "turns", ".ndjson": "turns", ".tsv": "tsv", ".csv": "csv"}
_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


def kind_of(path: Path, reading: Reading) -> Kind:
    """The kind of a file: the one that was asked for, or the one that it looks like.

    Raises:
        DialogueError: it is not known, it is not there, or several or none fit.
    """
    _require_there(path)
    if reading.kind != AUTO:
        if reading.kind not in KINDS:
            raise DialogueError(f"there is no kind {reading.kind!r}; the kinds are {', '.join(KINDS)}")
        return KINDS[reading.kind]
    head = head_of(path)
    fitting = [kind for kind in KINDS.values() if kind.fits(head)]
    found = [kind for kind in fitting if not kind.weak] or fitting
    by_name = KINDS.get(_SUFFIXES.get(path.suffix.lower(), ""))
    if len(found) > 1 and by_name is not None and by_name.weak and by_name in found:
        found = [by_name]
    if not found and by_name is not None and not head.keys:
        found = [by_name]
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(f"--from {kind.name} ({kind.what})" for kind in found)
        raise DialogueError(f"{path} may be of several kinds; say which: {names}")
    if not (head.names or head.lines or b"\0" in head.magic):
        raise DialogueError(f"{path} is empty; expected dialogues")
    raise DialogueError(
        f"{path} looks like none of the kinds ({', '.join(KINDS)}): {shape_of(head)}; name one with --from"
    )


def _require_there(path: Path) -> None:
    if path.is_file() or path.is_dir():
        return
    if path.name == "-" and not path.exists():
        raise DialogueError("only import reads standard input; `dialogpt import - --out FILE` makes a file of it")
    raise DialogueError(f"{path} is {'not a plain file' if path.exists() else 'not there'}; expected dialogues")


def head_of(path: Path) -> Head:
    """Look at the beginning of a file, or into a folder.

    Raises:
        DialogueError: it cannot be read, or is packed.
    """
    if path.is_dir():
        with suppress(OSError):
            return Head(path, names=frozenset(file.name for file in islice(path.iterdir(), 1000)))
        raise DialogueError(f"{path} cannot be read")
    with opened(path) as file:
        data = file.read(HEAD_BYTES)
    for magic, name in _PACKED.items():
        if data.startswith(magic):
            raise DialogueError(f"{path} is packed ({name}); unpack it first")
    text = data.decode("utf-8-sig", errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    lines = lines if len(data) < HEAD_BYTES or len(lines) == 1 else lines[:-1]  # the last may go on
    filled = [line for line in lines if line.strip()]
    stripped = "\n".join(lines).strip()
    return Head(
        path,
        lines=filled[:HEAD_LINES],
        keys=_keys(text, filled[:HEAD_LINES]),
        blank_between=re.search(r"\n[ \t]*\n", stripped) is not None,
        magic=data[:16],
    )


def _keys(text: str, lines: list[str]) -> dict[int, set[str]]:
    """The keys of JSON by their depth in objects; of an object a line, those of each line."""
    found: dict[int, set[str]] = {}
    by_line = any(line.startswith("{") and _is_object(line) for line in lines)
    for part in lines if by_line else [text] if text.lstrip()[:1] in ("{", "[") else []:
        for depth, key in _keys_in(part):
            found.setdefault(depth, set()).add(key)
    return found


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _keys_in(text: str) -> Iterator[tuple[int, str]]:
    depth = 0
    for match in _JSON_TOKEN.finditer(text):
        token = match[0]
        if token == "{":
            depth += 1
        elif token == "}":
            depth -= 1
        elif match[2]:
            yield depth, match[1]


def shape_of(head: Head) -> str:
    """What a file looks like, for an error."""
    if head.names:
        return f"a folder with {', '.join(sorted(head.names)[:5])}"
    if b"\0" in head.magic:
        return "its first bytes are no text"
    if head.keys:
        return f"JSON with the keys {', '.join(sorted(head.keys.get(1, set())))[:200] or 'of no object'}"
    line = head.lines[0]
    shown = line if len(line) <= 60 else f"{line[:60]}..."
    return f"its first line is {shown!r}"
