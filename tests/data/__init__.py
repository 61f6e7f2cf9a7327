"""Tests of `dialogpt.data`."""
