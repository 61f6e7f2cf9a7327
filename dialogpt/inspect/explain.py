"""From a conversation to an inspection: a given reply, one that is generated, or the last one of a chat."""

from __future__ import annotations

from collections.abc import Sequence

from dialogpt.candidates import candidates_for_all
from dialogpt.chat import Chat
from dialogpt.decoding.noise import fresh_generator
from dialogpt.decoding.stop import Stop
from dialogpt.errors import DialogueError
from dialogpt.generation import Reply
from dialogpt.history import BOT, History
from dialogpt.inspect.data import Inspection, inspect_reply
from dialogpt.inspect.search import Considered, RecordingDraft, ended_by_token, record_beams, stopped_by_text
from dialogpt.replies import Seeds


def explain(
    chat: Chat,
    turns: Sequence[str],
    reply: str | None = None,
    *,
    seed: int | None = None,
    name: str = "",
    stop: Stop | None = None,
) -> Inspection:
    """Answer a dialogue, or take an answer that is given, and look inside it.

    Args:
        chat: its network and settings; the conversation itself is left as it is.
        turns: at least one; the last is answered.
        reply: what was answered, and ended there; None generates it, as `dialogpt.candidates` does.
        seed: of the reply that is generated; None is another one each time.
        name: of the model, for people.
        stop: asked between pieces of the work; true ends it.

    Raises:
        DialogueError: a text is not valid, or see `inspect_reply` and `Chat.candidates`.
        Stopped: `stop` returned true.
    """
    if reply is not None:
        return _inspected(chat, turns, chat.tokenizer.encode_turn(reply, BOT), True, name, None, stop)
    seed = fresh_generator().initial_seed() if seed is None else seed
    number = 1 if chat.reranker is None else chat.num_candidates
    draft = chat.draft
    recorder = None if draft is None else RecordingDraft(draft)
    chat.draft = recorder
    try:
        (replies,) = candidates_for_all(chat, [turns], number, [seed], stop)
    finally:
        chat.draft = draft
    considered = _considered(chat, turns, replies, seed, recorder, stop)
    best = replies[0]
    return _inspected(
        chat, turns, best.ids, ended_by_token(chat.generation, chat.tokenizer, best), name, considered, stop
    )


def explain_last(chat: Chat, *, name: str = "", stop: Stop | None = None) -> Inspection:
    """Look inside the last reply of a conversation.

    A chat keeps no note of which token ended a reply: one that was not interrupted, has fewer tokens than the settings
    allow and no stop string is taken to have been ended by the network.

    Raises:
        DialogueError: there is no exchange yet, or the reply no longer fits the settings.
        Stopped: `stop` returned true.
    """
    if len(chat.history.turns) < 2:
        raise DialogueError("there is no exchange yet")
    *turns, reply = chat.history.turns
    shown = chat.last_prompt
    limit = chat.generation.reply_limit(0 if shown is None else len(shown.ids))
    cut = reply.interrupted or len(reply) >= limit or stopped_by_text(chat.generation, chat.tokenizer, reply)
    return inspect_reply(
        chat.model,
        chat.tokenizer,
        chat.generation,
        turns,
        reply,
        history_tokens=chat.history_tokens,
        ended=not cut,
        name=name,
        stop=stop,
    )


def _inspected(
    chat: Chat,
    turns: Sequence[str],
    reply: Sequence[int],
    ended: bool,
    name: str,
    considered: Considered | None,
    stop: Stop | None,
) -> Inspection:
    return inspect_reply(
        chat.model,
        chat.tokenizer,
        chat.generation,
        chat.turns_from(turns),
        reply,
        history_tokens=chat.history_tokens,
        ended=ended,
        name=name,
        considered=considered,
        stop=stop,
    )


def _considered(
    chat: Chat,
    turns: Sequence[str],
    replies: Sequence[Reply],
    seed: int,
    recorder: RecordingDraft | None,
    stop: Stop | None,
) -> Considered | None:
    """What there was beside the reply, where the settings compare several."""
    config = chat.generation.with_end_token(chat.tokenizer.eos_id)
    candidates = replies if chat.reranker is not None else []
    if config.num_beams > 1:
        history = History(chat.tokenizer.eos_id, chat.turns_from(turns), chat.tokenizer.turn_prefix)
        prompt = history.prompt(chat.history_tokens, config.prompt_room(chat.model.config.n_positions))
        (generator,) = Seeds(chat.model.device, seed).generators(1)
        branches, beams = record_beams(chat.model, chat.tokenizer, config, prompt, generator, stop)
        return Considered(candidates, branches, beams)
    rounds = [] if recorder is None else recorder.rounds
    return Considered(candidates, rounds=rounds) if candidates or rounds else None
