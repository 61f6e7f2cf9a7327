"""Tests of `dialogpt serve`."""
