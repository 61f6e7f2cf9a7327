"""The paper's test set of 6,000 contexts with several replies each, from its published ids and a person's own dumps.

Its text was never published. `test-multi-refs-ids.txt` (microsoft/DialoGPT, reddit_extractor/data) has a line for each
context: "multiref", and for each reply its score and the ids of thread, parent and comment. The dumps of 2018-03 to
2019-01 have the text. What is written follows create-multiref.py there: a line whose first reply is not found is left
out, and so is a reply whose context differs from that of the first. Replies that are named twice stay twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from dialogpt.data.reddit.rules import Rules, read_list
from dialogpt.errors import DialogueError
from dialogpt.files.disk import write_atomically

_PLAIN_QUOTES = str.maketrans({"“": '"', "”": '"'})


class Reference(NamedTuple):
    """A reply: its score when the test set was made, and "t3_...,t1_...,t1_..."."""

    score: int
    key: str


@dataclass(frozen=True)
class Found:
    """What of the test set could be made.

    Attributes:
        contexts, references: that were asked for.
        found_contexts, found_references: that were written.
    """

    contexts: int
    references: int
    found_contexts: int
    found_references: int


def read_ids(path: Path) -> list[list[Reference]]:
    """The published ids.

    Raises:
        DialogueError: a line is not as described above.
    """
    contexts = []
    for number, line in enumerate(read_list(path), 1):
        kind, *entries = line.split("\t")
        try:
            if kind != "multiref" or not entries:
                raise ValueError
            references = [Reference(int(score), key) for score, _, key in (entry.partition(",") for entry in entries)]
            if any(reference.key.count(",") != 2 for reference in references):
                raise ValueError
        except ValueError:
            raise DialogueError(
                f"{path}, line {number}: expected multiref, then SCORE,THREAD,PARENT,COMMENT for each reply, got "
                f"{line[:60]!r}"
            ) from None
        contexts.append(references)
    return contexts


def rules_for(contexts: Sequence[Sequence[Reference]], rules: Rules) -> Rules:
    """The rules that read only what the test set needs: any comment may end a dialogue, not only leaves."""
    keys = {reference.key for references in contexts for reference in references}
    return replace(
        rules,
        leaves_only=False,
        targets=frozenset(keys),
        threads=frozenset(key.split(",")[0] for key in keys),
    )


def write(
    contexts: Sequence[Sequence[Reference]], dialogues: Iterable[tuple[str, Sequence[str]]], folder: Path
) -> Found:
    """Write test.refs.txt, a context and its replies with tabs between them, and test.scored_refs.txt.

    Args:
        contexts: the ids.
        dialogues: key and turns.
        folder: where the files go.
    """
    texts = {
        key: (" EOS ".join(turns[:-1]).translate(_PLAIN_QUOTES), turns[-1].translate(_PLAIN_QUOTES))
        for key, turns in dialogues
    }
    plain, scored, count = [], [], 0
    for references in contexts:
        if references[0].key not in texts:
            continue
        source = texts[references[0].key][0]
        same = [
            (one.score, texts[one.key][1]) for one in references if one.key in texts and texts[one.key][0] == source
        ]
        plain.append("\t".join([source, *(reply for _, reply in same)]) + "\n")
        scored.append("\t".join([source, *(f"{score}|{reply}" for score, reply in same)]) + "\n")
        count += len(same)
    write_atomically(folder / "test.refs.txt", "".join(plain))
    write_atomically(folder / "test.scored_refs.txt", "".join(scored))
    return Found(len(contexts), sum(map(len, contexts)), len(plain), count)
