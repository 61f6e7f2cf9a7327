"""The settings in a published ``generation_config.json``: those that are used, ignored and refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from dialogpt.errors import DialogueError, Problem, SettingsError
from dialogpt.generation_config import GenerationConfig
from dialogpt.settings import kinds_of

# Settings of transformers that change no token here: labels, outputs, its cache, what other networks use.
IGNORED_SETTINGS = frozenset({
    "transformers_version", "_from_model_config", "bos_token_id", "pad_token_id", "decoder_start_token_id", "use_cache",
    "cache_implementation", "cache_config", "max_cache_len", "return_dict_in_generate", "output_scores",
    "output_logits", "output_attentions", "output_hidden_states", "return_legacy_cache", "is_assistant",
    "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "speculation_type",
    "assistant_ensemble_weight", "compile_config", "disable_compile", "continuous_batching_config",
    "prefill_chunk_size", "generation_kwargs", "prompt_lookup_num_tokens", "low_memory", "use_mtp", "_commit_hash",
})  # fmt: skip
NOT_IMPLEMENTED = {  # settings that change tokens, each at the value that changes none
    "constraints": None, "diversity_penalty": 0.0, "dola_layers": None, "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0, "force_words_ids": None, "guidance_scale": 1.0, "num_beam_groups": 1,
    "penalty_alpha": 0.0, "token_healing": False, "watermarking_config": None,
}  # fmt: skip
logger = logging.getLogger(__name__)


def published_settings(values: Mapping[str, Any]) -> GenerationConfig:
    """Return the settings of a checkpoint's ``generation_config.json``.

    Raises:
        DialogueError: values are out of range, or ask for what is not implemented; all problems are named.
    """
    if not isinstance(values, Mapping):
        raise DialogueError(f"settings are a {type(values).__name__}; expected a dictionary")
    known = kinds_of(GenerationConfig)
    problems = [
        Problem(name, value, "omitted, as it is not implemented")
        for name, value in values.items()
        if name in NOT_IMPLEMENTED and not (value is None or value is False or value in ([], NOT_IMPLEMENTED[name]))
    ]
    if unknown := sorted(values.keys() - known.keys() - IGNORED_SETTINGS - NOT_IMPLEMENTED.keys()):
        logger.warning("settings that are not known, in transformers or here, are ignored: %s", ", ".join(unknown))
    try:
        config = GenerationConfig(**{name: value for name, value in values.items() if name in known and value != []})
    except SettingsError as error:
        raise SettingsError([*problems, *error.problems]) from None
    if problems:
        raise SettingsError(problems)
    return config
