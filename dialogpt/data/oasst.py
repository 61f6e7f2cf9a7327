"""Open Assistant's conversation trees to dialogues, by the same walk as Reddit's threads.

Both published layouts are read, packed by gzip or not: `*.trees.jsonl`, where a line is a tree with its replies nested,
and `*.messages.jsonl`, where a line is a message and the messages of a tree follow each other
(OpenAssistant/oasst1 and oasst2, the cards of the data sets).
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from dialogpt.data.trees import paths
from dialogpt.errors import DialogueError
from dialogpt.files.plain_file import require_plain_file

PROMPTER, ASSISTANT = "prompter", "assistant"
RULES = {
    "unreadable": "a line that is no message or tree; the problems have its number and the reason",
    "deleted": "a message that was deleted or is empty; it ends the context of its replies",
    "rejected": "a message that the reviewers rejected",
    "synthetic": "a message that a model wrote",
    "language": "a message in another language",
    "not_best": "a reply that is not ranked first among its siblings",
    "no_context": "fewer than 2 turns",
    "no_reply": "nothing of the assistant in it",
}


class Message(NamedTuple):
    """A node; `body` is None where a rule dropped it."""

    id: str
    parent_id: str | None
    body: str | None
    role: str


@dataclass(frozen=True)
class ConversationTree:
    """A prompt with all its replies: a `dialogpt.data.trees.Tree`."""

    messages: list[Message]


@dataclass(frozen=True)
class Options:
    """What is kept.

    Attributes:
        language: such as "en"; None is all.
        best: only the reply that people ranked first, where there are ranks.
        synthetic: also messages that a model wrote.
        train_prompter: the prompter's turns have the weight 1, too.
        max_turns: of a dialogue, counted from its end; None is no limit.
    """

    language: str | None = None
    best: bool = False
    synthetic: bool = False
    train_prompter: bool = False
    max_turns: int | None = None


class Line(NamedTuple):
    """A dialogue as a line of JSONL has it."""

    turns: list[str]
    weights: list[float]
    id: str


def dialogues(path: Path, options: Options, counts: Counter[str], problems: list[str]) -> Iterator[Line]:
    """The dialogues of a file: a path to each message that nobody answered.

    Args:
        path: one of the two layouts.
        options: what is kept.
        counts: gets what was dropped, by rule, and trees, messages, dialogues and turns.
        problems: gets a sentence for each line that cannot be read.

    Raises:
        DialogueError: the file cannot be read, or no line of it is a message or tree.
    """
    for records in _trees(path, counts, problems):
        tree = _tree(records, options, counts)
        counts["trees"] += 1
        for found in paths(tree, max_turns=options.max_turns):
            if len(found) < 2:
                counts["no_context"] += 1
                continue
            if not any(message.role == ASSISTANT for message in found[1:]):
                counts["no_reply"] += 1
                continue
            counts["dialogues"] += 1
            counts["turns"] += len(found)
            weights = [1.0 if options.train_prompter or message.role == ASSISTANT else 0.0 for message in found]
            yield Line([message.body or "" for message in found], weights, found[-1].id)
    if not counts["messages"]:
        reason = problems[0] if problems else f"{path} is empty"
        raise DialogueError(f"{reason}; expected a file of Open Assistant, *.trees.jsonl or *.messages.jsonl")


def _tree(records: Sequence[dict[str, Any]], options: Options, counts: Counter[str]) -> ConversationTree:
    best: dict[Any, int] = {}
    for record in records:
        rank = record.get("rank")
        if type(rank) is int:
            best[record.get("parent_id")] = min(rank, best.get(record.get("parent_id"), rank))
    messages = []
    for record in records:
        text = record.get("text")
        rank, parent = record.get("rank"), record.get("parent_id")
        reason = None
        if record.get("deleted") or not isinstance(text, str) or not text.strip():
            reason = "deleted"
        elif record.get("review_result") is False:
            reason = "rejected"
        elif record.get("synthetic") and not options.synthetic:
            reason = "synthetic"
        elif options.language and record.get("lang") != options.language:
            reason = "language"
        elif options.best and parent in best and rank != best[parent]:
            reason = "not_best"
        if reason:
            counts[reason] += 1
        counts["messages"] += 1
        role = str(record.get("role"))
        messages.append(Message(str(record["message_id"]), parent, None if reason else str(text).strip(), role))
    return ConversationTree(messages)


def _trees(path: Path, counts: Counter[str], problems: list[str]) -> Iterator[list[dict[str, Any]]]:
    """The records of each tree."""
    for _, members in groupby(_records(path, counts, problems), key=lambda pair: pair[0]):
        yield [record for _, records in members for record in records]


def _records(path: Path, counts: Counter[str], problems: list[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The name of a tree, and the messages of a line that belong to it."""
    for number, line in _lines(path):
        try:
            content = json.loads(line)
            if "prompt" in content:
                yield str(content["message_tree_id"]), list(_nested(content["prompt"]))
            else:
                content["message_id"] = str(content["message_id"])
                yield str(content["message_tree_id"]), [content]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            counts["unreadable"] += 1
            reason = f"no {error}" if isinstance(error, KeyError) else f"not such JSON ({error})"
            problems.append(f"{path}, line {number}: {reason}")


def _nested(prompt: dict[str, Any]) -> Iterator[dict[str, Any]]:
    waiting: list[tuple[dict[str, Any], str | None]] = [(prompt, None)]
    while waiting:
        record, parent = waiting.pop()
        yield {**record, "message_id": str(record["message_id"]), "parent_id": parent, "replies": None}
        waiting += [(reply, str(record["message_id"])) for reply in reversed(record.get("replies") or [])]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        require_plain_file(path)
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise DialogueError(
            f"{path} cannot be read after line {number:,}: {getattr(error, 'strerror', None) or error}; fetch it again"
        ) from None
