"""Dialogue data: where it comes from, and how it becomes lines that `train` reads."""

from dialogpt.data.dialogue import Dialogue, Problem
from dialogpt.data.formats import KINDS
from dialogpt.data.read import read
from dialogpt.data.settings import Reading

__all__ = ["KINDS", "Dialogue", "Problem", "Reading", "read"]
