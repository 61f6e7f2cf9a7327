"""Checkpoints to network and back. It knows file formats and key names, and nothing of dialogue."""

from dialogpt.weights.checkpoint import Checkpoint, open_checkpoint
from dialogpt.weights.convert import Report, convert, export, save
from dialogpt.weights.load import load, load_ranking_head
from dialogpt.weights.stored import DTYPES, CheckpointError
from dialogpt.weights.vocabulary import Vocabulary

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
