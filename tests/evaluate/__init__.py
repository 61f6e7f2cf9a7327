"""Tests of `dialogpt.evaluate`."""
