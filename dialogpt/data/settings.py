"""How dialogue files are to be read: one set of settings for `import`, `train`, `evaluate`, `reply` and Python.

It imports nothing heavy, as `dialogpt --help` reads it. What the settings do is left to `formats` and `transform`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from dialogpt.errors import DialogueError
from dialogpt.files import own_files
from dialogpt.settings import SWITCH, choice

AUTO = "auto"
SYSTEM = ("keep", "drop")
EOS_IN_TEXT = ("keep", "split")
PATHS = ("all", "best")
ANYBODY = "*"  # --bot: every speaker's turns are targets
DEFAULT_GAP_SECONDS = 6 * 3600.0
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the files of a run are read, and what is done to each dialogue.

    Attributes:
        kind: a name in `KINDS`, or "auto": told by looking at each file.
        columns: of a table, which hold what: ("question", "answer") is a turn each; ("speaker=name", "text=line",
            "dialogue=id", "time=when") names roles, of which only the text is needed.
        tsv_weights: whether every turn of a TSV begins with its weight and a space, as DialoGPT's data has it.
        paths: of trees (oasst), all paths from the root to a leaf, or the best-ranked one.
        gap_seconds: a longer silence ends a dialogue of a chat; None: nothing does.
        bot: the speaker whose turns have weight 1 while the others have 0; "*" is everybody; None leaves it to the
            kind: the assistant of `messages`, `sharegpt` and `oasst`, else everybody.
        min_turns: shorter dialogues are left out.
        max_turns: longer dialogues are cut; each piece begins with the last turn of the one before.
        system: whether system messages are kept, as turns of weight 0.
        eos_in_text: what becomes of the letters <|endoftext|> inside of a turn: text, or the end of a turn.
        redact: whether e-mail addresses, phone numbers and links are masked.
        names: whether speakers are replaced by numbers, in the text too.
        references: whether further replies to a dialogue's last turn are read where `turns` and `tsv` have them, for
            evaluation; else `references` is a key like any other, and a further column of a TSV a problem.
    """

    kind: str = AUTO
    columns: tuple[str, ...] = ()
    tsv_weights: bool = False
    paths: str = "all"
    gap_seconds: float | None = DEFAULT_GAP_SECONDS
    bot: str | None = None
    min_turns: int = 2
    max_turns: int | None = None
    system: str = "keep"
    eos_in_text: str = "keep"
    redact: bool = False
    names: bool = False
    references: bool = False

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)!r}, expected {' or '.join(choices)}"
            for name, choices in (("paths", PATHS), ("system", SYSTEM), ("eos_in_text", EOS_IN_TEXT))
            if getattr(self, name) not in choices
        ]
        if not all(map(str.strip, self.columns)):
            problems.append(f"columns is {','.join(self.columns)!r}, expected names with commas between them")
        if self.min_turns < 1:
            problems.append(f"min_turns is {self.min_turns}, expected at least 1")
        if self.max_turns is not None and self.max_turns < max(2, self.min_turns):
            problems.append(f"max_turns is {self.max_turns}, expected at least {max(2, self.min_turns)}")
        if self.gap_seconds is not None and not self.gap_seconds > 0:
            problems.append(f"gap_seconds is {self.gap_seconds}, expected a number above 0")
        if problems:
            raise DialogueError("; ".join(problems))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Reading:
        """From a file of JSON; unknown names are refused.

        Raises:
            DialogueError: as the class, or a name is not known.
        """
        unknown = sorted(values.keys() - {setting.name for setting in fields(cls)})
        if unknown:
            raise DialogueError(f"there is no setting {', '.join(unknown)}")
        own_files.require({**asdict(cls()), "columns": [], **values}, _SCHEMA, "the reading of dialogues")
        return cls(**{**values, "columns": tuple(values.get("columns", ()))})


def seconds_of(text: str) -> float | None:
    """A time span as people write it: "6h", "90 min", "2d", a number of seconds; "none" is None.

    Raises:
        DialogueError: it is something else.
    """
    if text.strip().lower() == "none":
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|d)?\s*", text.lower())
    if match is None or float(match[1]) == 0:
        raise DialogueError(f"{text!r} is no time span; expected a number and a unit, as 30min, 6h or 2d, or none")
    return float(match[1]) * _UNITS[match[2] or "s"]


_SCHEMA: own_files.Schema = {  # of a `Reading` in a file
    "kind": own_files.TEXT,
    "columns": own_files.TEXTS,
    "tsv_weights": SWITCH,
    "paths": choice(*PATHS),
    "gap_seconds": own_files.optional(own_files.SECONDS),
    "bot": own_files.optional(own_files.TEXT),
    "min_turns": own_files.AT_LEAST_ONE,
    "max_turns": own_files.optional(own_files.AT_LEAST_ONE),
    "system": choice(*SYSTEM),
    "eos_in_text": choice(*EOS_IN_TEXT),
    "redact": SWITCH,
    "names": SWITCH,
}
