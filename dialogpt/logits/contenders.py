"""How many of the highest logits can matter to the choice of the next token, with some settings."""

from __future__ import annotations

from dialogpt.generation_config import NEUTRAL, GenerationConfig
from dialogpt.logits.processors import Seen

RAISES = ("sequence_bias", "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id")
READS_ALL = ("remove_invalid_values", "renormalize_logits", "top_h")  # before the number of tokens is cut


def count_contenders(config: GenerationConfig, seen: Seen) -> int | None:
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
