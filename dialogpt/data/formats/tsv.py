"""The TSV of DialoGPT's training data: turns with ` EOS ` between them, a tab, the reply.

It follows microsoft/DialoGPT, prepro.py, without guessing: there any first word that Python reads as a number is taken
for a weight ("20 years old", "nan"). Here turns begin with weights only where `tsv_weights` says so.
"""

from __future__ import annotations

import re

from dialogpt.data.dialogue import Dialogue, counted
from dialogpt.data.formats.kind import Head, Kind, line_reader
from dialogpt.data.settings import Reading
from dialogpt.data.source import LINE_LIMIT, TOO_LONG, decoded
from dialogpt.errors import DialogueError

BETWEEN_TURNS = " EOS "
WEIGHT = re.compile(r"(\d+(?:\.\d+)?) (.*)", re.DOTALL)


def parse(line: bytes, reading: Reading) -> Dialogue:
    """A source, a tab, and a reply; where `reading.references` says so, more replies after tabs."""
    if len(line) > LINE_LIMIT:
        raise DialogueError(TOO_LONG)
    columns = decoded(line).split("\t")
    if reading.references and len(columns) > 2:
        return Dialogue(columns[0].split(BETWEEN_TURNS), references=columns[1:])
    if len(columns) != 2:
        raise DialogueError(f"{counted(len(columns), 'column')}, expected 2: source, tab, reply")
    turns = [*columns[0].split(BETWEEN_TURNS), columns[1]]
    if not reading.tsv_weights:
        return Dialogue(turns)
    pairs = [WEIGHT.fullmatch(turn) for turn in turns]
    if not all(pairs):
        missing = pairs.index(None) + 1
        raise DialogueError(f"turn {missing} does not begin with a weight and a space")
    return Dialogue([pair[2] for pair in pairs if pair], [float(pair[1]) for pair in pairs if pair])


def _fits(head: Head) -> bool:
    named = head.path.suffix.lower() == ".tsv"
    tabs = [line.count("\t") for line in head.lines]
    return named or (bool(tabs) and all(count == 1 for count in tabs))


WHAT = "DialoGPT's: turns with EOS between them, a tab, the reply"
KINDS = (Kind("tsv", WHAT, _fits, line_reader(parse), parse, weak=True),)
