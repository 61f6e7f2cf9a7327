"""The flags that say how dialogue files are read: the same for `import`, `train`, `evaluate` and `reply`."""

from __future__ import annotations

import argparse
import csv
import re
from dataclasses import fields, replace

from dialogpt.cli.options import add_switch, wrong_usage
from dialogpt.data.settings import ANYBODY, EOS_IN_TEXT, PATHS, SYSTEM, Reading, seconds_of
from dialogpt.errors import DialogueError

KIND_NAMES = (  # those of dialogpt.data.KINDS, without importing every format for --help
    *("auto", "turns", "messages", "sharegpt", "tsv", "csv", "parquet", "datasets"),
    *("dailydialog", "empathetic", "personachat", "blended-skill-talk", "cornell", "topical-chat", "oasst"),
    *("whatsapp", "telegram", "discord", "messenger", "text"),
)
_FLAGS = {"kind": "--from", "gap_seconds": "--gap"}  # others are named for their setting


def add_kind(parser: argparse.ArgumentParser) -> None:
    """The flags that say what files are, and what is done to their dialogues."""
    group = parser.add_argument_group("reading")
    add_files(group)
    group.add_argument(
        "--bot", metavar="NAME", help=f"the speaker to be learned; the others are context only ({ANYBODY}: everybody)"
    )
    group.add_argument("--min-turns", type=int, metavar="N", help="leave out shorter dialogues (default: 2)")
    group.add_argument("--max-turns", type=int, metavar="N", help="cut longer dialogues")
    group.add_argument(
        "--eos-in-text",
        choices=EOS_IN_TEXT,
        help="the letters <|endoftext|> inside of a turn: text, or the end of a turn (default: keep)",
    )
    add_switch(group, "redact", "mask e-mail addresses, phone numbers and links")
    add_switch(group, "names", "replace speakers by numbers, in the text too")


def add_files(group: argparse._ArgumentGroup) -> None:
    """The flags that say what files are: their kind, and what tables, trees and chats need."""
    group.add_argument(
        "--from",
        dest="kind",
        choices=KIND_NAMES,
        metavar="KIND",
        help=f"what the files are: {', '.join(KIND_NAMES)} (default: auto, by looking at each)",
    )
    group.add_argument(
        "--columns",
        metavar="NAMES",
        help="of a table: question,answer (a column a turn), or speaker=name,text=line,dialogue=id,time=when",
    )
    group.add_argument("--paths", choices=PATHS, help="of trees (oasst): all paths, or the best one (default: all)")
    group.add_argument(
        "--gap", metavar="SPAN", help="a silence that ends a dialogue of a chat: 30min, 6h, 2d, none (default: 6h)"
    )
    group.add_argument(
        "--system", choices=SYSTEM, help="system messages: turns that are not learned, or left out (default: keep)"
    )


def reading_from(options: argparse.Namespace, tsv_weights: bool = False) -> Reading:
    """How files are read, from the flags.

    Raises:
        SystemExit: a flag has a value that it cannot have.
    """
    given = {
        setting.name: value
        for setting in fields(Reading)
        if (value := getattr(options, setting.name, None)) is not None
    }
    try:
        if options.columns is not None:
            (names,) = csv.reader(
                [options.columns.replace("\n", " ")], skipinitialspace=True
            )  # a name may hold a comma
            given["columns"] = tuple(name.strip() for name in names)
        reading = Reading(**given)
        gap = reading.gap_seconds if options.gap is None else seconds_of(options.gap)
        return replace(reading, gap_seconds=gap, tsv_weights=tsv_weights)
    except DialogueError as error:
        raise wrong_usage(options, as_flags(str(error))) from None


def as_flags(problem: str) -> str:
    """A sentence about settings with their flags' names."""
    for setting in fields(Reading):
        flag = _FLAGS.get(setting.name, f"--{setting.name.replace('_', '-')}")
        problem = re.sub(rf"\b{setting.name} is", f"{flag} is", problem)
    return problem
