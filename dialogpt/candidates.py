"""Several replies to dialogues that are not made part of a conversation, by the network and settings of a chat."""

from __future__ import annotations

from collections.abc import Sequence

from dialogpt.chat import Chat
from dialogpt.decoding.stop import Stop
from dialogpt.generation import Reply
from dialogpt.replies import Dialogue, Seeds
from dialogpt.whole_replies import generate_replies


def candidates(chat: Chat, turns: Sequence[str], number: int) -> list[Reply]:
    """Generate several replies to one dialogue, with the random numbers that the chat's next reply would have.

    Args:
        chat: whose network and settings are used; its history stays as it is.
        turns: at least one; the last is answered.
        number: how many replies; above 1 the settings must sample, or have as many beams. With a reranker they are
            the best of `num_candidates`, the best first.
    """
    return _replies(chat, [turns], number, [chat.seeds])[0]


def candidates_for_all(
    chat: Chat, dialogues: Sequence[Sequence[str]], number: int, seeds: Sequence[int], stop: Stop | None = None
) -> list[list[Reply]]:
    """Generate several replies to each of several dialogues together; see `candidates`.

    Args:
        chat: see `candidates`.
        dialogues: of each at least one turn.
        number: how many replies to each.
        seeds: one for each dialogue, so that its replies do not depend on the others; reply k is sampled with seed + k.
        stop: asked before every token; true cancels.

    Raises:
        Stopped: `stop` returned true.
    """
    return _replies(chat, dialogues, number, [Seeds(chat.model.device, seed) for seed in seeds], stop)


def _replies(
    chat: Chat,
    dialogues: Sequence[Sequence[str]],
    number: int,
    seeds: Sequence[Seeds],
    stop: Stop | None = None,
) -> list[list[Reply]]:
    plan = chat.plan(number)
    asked = []
    for texts, own in zip(dialogues, seeds, strict=True):
        turns = chat.turns_from(texts)
        asked.append(Dialogue(chat.prompt(turns), turns, own))
    cache = chat.cache if len(asked) == 1 else None
    with chat.lock:
        chat.close_stream()
        return generate_replies(chat.model, chat.tokenizer, plan, asked, cache=cache, draft=chat.draft, stop=stop)
