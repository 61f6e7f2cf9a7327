"""Servers that several files ask."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from dialogpt import Tokenizer
from dialogpt.serve.access import Access, Keys
from dialogpt.serve.engine import Engine
from dialogpt.weights import load
from tests.serve.helpers import Served, serve


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    engine = Engine(load("tiny", dtype="float64"), Tokenizer.load("tiny"))
    with serve(engine) as served:
        yield served
    engine.close(0)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server whose every step takes a while, for one reply at a time."""
    network = load("tiny", dtype="float64")
    honest = network.hidden
    monkeypatch.setattr(network, "hidden", lambda *arguments: (time.sleep(0.05), honest(*arguments))[1])
    engine = Engine(network, Tokenizer.load("tiny"), max_sequences=1, max_waiting=1)
    with serve(engine, access=Access(Keys({"tester": "secret"}))) as served:
        yield served
    engine.close(0)
