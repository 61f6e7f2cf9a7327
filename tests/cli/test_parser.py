"""The help of a command, and words that were meant: a screen for every day, everything on request."""

from __future__ import annotations

import re

import pytest

from dialogpt.cli.main import build_parser, main
from dialogpt.cli.parser import CommandParser

SCREEN = 30  # lines
COMMANDS = build_parser().leaves()
LONG = sorted(words for words, parser in COMMANDS.items() if parser.everyday is not None)


def shown(parser: CommandParser, monkeypatch: pytest.MonkeyPatch, *, full: bool = False) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    return parser.format_full_help() if full else parser.format_help()


@pytest.mark.parametrize("words", COMMANDS)
def test_help_fits_a_screen(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`chat --help` had 150 lines, which no user read."""
    assert len(shown(COMMANDS[words], monkeypatch).splitlines()) <= SCREEN


@pytest.mark.parametrize("words", LONG)
def test_help_shows_the_everyday_flags_and_examples(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = COMMANDS[words]
    text = shown(parser, monkeypatch)
    listed = re.findall(r"^  (--[a-z0-9-]+)", text, re.MULTILINE)
    assert listed == [*(parser.everyday or ()), "--help-all"]
    assert 4 <= len(listed) <= 15
    assert text.splitlines()[-len(parser.examples) - 1] == "examples:"
    assert all(example.startswith(("dialogpt ", "DIALOGPT_")) for example in parser.examples)


@pytest.mark.parametrize("words", COMMANDS)
def test_the_whole_help_shows_every_flag(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(COMMANDS[words], monkeypatch, full=True)
    missing = [flag for flag in COMMANDS[words].flags() if not re.search(rf"--{flag}(?![\w-])", text)]
    assert missing == []
    assert "--config FILE" in text


@pytest.mark.parametrize("flag", ["--help", "--help-all", "-h"])
@pytest.mark.parametrize("words", ["chat", "convert", "data reddit"])
def test_help_ends_well(words: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words.split(), flag]) == 0
    output = capsys.readouterr()
    assert output.out.startswith(f"usage: dialogpt {words}")
    assert output.err == ""


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["caht"], "did you mean chat?"),
        (["chat", "--temprature", "0.5"], "did you mean --temperature?"),
        (["chat", "--temprature=0.5"], "did you mean --temperature?"),
        (["chat", "--dtype", "flaot32"], "did you mean float32?"),
        (["data", "redit"], "did you mean reddit?"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(
    arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert meant in capsys.readouterr().err


def test_what_is_like_nothing_is_not_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--zzzzzzz"]) == 2
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize("words", COMMANDS)
def test_every_flag_that_turns_something_on_can_turn_it_off(words: str) -> None:
    """What a config file turns on is turned off by typing --no-FLAG."""
    parser = COMMANDS[words]
    options = {option for action in parser._actions for option in action.option_strings}
    turned_on = [flag for flag, action in parser.flags().items() if type(action).__name__ == "_StoreTrueAction"]
    for flag in turned_on:
        assert {f"--no-{flag}", f"--{flag.removeprefix('no-')}"} & options - {f"--{flag}"}
