"""Dialogue data: where it comes from, and how it becomes lines that `train` reads."""
