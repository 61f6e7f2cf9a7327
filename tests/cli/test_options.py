"""Flags that turn settings on and off: each means what it says, in every command."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import fields

import pytest

from dialogpt.cli.main import build_parser
from dialogpt.cli.options import add_switch, generation_from
from dialogpt.generation_config import GenerationConfig
from dialogpt.settings import SWITCH
from dialogpt.train.settings import TrainConfig

NEEDED = {
    "train": ["DATA"],
    "serve": [],
    "chat": [],
    "reply": ["Hi!"],
    "explain": ["Hi!"],
    "evaluate": ["tiny"],
    "import": ["FILE", "OUT"],
}
READING = {"names", "redact"}  # switches of how files of dialogue are read, which are no settings


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, by its name."""
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices)


def switches() -> Iterator[tuple[str, str, str, str]]:
    """Each switch of each command: command, setting, the flag that turns it on, and the one that turns it off."""
    for command, parser in parsers().items():
        for action in parser._actions:
            if type(action).__name__ == "_Switch":
                yield command, action.dest, *action.option_strings


@pytest.mark.parametrize(("command", "setting", "on", "off"), list(switches()))
def test_every_switch_means_what_it_says(command: str, setting: str, on: str, off: str) -> None:
    """`--no-repeat-reply` turned `no_repeat_reply` off: argparse took it for the negation of `repeat_reply`."""
    parser = parsers()[command]
    for given, expected in (([], None), ([on], True), ([off], False), ([on, off], False), ([off, on], True)):
        options = parser.parse_args([*NEEDED[command], *given])
        assert getattr(options, setting) is expected
    assert on == f"--{setting.replace('_', '-')}"
    assert {on, off} == {f"--no-{on[2:].removeprefix('no-')}", f"--{on[2:].removeprefix('no-')}"}


@pytest.mark.parametrize("command", ["chat", "reply", "serve"])
def test_every_switch_reaches_the_settings_and_none_leaves_the_preset(command: str) -> None:
    parser = parsers()[command]
    preset = GenerationConfig.chat()
    found = {setting: (on, off) for each, setting, on, off in switches() if each == command and setting not in READING}
    assert found.keys() == {setting.name for setting in fields(GenerationConfig) if setting.metadata["kind"] is SWITCH}
    assert generation_from(parser.parse_args(NEEDED[command])) == preset
    for setting, flags in found.items():
        for flag, expected in zip(flags, (True, False), strict=True):
            config = generation_from(parser.parse_args([*NEEDED[command], flag]))
            assert getattr(config, setting) is expected
            others = {each.name for each in fields(config) if getattr(config, each.name) != getattr(preset, each.name)}
            assert others <= {setting}


def test_every_switch_of_training_has_its_flags() -> None:
    expected = {setting.name for setting in fields(TrainConfig) if isinstance(setting.default, bool)}
    assert {setting for command, setting, *_ in switches() if command == "train"} - READING == expected


def test_no_switch_is_left_to_argparse() -> None:
    """From Python 3.14 on BooleanOptionalAction is a ValueError for a flag that begins with --no-: nothing started."""
    actions = [action for parser in parsers().values() for action in parser._actions]
    assert actions
    assert not [action for action in actions if isinstance(action, argparse.BooleanOptionalAction)]


def test_help_shows_both_flags() -> None:
    parser = argparse.ArgumentParser()
    add_switch(parser, "no_echo", "say it once")
    assert "--no-echo, --echo" in parser.format_help()
    assert "[--no-echo | --echo]" in parser.format_usage()
