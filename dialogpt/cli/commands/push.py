"""`dialogpt push`: an exported checkpoint to the Hugging Face hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from dialogpt.errors import DONE


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its flags."""
    parser = subparsers.add_parser("push", help="an exported checkpoint to the Hugging Face hub")
    parser.add_argument("folder", type=Path, help="a folder that convert --to hf or --to gguf wrote")
    parser.add_argument("name", metavar="OWNER/NAME", help="the repository, which is made if it is not there")
    parser.add_argument("--private", action="store_true", help="a repository that is made is seen by its owner alone")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Upload a folder, and print its address."""
    from dialogpt.weights import hub

    print(hub.push(options.folder, options.name, private=options.private))
    return DONE
