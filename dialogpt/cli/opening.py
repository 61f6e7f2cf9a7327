"""Open what a command talks with, by one rule for chat, reply, batch and serve: network, tokenizer, settings, reranker.

Flags are parsed in `dialogpt.cli.options`. This file imports torch only when it opens something.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dialogpt.cli import threads
from dialogpt.cli.notices import warn_of_idle_flags
from dialogpt.cli.options import generation_from, rerankers_from
from dialogpt.cli.progress import ProgressLine
from dialogpt.generation_config import DEFAULT_CANDIDATES, GenerationConfig

if TYPE_CHECKING:
    from dialogpt.chat import Chat
    from dialogpt.model import GPT2
    from dialogpt.ranking.rerankers import Reranker
    from dialogpt.tokenizer import Tokenizer
    from dialogpt.weights import Checkpoint

MAX_DRAFT_SHARE = 0.5  # of the bytes that a step reads
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """What the flags of a command name, loaded.

    Attributes:
        checkpoint: where the network comes from.
        model, tokenizer: of that checkpoint.
        generation: defaults merged with the flags; a reply fits the network unless --max-new-tokens says otherwise.
        history_tokens: the flag, else the checkpoint's own value, else 256.
        reranker: None without --rerank.
        num_candidates: how many replies it chooses among.
    """

    checkpoint: Checkpoint
    model: GPT2
    tokenizer: Tokenizer
    generation: GenerationConfig
    history_tokens: int
    reranker: Reranker | None
    num_candidates: int


def open_model(options: argparse.Namespace, neighbours: threads.Neighbours | None = None) -> Opened:
    """Load what the flags name.

    Args:
        options: the flags.
        neighbours: what else runs on this machine, whose cores are left to it; see `dialogpt.cli.threads.use`.

    Raises:
        CheckpointError: a checkpoint cannot be used.
        DialogueError: the checkpoint's settings cannot be used, or a reranker does not fit the network.
        SystemExit: the flags contradict each other; that is found before anything is loaded.
    """
    generation_from(options)
    sources = rerankers_from(options)
    from dialogpt.history import DEFAULT_HISTORY_TOKENS
    from dialogpt.networks import load_network
    from dialogpt.weights import open_checkpoint

    with ProgressLine() as line:
        checkpoint = open_checkpoint(
            options.model,
            n_head=options.n_head,
            adapter=options.adapter,
            turn_prefix=options.turn_prefix,
            progress=line.counter("converting what was downloaded", "tensors"),
        )
    threads.use(options.threads, checkpoint.parameters, neighbours)
    generation = generation_from(options, checkpoint)
    if options.max_new_tokens is None:
        generation = generation.fitted(checkpoint.config.n_positions)
    warn_of_idle_flags(options, generation)
    with ProgressLine() as line:
        show = line.counter(f"loading {checkpoint.shown_name}", "tensors")
        model, tokenizer = load_network(checkpoint, dtype=options.dtype, device=options.device, progress=show)
    tokenizer.skip_special_tokens = not getattr(options, "show_special_tokens", False)
    return Opened(
        checkpoint,
        model,
        tokenizer,
        generation,
        history_tokens=options.history_tokens or checkpoint.history_tokens or DEFAULT_HISTORY_TOKENS,
        reranker=_reranker(sources, tokenizer) if sources else None,
        num_candidates=options.num_candidates or DEFAULT_CANDIDATES,
    )


def _reranker(sources: list[tuple[str, float, str]], tokenizer: Tokenizer) -> Reranker:
    """Open what --rerank names: one reverse model, "mmi", or DialogRPT's heads; errors are those of their `load`."""
    from dialogpt.ranking.dialogrpt import DialogRPT
    from dialogpt.ranking.mmi import MMI

    return MMI.load(sources[0][2], tokenizer) if sources[0][0] == "mmi" else DialogRPT.load(sources, tokenizer)


def open_chat(options: argparse.Namespace) -> Chat:
    """Begin a conversation with what the flags name; errors are those of `open_model`."""
    opened = open_model(options, threads.Neighbours())
    from dialogpt.chat import Chat
    from dialogpt.decoding.speculative import Draft

    draft = None
    if options.draft_model is not None:
        same = options.draft_model == options.model  # then --n-head holds for the draft too
        draft = Draft.load(opened.checkpoint if same else options.draft_model, opened.tokenizer, device=options.device)
        draft.require_fits(opened.model)
        warn_of_slow_draft(opened.model, draft.model)
    return Chat(
        opened.model,
        opened.tokenizer,
        opened.generation,
        seed=options.seed,
        history_tokens=opened.history_tokens,
        reranker=opened.reranker,
        num_candidates=opened.num_candidates,
        draft=draft,
        normalize=options.normalize_text,
    )


def warn_of_slow_draft(model: GPT2, draft: GPT2) -> None:
    """Warn where speculative decoding hardly pays: a draft token takes half of the time of one of the network, or more.

    Time goes into reading weights. A draft of half the bytes gained 5 % at an acceptance rate of 95 %, and a lower rate
    needs a smaller one (docs/benchmarks.md, Speculative decoding).
    """
    from dialogpt.model.precision import bytes_per_step

    share = bytes_per_step(draft) / bytes_per_step(model)
    if share >= MAX_DRAFT_SHARE:
        logger.warning(
            "--draft-model: a step of the draft reads %.0f %% of the bytes that one of the model reads, and is not "
            "likely to make it faster; choose a smaller draft, or omit it",
            100 * share,
        )
