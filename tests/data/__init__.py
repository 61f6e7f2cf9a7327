"""Tests of dialogpt.data."""
