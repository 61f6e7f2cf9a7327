"""Convert a published checkpoint to this project's format, or back: `dialogpt convert` as a script to open and follow.

    python scripts/convert_weights.py SOURCE DESTINATION [--to hf] [--dtype float16]

The work is in weights/convert.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dialogpt.cli.main import main as dialogpt


def main(argv: Sequence[str] | None = None) -> int:
    """Run the conversion; returns the exit status of `dialogpt convert`."""
    return dialogpt(["convert", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
