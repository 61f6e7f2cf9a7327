"""The config file: values for flags that are not typed, in TOML.

A key at the top is a flag without its dashes, for every command that has it; a table holds flags of one command:

    model = "microsoft/DialoGPT-small"
    [chat]
    temperature = 0.6

This file finds and reads it, and checks the names. What a value means is the flag's, in `dialogpt.cli.parser`.
"""

from __future__ import annotations

import math
import os
import stat
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dialogpt.errors import DialogueError, did_you_mean, shortened

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VARIABLE = "DIALOGPT_CONFIG"  # names the file where --config does not
SIZE_LIMIT = 1 << 20  # bytes


class WrongType(ValueError):
    """A value of a type that the flag does not take."""

    def __init__(self, expected: str, found: Any) -> None:
        super().__init__(f"expected {expected}, got {_described(found)}")


def _described(value: Any) -> str:
    """Return a value as the file has it."""
    if isinstance(value, (dict, list)):
        return "a table" if isinstance(value, dict) else f"a list of {len(value)}"
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.isoformat() if hasattr(value, "isoformat") else shortened(value)


def find(named: str | None) -> Path | None:
    """Return the file to read; None where there is none.

    Args:
        named: what --config says; None is DIALOGPT_CONFIG or else the usual place, an empty name is no file.
    """
    named = os.environ.get(VARIABLE) if named is None else named
    if named is not None:
        return Path(named) if named else None
    try:
        path = folder() / "dialogpt" / "config.toml"
    except RuntimeError:  # no home folder is known
        return None
    return path if os.path.lexists(path) else None


def folder() -> Path:
    """Where programs keep their settings here.

    Raises:
        RuntimeError: the home folder is not known.
    """
    if own := os.environ.get("APPDATA" if sys.platform == "win32" else "XDG_CONFIG_HOME"):
        return Path(own)
    return Path.home() / ("AppData/Roaming" if sys.platform == "win32" else ".config")


def read(path: Path) -> dict[str, Any]:
    """Read a file.

    Raises:
        DialogueError: it cannot be read, or is not TOML.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > SIZE_LIMIT:
            raise DialogueError(f"the config file {path} is not a plain file of at most 1 MiB; name another --config")
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        return content
    except OSError as error:
        raise DialogueError(
            f"the config file {path} cannot be read: {error.strerror or error}; --config '' does without one"
        ) from None
    except UnicodeDecodeError:
        raise DialogueError(f"the config file {path} is not UTF-8; save it as UTF-8, or pass --config ''") from None
    except RecursionError:
        raise DialogueError(f"the config file {path} is nested too deeply; see docs/configuration.md") from None
    except ValueError as error:
        if isinstance(error, DialogueError):
            raise
        raise DialogueError(
            f"the config file {path} is not valid TOML: {error}; mend it, or pass --config ''"
        ) from None


def check_names(content: Mapping[str, Any], flags: Mapping[str, Collection[str]], path: Path) -> None:
    """Refuse unknown keys and tables, in the part of any command, as a slip is a slip.

    Args:
        content: of the file.
        flags: of each command, by its words ("data reddit"), the names of its flags.
        path: of the file.

    Raises:
        DialogueError: a name is unknown.
    """
    everywhere = {name for names in flags.values() for name in names}

    def check(table: Mapping[str, Any], words: tuple[str, ...]) -> None:
        own = " ".join(words)
        known = flags.get(own, set() if words else everywhere)
        below = {each.split()[len(words)] for each in flags if each.split()[: len(words)] == [*words] and each != own}
        for key, value in table.items():
            if key in below and isinstance(value, dict):
                check(value, (*words, key))
            elif key in known and isinstance(value, dict):
                where = f"[{'.'.join(words)}] {key}" if words else key
                raise problem(path, where, f"expected a value of the flag --{key}, got a table")
            elif key not in known or isinstance(value, dict):
                part = f"[{'.'.join(words)}] has" if words else "has"
                what = f"table [{'.'.join((*words, key))}]" if isinstance(value, dict) else f"key {key!r}"
                meant = did_you_mean(key, below if isinstance(value, dict) else known) or "; flags are named as typed"
                raise DialogueError(f"the config file {path} {part} an unknown {what}{meant}")

    check(content, ())


def settings_of(content: Mapping[str, Any], command: str, flags: Collection[str]) -> dict[str, Any]:
    """Return the values for one command: those of its own table, then those at the top."""
    own: Any = content
    for word in command.split():
        own = own.get(word, {})
        if not isinstance(own, dict):  # `reply` is a flag of explain, too
            own = {}
    return {**{key: value for key, value in content.items() if key in flags and not isinstance(value, dict)}, **own}


def word_of(value: Any, is_text: bool) -> str:
    """Return a value as it would be typed; `~/` is the home folder, as in a shell.

    Raises:
        WrongType: nobody could type it.
    """
    if isinstance(value, str):
        if "\0" in value:
            raise WrongType("a text without zero bytes", value)
        return os.path.expanduser(value) if value.startswith("~/") else value  # noqa: PTH111 - keeps ./ and // as they are
    if is_text:
        raise WrongType("a text, in quotes", value)
    endless = isinstance(value, float) and not math.isfinite(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or endless:
        raise WrongType("a text or a number", value)
    return repr(value)


def problem(path: Path, key: str, reason: str) -> DialogueError:
    """Return the error of a value that cannot be used."""
    return DialogueError(f"the config file {path}: {key}: {reason}")
