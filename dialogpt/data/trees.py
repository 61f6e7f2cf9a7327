"""Trees of messages and the dialogues in them: the paths from the oldest message to one that nobody answered.

Reddit's threads and Open Assistant's conversations are trees by `parent_id`. Whatever has messages with these three
attributes can be walked by `paths`; which messages are worth keeping is left to the source, which sets the text of the
others to None. A path goes on upwards until there is no parent, a parent without text, or a limit, so a message that
cannot be used ends the context there, exactly like one that is missing.

Memory is in proportion to the tree, never to its square: a path holds references, and at most `max_turns` of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeVar


class Message(Protocol):
    """A node of a tree."""

    @property
    def id(self) -> str:
        """Its name, unique in the tree."""

    @property
    def parent_id(self) -> str | None:
        """The message that it answers; None, or a name that is not in the tree, for the root."""

    @property
    def body(self) -> str | None:
        """Its text; None where it cannot be a turn."""


M = TypeVar("M", bound=Message)
M_co = TypeVar("M_co", bound=Message, covariant=True)


class Tree(Protocol[M_co]):
    """One conversation with all its branches; a new source of trees implements this."""

    @property
    def messages(self) -> Sequence[M_co]:
        """All nodes, in any order; also those without text, which are needed to know what was answered."""


def leaves(tree: Tree[M]) -> list[M]:
    """Messages with text that no message with text answers, in the tree's order."""
    answered = {message.parent_id for message in tree.messages if message.body is not None}
    return [message for message in tree.messages if message.body is not None and message.id not in answered]


def paths(tree: Tree[M], targets: Iterable[M] | None = None, max_turns: int | None = None) -> Iterator[list[M]]:
    """Dialogues of a tree, oldest message first, one for each target.

    Args:
        tree: the messages; where two have the same id, the last counts.
        targets: the last messages of the dialogues; None is the leaves.
        max_turns: how many messages a path has at most, counted from its end; None is no limit.

    Yields:
        Paths; the one to a target without text is empty. A loop of parents ends where it closes.
    """
    by_id = {message.id: message for message in tree.messages}
    for target in leaves(tree) if targets is None else targets:
        path: list[M] = []
        seen: set[str] = set()
        message: M | None = target
        while message is not None and message.body is not None and message.id not in seen and len(path) != max_turns:
            path.append(message)
            seen.add(message.id)
            message = by_id.get(message.parent_id) if message.parent_id else None
        yield path[::-1]
