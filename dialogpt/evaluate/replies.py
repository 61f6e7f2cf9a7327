"""Let a system answer dialogues, by the one reply pipeline in the batch decoder; and what DialogRPT says of them."""

from __future__ import annotations

from collections.abc import Sequence

from dialogpt.candidates import candidates_for_all
from dialogpt.chat import Chat
from dialogpt.decoding.stop import Stop
from dialogpt.evaluate.dialogues import Dialogue
from dialogpt.evaluate.resumed import Line
from dialogpt.ranking.dialogrpt import DialogRPT
from dialogpt.tokenizer import Tokenizer

SEED_STRIDE = 1_000_003  # a prime, so that dialogues of runs with neighbouring seeds have other samples


def answer(chat: Chat, first: int, dialogues: Sequence[Dialogue], seed: int, stop: Stop | None = None) -> list[Line]:
    """Answer a group of dialogues: their texts and how each ended.

    Args:
        chat: network and settings of the system.
        first: index of the first dialogue in the whole set; each has samples of its own, whatever is beside it.
        dialogues: the group.
        seed: of the run.
        stop: asked before every token; true ends it all.

    Raises:
        Stopped: `stop` returned true.
        DialogueError: a dialogue cannot be answered.
    """
    seeds = [(seed + SEED_STRIDE * (first + place)) % (1 << 63) for place in range(len(dialogues))]
    found = candidates_for_all(chat, [dialogue.turns for dialogue in dialogues], 1, seeds, stop)
    return [
        {"reply": chat.tokenizer.reply_text(reply.ids), "finish_reason": reply.finish_reason, "score": reply.score}
        for (reply,) in found
    ]


def rank(
    rankers: DialogRPT, tokenizer: Tokenizer, turns: Sequence[str], reply: str, stop: Stop | None = None
) -> dict[str, float]:
    """What each head of DialogRPT predicts of a reply, from 0 to 1.

    Raises:
        Stopped: `stop` returned true.
    """
    context, given = [tokenizer.encode(turn) for turn in turns], [tokenizer.encode(reply)]
    return {head.name: float(rankers.predict(head, context, given, stop)[0]) for head in rankers.heads}
