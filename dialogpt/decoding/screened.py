"""The logits that the next token can depend on, where computing no others is faster: a head that screens its tokens.

Such a head is large and stored in float32 (`dialogpt.model.precision.screen`); here is how many logits settings need.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dialogpt.decoding.sequence import TokenSequence
from dialogpt.generation_config import NEUTRAL, GenerationConfig
from dialogpt.logits.processors import Seen
from dialogpt.model import GPT2
from dialogpt.model.precision.packed import screened_logits

RAISES = ("sequence_bias", "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id")
READS_ALL = ("remove_invalid_values", "renormalize_logits", "top_h")  # before the number of tokens is cut


def needed_logits(model: GPT2, hidden: Tensor, active: Sequence[TokenSequence]) -> Tensor | None:
    """Compute the logits that the next token can depend on, all finite; others are minus infinity: (1, C) -> (1, V).

    None where all of them matter, or computing all is as fast: see `count_needed` and `screened_logits`.
    """
    if len(active) > 1:
        return None
    count = count_needed(active[0].config, active[0].seen)
    return None if count is None else screened_logits(model, hidden, count)


def count_needed(config: GenerationConfig, seen: Seen) -> int | None:
    """Return a number n such that the next token depends on the n highest logits only, ties included; None for all.

    Greedy decoding takes the highest score and top-k sampling the k highest. Penalties and bans only lower scores, of
    tokens that occurred or that the settings name: each can let one more token move up.
    """
    if any(getattr(config, name) != NEUTRAL[name] for name in (*RAISES, *READS_ALL)):
        return None
    if config.repetition_penalty < 1 or min(config.presence_penalty, config.frequency_penalty) < 0:
        return None
    if config.do_sample and not config.top_k:
        return None
    lists = (config.end_ids, config.bad_words_ids, config.suppress_tokens, config.begin_suppress_tokens)
    named = sum(len(each or ()) for each in lists)
    return (max(config.top_k, config.tokens_to_keep) if config.do_sample else 1) + len(set(seen.ids)) + named
