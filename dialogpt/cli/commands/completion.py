"""`dialogpt completion`: a script that completes commands, flags, choices and file names in a shell.

The script is made by shtab (the `completion` extra) from the parsers, which are all that it needs to know.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dialogpt.errors import DONE, DialogueError, install_hint

if TYPE_CHECKING:
    from dialogpt.cli.parser import CommandParser

SHELLS = ("bash", "zsh", "fish")
FILES = ("M", "SOURCE", "SOURCES", "FILE", "FOLDER", "DATA", "DIALOGUES", "RUN", "[NAME=]FILE")  # metavars


def add_parser(subparsers: argparse._SubParsersAction[CommandParser]) -> None:
    """Declare the command and its flags."""
    parser = subparsers.add_parser(
        "completion",
        help="a script for the shell, which completes commands and flags",
        examples=(
            "dialogpt completion bash > ~/.local/share/bash-completion/completions/dialogpt",
            "dialogpt completion zsh > ~/.zfunc/_dialogpt        # in $fpath, before compinit",
            "dialogpt completion fish > ~/.config/fish/completions/dialogpt.fish",
        ),
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Print the script of one shell."""
    try:
        import shtab
    except ModuleNotFoundError:
        raise DialogueError(f"completion needs shtab; install with: {install_hint('completion')}") from None
    root = options.parser.root
    for each in root.leaves().values():
        for action in each._actions:
            if takes_file(action):
                action.complete = shtab.FILE
    print(shtab.complete(root, options.shell))
    return DONE


def takes_file(action: argparse.Action) -> bool:
    """Whether what is typed for an argument may be the name of a file."""
    is_checkpoint = not action.option_strings and action.dest in ("source", "name")
    return action.choices is None and (is_checkpoint or action.type is Path or action.metavar in FILES)
