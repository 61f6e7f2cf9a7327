"""Tests of `dialogpt.data.reddit`."""
