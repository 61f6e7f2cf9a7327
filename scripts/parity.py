"""Compare a checkpoint in this project with the same one in transformers, step by step, and print a table.

    python scripts/parity.py SOURCE [--dtype float64] [--seed 0]

Token ids, every layer, logits, cached against uncached, greedy and sampled tokens; comparing is left to
`dialogpt.cli.verify`. The first layer that differs is named. Needs transformers (the `test` extra). Exit status 0 if
all is equal, 1 if not. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from dialogpt.cli import verify
from dialogpt.cli.main import guarded
from dialogpt.errors import install_hint
from dialogpt.weights import CheckpointError, open_checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compare a checkpoint with transformers.")
    parser.add_argument("source")
    parser.add_argument("--dtype", choices=verify.TOLERANCE, default="float64")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if not 0 <= options.seed < 1 << 63:
        parser.error(f"--seed is {options.seed}, expected an integer from 0 to 2^63 - 1")
    try:
        checkpoint = open_checkpoint(options.source)
        with verify.readable(checkpoint) as folder:
            results = verify.compare(checkpoint, folder, options.dtype, options.seed, layers=True)
    except CheckpointError as error:
        print(f"parity: error: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"parity: error: {error}; {install_hint('test')}", file=sys.stderr)
        return 1
    print(verify.table(results))
    equal, skipped = verify.passed(results), [result.name for result in results if result.equal is None]
    print(json.dumps({"source": options.source, "dtype": options.dtype, "equal": equal, "skipped": skipped}))
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(guarded(main))
