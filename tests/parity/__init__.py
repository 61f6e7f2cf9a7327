"""Equality with transformers, number by number and token by token."""
