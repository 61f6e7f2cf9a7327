"""A notice for flags that were typed and change nothing, beside the others.

Only what is typed counts: a value of the preset, of a checkpoint or of the config file is there for other settings.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from dialogpt.cli.options import flag_of
from dialogpt.generation_config import GenerationConfig

logger = logging.getLogger(__name__)


class Idle(NamedTuple):
    """Flags that change nothing in some case.

    Attributes:
        flags: their destinations.
        holds: whether this is the case, with these flags and the settings that follow from them.
        because: why, to follow "have no effect: ".
    """

    flags: tuple[str, ...]
    holds: Callable[[argparse.Namespace, GenerationConfig], bool]
    because: str


_WARPERS = ("temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_READING = (
    "kind",
    "columns",
    "paths",
    "gap",
    "bot",
    "min_turns",
    "max_turns",
    "system",
    "eos_in_text",
    "redact",
    "names",
)
TABLE = (
    Idle(
        _WARPERS,  # a request to a server may sample, with these defaults
        lambda options, config: not (config.do_sample or config.num_beams > 1 or hasattr(options, "port")),
        "greedy decoding does not sample",
    ),
    Idle(
        _WARPERS,
        lambda _, config: not config.do_sample and config.num_beams > 1,
        "a beam search samples only with --do-sample",
    ),
    Idle(
        ("seed",),
        lambda options, config: not config.do_sample and not hasattr(options, "resamples"),  # evaluate draws with it
        "nothing is sampled",
    ),
    Idle(
        ("length_penalty", "early_stopping", "renormalize_logits"),
        lambda _, config: config.num_beams == 1,
        "there are no beams; --num-beams sets their number",
    ),
    Idle(
        ("repetition_scope",),
        lambda _, config: config.repetition_penalty == 1 and config.no_repeat_ngram_size == 0,
        "--repetition-penalty and --no-repeat-ngram-size are off",
    ),
    Idle(
        ("max_length",),
        lambda options, _: options.max_new_tokens is not None,
        "--max-new-tokens overrides --max-length",
    ),
    Idle(
        ("min_length",),
        lambda _, config: config.min_new_tokens is not None,
        "--min-new-tokens (1 in the chat preset) overrides --min-length; --min-new-tokens sets the minimum",
    ),
    Idle(
        ("batch_size", *_READING),
        lambda options, _: hasattr(options, "batch") and options.batch is None,
        "only --batch reads a file",
    ),
)


def warn_of_idle_flags(options: argparse.Namespace, config: GenerationConfig) -> None:
    """Say which flags change nothing, in one notice.

    Args:
        options: the flags.
        config: the settings that follow from them.
    """
    typed: frozenset[str] = getattr(options, "typed", frozenset())
    named: dict[str, list[str]] = {}
    for row in TABLE:
        flags = [_shown(name) for name in row.flags if name in typed and not _is_zero_temperature(name, options)]
        if flags and row.holds(options, config):
            named.setdefault(row.because, []).extend(flags)
    sentences = [
        f"{', '.join(flags)} {'has' if len(flags) == 1 else 'have'} no effect: {because}"
        for because, flags in named.items()
    ]
    if sentences:
        _warn_once("; ".join(sentences))


def _shown(name: str) -> str:
    return "--from" if name == "kind" else flag_of(name)


def _is_zero_temperature(name: str, options: argparse.Namespace) -> bool:
    """Whether a flag is a temperature of 0, which is what turns sampling off."""
    return name == "temperature" and options.temperature == 0


@lru_cache
def _warn_once(sentence: str) -> None:
    logger.warning("%s", sentence)
