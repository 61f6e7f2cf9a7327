"""Evaluate dialogue models and replies: the figures of DialoGPT's paper, what is measured today, and comparisons.

The functions are pure: text and numbers in, numbers out. `dialogpt.evaluate.run` ties them to files and networks.
"""

from dialogpt.evaluate.bootstrap import interval, p_value
from dialogpt.evaluate.comparison import Figure, compare, table
from dialogpt.evaluate.dialogues import Dialogue, read_dialogues, read_replies
from dialogpt.evaluate.diversity import NgramTable, distinct, entropy
from dialogpt.evaluate.likelihood import Prediction, predict
from dialogpt.evaluate.metrics import METRICS, LikelihoodSample, TextSample
from dialogpt.evaluate.overlap import bleu, nist, overlap, self_bleu
from dialogpt.evaluate.protocols import PROTOCOLS, Protocol

__all__ = [
    "METRICS",
    "PROTOCOLS",
    "Dialogue",
    "Figure",
    "LikelihoodSample",
    "NgramTable",
    "Prediction",
    "Protocol",
    "TextSample",
    "bleu",
    "compare",
    "distinct",
    "entropy",
    "interval",
    "nist",
    "overlap",
    "p_value",
    "predict",
    "read_dialogues",
    "read_replies",
    "self_bleu",
    "table",
]
