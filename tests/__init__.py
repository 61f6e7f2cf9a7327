"""Tests: one file per module they judge, and parity/ against transformers."""
