"""Networks from open checkpoints: the one that talks, with its tokenizer, and those that help it."""

from __future__ import annotations

import logging

import torch

from dialogpt.errors import DialogueError
from dialogpt.model import GPT2
from dialogpt.tokenizer import Tokenizer
from dialogpt.weights import Checkpoint, Vocabulary, load
from dialogpt.weights.formats import Progress

logger = logging.getLogger(__name__)


def load_network(
    checkpoint: Checkpoint, *, dtype: str, device: str | torch.device, progress: Progress | None = None
) -> tuple[GPT2, Tokenizer]:
    """Load a network and its tokenizer; one that was not trained to generate replies is logged as a warning.

    Raises:
        CheckpointError: the checkpoint cannot be used.
    """
    if checkpoint.ranking_head is not None:
        logger.warning("%s is a DialogRPT: it scores replies, and was not trained to generate them", checkpoint.path)
    if checkpoint.reverse:
        logger.warning("%s is a reverse model: it ranks replies, and was not trained to answer", checkpoint.shown_name)
    return load(checkpoint, dtype=dtype, device=device, progress=progress), Tokenizer.load(checkpoint)


def require_same_vocabulary(tokenizer: Tokenizer, checkpoint: Checkpoint) -> None:
    """Refuse a draft or a reranker with another vocabulary than the network that it helps.

    Raises:
        DialogueError: it has another one.
    """
    own, other = tokenizer.vocabulary, checkpoint.vocabulary
    if other is None or other.merges != own.merges or not _one_extends(own, other):
        raise DialogueError(
            f"{checkpoint.name or checkpoint.path} has another vocabulary than the model that it is to help; "
            f"expected one that was trained from the same checkpoint, or at least with the same tokens"
        )


def _one_extends(own: Vocabulary, other: Vocabulary) -> bool:
    """Whether two vocabularies differ at most by special or added tokens that one of them has at its end."""
    small, large = sorted((own, other), key=lambda vocabulary: len(vocabulary.ids))
    more = large.ids.keys() - small.ids.keys()
    return (
        small.ids.items() <= large.ids.items()
        and own.eos_id == other.eos_id
        and more <= large.special | large.added.keys()
        and all(large.ids[token] >= small.size for token in more)
    )
