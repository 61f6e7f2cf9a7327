"""Tests: one file per module under test, and parity/ against transformers."""

from tests import played_systems

played_systems.begin()  # before anything of the project is imported
