"""Settings that name tokens, checked against a vocabulary."""

from __future__ import annotations

from dialogpt.errors import DialogueError, Problem, SettingsError
from dialogpt.generation_config import GenerationConfig, several


def check_tokens(config: GenerationConfig, vocab_size: int) -> None:
    """Refuse tokens outside the vocabulary in biases, bad words, forced tokens, and end tokens whose logit is raised.

    Other end tokens, and `suppress_tokens`, may be unknown: they never come.

    Raises:
        SettingsError: there are some.
        DialogueError: `exponential_decay_length_penalty` has no end token to raise.
    """
    forced_bos, forced_eos = config.forced_bos_token_id, config.forced_eos_token_id
    named = {
        "sequence_bias": [token for ids, _ in config.sequence_bias or () for token in ids],
        "bad_words_ids": [token for ids in config.bad_words_ids or () for token in ids],
        "forced_bos_token_id": () if forced_bos is None else (forced_bos,),
        "forced_eos_token_id": several(forced_eos),
        "eos_token_id": config.end_ids if config.exponential_decay_length_penalty else (),  # its logit is raised
    }
    problems = [
        Problem(name, next(token for token in tokens if token >= vocab_size), f"below {vocab_size:,}, the vocabulary")
        for name, tokens in named.items()
        if any(token >= vocab_size for token in tokens)
    ]
    if problems:
        raise SettingsError(problems)
    if config.exponential_decay_length_penalty and not config.end_ids:
        raise DialogueError(
            "exponential_decay_length_penalty needs an end token, and neither network nor settings name one; "
            "set eos_token_id"
        )
