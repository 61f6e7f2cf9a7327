"""Whole replies: candidates that are ranked, beams, and replies to several dialogues, all known at their end only.

The plan, the samples and what a blank one means are those of `dialogpt.replies`; rankings are in `dialogpt.ranking`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from dialogpt.decoding.loop import StepDecoder, decoder_for
from dialogpt.decoding.prefill import prefill
from dialogpt.decoding.sequence import TokenSequence
from dialogpt.decoding.speculative import Draft
from dialogpt.decoding.stop import Stop
from dialogpt.generation import Reply, generate_batch
from dialogpt.model import GPT2, KVCache
from dialogpt.ranking.rerankers import ranked
from dialogpt.replies import Dialogue, Plan, Sample, token_id
from dialogpt.tokenizer import Tokenizer


def generate_replies(
    model: GPT2,
    tokenizer: Tokenizer,
    plan: Plan,
    dialogues: Sequence[Dialogue],
    *,
    cache: KVCache | None = None,
    draft: Draft | None = None,
    stop: Stop | None = None,
    stops_in_prompt: bool = True,
) -> list[list[Reply]]:
    """Generate whole replies to several dialogues together: `num_replies` to each, the best first after ranking.

    A blank reply is ranked last, whatever the reranker makes of it.

    Args:
        model: the network.
        tokenizer: of the same checkpoint.
        plan: for each dialogue.
        dialogues: what is answered; no reply depends on the other dialogues.
        cache: one row, for a single dialogue; what its prompt shares with it is not computed again, and it holds the
            prompt afterwards.
        draft: see `stream_reply`; used where there is one sample in all.
        stop: asked before every step, and while candidates are ranked; true cancels.
        stops_in_prompt: see `Decoder`.

    Raises:
        Stopped: `stop` returned true.
        DialogueError: see `Decoder.add` and `Decoder.step`.
    """
    beams = plan.config.num_beams
    sequences = len(dialogues) * max(plan.num_samples, beams)
    if cache is not None and sequences > 1:  # they are decoded in copies; one alone is decoded in the cache itself
        prompt = dialogues[0].prompt.ids[:-1]  # but for the last token: each copy needs its logits
        prefill(model, prompt, cache, num_scored=0)
    if beams > 1:
        found = generate_batch(
            model,
            [dialogue.prompt for dialogue in dialogues],
            plan.config,
            generator=[dialogue.seeds.generators(1)[0] for dialogue in dialogues],
            cache=cache,
            tokenizer=tokenizer,
            stop=stop,
            stops_in_prompt=stops_in_prompt,
        )
    else:
        decoder = decoder_for(model, tokenizer, sequences, draft, stop, stops_in_prompt)
        found = _sampled(decoder, tokenizer, plan, dialogues, cache)
    return [_best(tokenizer, plan, dialogue, replies, stop) for dialogue, replies in zip(dialogues, found, strict=True)]


def _sampled(
    decoder: StepDecoder, tokenizer: Tokenizer, plan: Plan, dialogues: Sequence[Dialogue], cache: KVCache | None
) -> list[list[Reply]]:
    """Generate all samples of all dialogues together."""
    samples = [
        Sample(decoder, tokenizer, plan, dialogue.prompt, generator, token_id, cache)
        for dialogue in dialogues
        for generator in dialogue.seeds.generators(plan.num_samples)
    ]
    by_sequence = {sample.sequence: sample for sample in samples}
    scores: dict[tuple[TokenSequence, int], float] = defaultdict(float)  # and attempt
    while steps := decoder.step():
        for step in steps:
            sample = by_sequence[step.sequence]
            scores[step.sequence, sample.attempt] += step.log_probability
            sample.advance(step)
    replies = [
        Reply(
            sample.sequence.new_ids, sample.sequence.finish_reason or "length", scores[sample.sequence, sample.attempt]
        )
        for sample in samples
    ]
    return [replies[start : start + plan.num_samples] for start in range(0, len(replies), plan.num_samples)]


def _best(
    tokenizer: Tokenizer, plan: Plan, dialogue: Dialogue, replies: Sequence[Reply], stop: Stop | None
) -> list[Reply]:
    """Return the replies that are wanted; after ranking, blank ones come last."""
    if plan.reranker is None:
        return list(replies[: plan.num_replies])
    best_first = ranked(plan.reranker, dialogue.turns, replies, stop)
    return sorted(best_first, key=lambda reply: not tokenizer.reply_text(reply.ids).strip())[: plan.num_replies]
