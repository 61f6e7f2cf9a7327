"""Checkpoints to network and back. It knows file formats and key names, and nothing of dialogue."""

from weights.checkpoint import Checkpoint, open_checkpoint
from weights.convert import Report, convert, export, save
from weights.load import load, load_ranking_head
from weights.stored import DTYPES, CheckpointError
from weights.vocabulary import Vocabulary

__all__ = [
    "DTYPES",
    "Checkpoint",
    "CheckpointError",
    "Report",
    "Vocabulary",
    "convert",
    "export",
    "load",
    "load_ranking_head",
    "open_checkpoint",
    "save",
]
