"""The house stays small: the length of the tour and of functions, and words that were replaced do not come back."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT

TOUR = (
    "model/gpt2.py",
    "model/cache.py",
    "weights/names.py",
    "dialogpt/tokenizer.py",
    "dialogpt/history.py",
    "dialogpt/generation_config.py",
    "dialogpt/sampler.py",
    "dialogpt/decoding/loop.py",
    "dialogpt/generation.py",
    "dialogpt/chat.py",
)
MAX_TOUR_LINES = 2000
MAX_GPT2_LINES = 210
MAX_FUNCTION_LINES = 60
OLD_WORDS = (
    "waited in vain",
    "found no room",
    "beside the batch",
    "_say_beside",
    "what judges",
    "drawn again",
    "is drawn anew",
    "guesses ahead",
    "leave it away",
    "whole number above 0",
    "whole number from 0 on",
    "there twice",
)


def sources() -> Iterator[Path]:
    for folder in ("dialogpt", "model", "weights", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.resolve() == path.absolute():  # dialogpt/model and dialogpt/weights are links
                yield path


def test_the_tour_can_be_read_in_a_day() -> None:
    lines = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in TOUR}
    assert sum(lines.values()) <= MAX_TOUR_LINES, lines
    assert lines["model/gpt2.py"] <= MAX_GPT2_LINES


def test_functions_are_short() -> None:
    long = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    long[f"{path.relative_to(ROOT).as_posix()}:{node.name}"] = length
    assert not long


@pytest.mark.parametrize("word", OLD_WORDS)
def test_old_words_do_not_come_back(word: str) -> None:
    pattern = re.compile(rf"\b{re.escape(word)}\b")
    assert not [path for path in sources() if pattern.search(path.read_text(encoding="utf-8"))]
