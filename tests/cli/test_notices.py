"""Typed flags without effect in combination with the others are reported in one notice."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import pytest

from dialogpt.cli import notices
from dialogpt.cli.main import build_parser, main
from dialogpt.cli.options import generation_from

NOTHING: dict[str, list[str]] = {
    "preset": [],
    "sampling": ["--top-p", "0.5", "--temperature", "0.7", "--seed", "3"],
    "greedy": ["--greedy"],
    "zero": ["--temperature", "0"],
    "processors": ["--greedy", "--repetition-penalty", "1.2", "--repetition-scope", "own"],
    "beams": ["--greedy", "--num-beams", "4", "--length-penalty", "0.5", "--early-stopping", "true"],
    "sampled beams": ["--num-beams", "4", "--top-p", "0.5", "--temperature", "0.9"],
    "length": ["--max-length", "30"],
    "file": ["--batch", "x", "--batch-size", "4", "--from", "csv"],
}
SOMETHING = {
    "--top-p 0.5 --greedy": "--top-p has no effect: greedy decoding does not sample",
    "--greedy --top-p 0.5 --top-k 4": "--top-k, --top-p have no effect: greedy decoding does not sample",
    "--temperature 0 --min-p 0.1": "--min-p has no effect: greedy",
    "--greedy --temperature 0.7": "--temperature has no effect: greedy",
    "--num-beams 4 --no-do-sample --temperature 0.7": "a beam search samples only with --do-sample",
    "--greedy --seed 3": "--seed has no effect: nothing is sampled",
    "--length-penalty 2": "--length-penalty has no effect: there are no beams",
    "--no-repeat-ngram-size 0 --repetition-scope all": "--repetition-scope has no effect",
    "--max-length 30 --max-new-tokens 4": "--max-length has no effect: --max-new-tokens overrides",
    "--min-length 4": "--min-length has no effect: --min-new-tokens (1 in the chat preset) overrides",
    "--batch-size 4": "--batch-size has no effect: only --batch reads a file",
    "--from csv --gap 6h": "--from, --gap have no effect: only --batch",
}


@pytest.fixture(autouse=True)
def _none_was_shown() -> None:
    notices._warn_once.cache_clear()


def noticed(options: argparse.Namespace, caplog: pytest.LogCaptureFixture) -> list[str]:
    with caplog.at_level(logging.WARNING):
        notices.warn_of_idle_flags(options, generation_from(options))
        notices.warn_of_idle_flags(options, generation_from(options))  # the same once more
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("case", NOTHING)
def test_flags_that_do_something_have_no_notice(case: str, caplog: pytest.LogCaptureFixture) -> None:
    assert noticed(build_parser().parse_args(["reply", "Hi!", *NOTHING[case]]), caplog) == []


@pytest.mark.parametrize("typed", SOMETHING)
def test_flags_that_change_nothing_have_one_notice(typed: str, caplog: pytest.LogCaptureFixture) -> None:
    (sentence,) = noticed(build_parser().parse_args(["reply", "Hi!", *typed.split()]), caplog)
    assert SOMETHING[typed] in sentence


def test_a_config_file_sets_values_for_other_days(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "config.toml").write_text("top-p = 0.5\nseed = 3\nlength-penalty = 2\n")
    words = ["reply", "Hi!", "--greedy", "--config", str(tmp_path / "config.toml")]
    assert noticed(build_parser().parse_args(words), caplog) == []


def test_every_flag_of_the_table_exists() -> None:
    known = {action.dest for action in build_parser().leaves()["reply"]._actions}
    assert {name for row in notices.TABLE for name in row.flags} <= known


def test_the_notice_comes_once_and_beside_the_reply(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["reply", "--greedy", "--top-p", "0.5", "--max-new-tokens", "2", "Hi!"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert caplog.text.count("--top-p has no effect") == 1
