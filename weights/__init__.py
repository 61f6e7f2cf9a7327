"""Checkpoints to network and back. It knows file formats and key names, and nothing of dialogue."""

from dialogpt.weights.checkpoint import Checkpoint
from dialogpt.weights.convert import Report, save
from dialogpt.weights.formats import DTYPES, CheckpointError
from dialogpt.weights.sources import Source, convert, export, export_gguf, load, load_ranking_head, open_checkpoint
from dialogpt.weights.vocabulary import Vocabulary

__all__ = [
    "DTYPES",
    "Checkpoint",
    "CheckpointError",
    "Report",
    "Source",
    "Vocabulary",
    "convert",
    "export",
    "export_gguf",
    "load",
    "load_ranking_head",
    "open_checkpoint",
    "save",
]
