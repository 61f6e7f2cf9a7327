"""Tests of `dialogpt.inspect`."""
