"""`dialogpt cache`: checkpoints from the hub that were converted and kept."""

from __future__ import annotations

import argparse

from dialogpt.cli.output import table
from dialogpt.errors import DONE

ALL = object()  # what --clear means without a name; an empty name, which a script may pass by mistake, is an error


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its flags."""
    parser = subparsers.add_parser("cache", help="checkpoints from the hub that were converted and kept")
    parser.add_argument(
        "--clear",
        nargs="?",
        const=ALL,
        metavar="OWNER/NAME",
        help="remove one of them, or all where none is named",
    )
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """List the converted checkpoints that are kept, or remove them."""
    from dialogpt.weights import hub

    named = None if options.clear is ALL else options.clear
    entries = hub.cached() if options.clear is None else hub.clear(named)
    rows = [
        (entry.name, f"{', '.join(entry.revisions) or 'no revision'}, {entry.nbytes / 1e6:.1f} MB, {entry.path}")
        for entry in entries
    ]
    if rows:
        print(table(rows))
    total = f"{sum(entry.nbytes for entry in entries) / 1e6:.1f} MB"
    if options.clear is None:
        print(f"kept in {hub.cache_folder()}: {len(entries)}, {total}")
    else:
        print(f"removed: {len(entries)}, {total}; what was downloaded for them stays with huggingface_hub (hf cache)")
    return DONE
