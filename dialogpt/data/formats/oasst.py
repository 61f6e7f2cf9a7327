"""OpenAssistant's conversations (Köpf et al., 2023): trees of messages, a tree a line or a message a line.

A dialogue is a path from the root to an answer. Many paths share their beginning, so a turn is a target only on the
first path that it is on: each is learned once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from typing import Any

from dialogpt.data.dialogue import Dialogue
from dialogpt.data.formats.jsonl import ASSISTANT, json_of
from dialogpt.data.formats.kind import Head, Kind, each
from dialogpt.data.source import Source
from dialogpt.errors import DialogueError

MAX_DEPTH = 200  # messages of a path; the deepest tree published has 30
MAX_PATHS = 10_000  # of a tree
WITHDRAWN = "a message that was deleted, or that the reviewers rejected"
UNANSWERED = "a message of the user that nobody answered"
_ROLES = {"prompter": "user", "assistant": ASSISTANT}


def read(source: Source) -> Iterator[Dialogue]:
    """All paths of all trees, or the best of each."""
    for line, tree in _trees(source):
        try:
            yield from paths(tree, line, best=source.reading.paths == "best", note=partial(source.problem, line))
        except DialogueError as error:
            source.problem(line, str(error))


def _trees(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """The root of each tree; messages of one tree stand one behind the other."""
    for tree, group in groupby(_objects(source), key=lambda pair: pair[1].get("message_tree_id")):
        lines = list(group)
        if any("prompt" in content for _, content in lines):
            for line, content in lines:
                if type(content.get("prompt")) is dict:
                    yield line, content["prompt"]
                else:
                    source.problem(line, 'no message under "prompt"')
            continue
        yield from _planted(source, lines, tree)


def _objects(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in source.lines():
        if not line.strip():
            continue
        try:
            content = json_of(line, b'"prompt"')
            if type(content) is not dict:
                raise DialogueError("not an object")
        except DialogueError as error:
            source.problem(number, str(error))
        else:
            yield number, content


def _planted(
    source: Source, lines: list[tuple[int, dict[str, Any]]], tree: Any
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Trees from messages that name their parents."""
    by_name = {content.get("message_id"): {**content, "replies": []} for _, content in lines if _is_text(content)}
    roots = []
    for line, content in lines:
        message = by_name.get(content.get("message_id")) if _is_text(content) else None
        if message is None:
            source.problem(line, WITHDRAWN if _is_withdrawn(content) else 'no "message_id" and "text"')
            continue
        parent = content.get("parent_id")
        if parent is None:
            roots.append((line, message))
        elif isinstance(parent, str) and parent in by_name:
            by_name[parent]["replies"].append(message)
        else:
            source.problem(line, f"its parent {str(parent)[:50]} is not there")
    if not roots:
        source.problem(lines[0][0], f"the tree {str(tree)[:50]} has no root")
    yield from roots


def _is_text(content: dict[str, Any]) -> bool:
    named = isinstance(content.get("message_id"), str) and isinstance(content.get("text"), str)
    return named and not _is_withdrawn(content)


def paths(root: dict[str, Any], line: int, *, best: bool, note: Callable[[str], None]) -> Iterator[Dialogue]:
    """The paths of a tree that end with an answer of the assistant, the best-ranked first.

    Args:
        root: its first message.
        line: where the tree begins in its file.
        best: whether only the best-ranked answer to each message is followed.
        note: is told why a branch is left out.

    Raises:
        DialogueError: it is damaged, or larger than any that was published.
    """
    if _is_withdrawn(root):
        note(WITHDRAWN)
        return
    waiting: list[tuple[dict[str, Any], tuple[dict[str, Any], ...]]] = [(root, ())]
    learned: set[int] = set()
    count = 0
    while waiting:
        message, before = waiting.pop()
        if type(message) is not dict or type(message.get("text")) is not str or message.get("role") not in _ROLES:
            raise DialogueError('a message without "text" and "role"')
        path = (*before, message)
        if len(path) > MAX_DEPTH:
            raise DialogueError(f"a path of more than {MAX_DEPTH} messages")
        answers = _answers(message, note)
        if answers:
            waiting.extend((reply, path) for reply in reversed(answers[:1] if best else answers))
        elif message["role"] == "assistant":
            count += 1
            if count > MAX_PATHS:
                raise DialogueError(f"more than {MAX_PATHS:,} paths")
            yield _dialogue(path, learned, line)
        else:
            note(UNANSWERED)


def _answers(message: dict[str, Any], note: Callable[[str], None]) -> list[dict[str, Any]]:
    """The replies to a message that lead to an answer, the best-ranked first."""
    replies = message.get("replies")
    found = []
    for reply in sorted(replies, key=_rank) if type(replies) is list else []:
        if _is_withdrawn(reply):
            note(WITHDRAWN)
        elif not _leads_on(reply):
            note(UNANSWERED)
        else:
            found.append(reply)
    return found


def _leads_on(reply: dict[str, Any]) -> bool:
    """Whether a reply is an answer, or was answered by one that is there."""
    if type(reply) is dict and reply.get("role") != "assistant":
        answers = reply.get("replies")
        return type(answers) is list and any(not _is_withdrawn(answer) for answer in answers)
    return True


def _dialogue(path: tuple[dict[str, Any], ...], learned: set[int], line: int) -> Dialogue:
    weights = []
    for message in path:
        weights.append(float(message["role"] == "assistant" and id(message) not in learned))
        learned.add(id(message))
    return Dialogue([m["text"] for m in path], weights, [_ROLES[m["role"]] for m in path], line)


def _is_withdrawn(message: Any) -> bool:
    return type(message) is dict and (message.get("deleted") is True or message.get("review_result") is False)


def _rank(message: Any) -> float:
    """0 is the best; without a rank it comes last."""
    rank = message.get("rank") if type(message) is dict else None
    return float(rank) if isinstance(rank, (int, float)) and abs(rank) < 1e9 else 1e9


def _fits(head: Head) -> bool:
    return head.has(1, "message_tree_id", "prompt") or head.has(1, "message_id", "parent_id", "text", "role")


KINDS = (Kind("oasst", "OpenAssistant's trees, or its messages", _fits, each(read)),)
