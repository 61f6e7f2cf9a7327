"""Checkpoints to network and back. It knows file formats and key names, and nothing of dialogue."""

from weights.checkpoint import Checkpoint, open_checkpoint
from weights.convert import Report, convert, export, save
from weights.files import DTYPES, CheckpointError
from weights.load import load
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
    "open_checkpoint",
    "save",
]
