"""Run docs/tour.ipynb and write what it printed into it, and all of it once more as docs/tour.md.

After a change of the notebook: `python scripts/render_tour.py`. It needs nbclient (the extra `test`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"
CELL_SECONDS = 120  # that one cell may take
HEADER = "<!-- Written by scripts/render_tour.py from tour.ipynb; change that one. -->\n"


def run(notebook: Any, folder: Path) -> Any:
    """Execute a notebook in a folder, in place; a cell that raises ends it with nbclient's CellExecutionError."""
    from nbclient import NotebookClient

    NotebookClient(notebook, timeout=CELL_SECONDS, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ each time
    return notebook


def rendered(notebook: Any) -> str:
    """A notebook as Markdown: code and, below it, what it printed."""
    parts = [HEADER]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(f"{cell.source}\n")
            continue
        parts.append(f"```python\n{cell.source}\n```\n")
        printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
        if printed.strip():
            lines = "\n".join(line.rstrip() for line in printed.rstrip().splitlines())
            parts.append(f"```text\n{lines}\n```\n")
    return "\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the notebook, and write it and its Markdown."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    import nbformat

    notebook = run(nbformat.reads(NOTEBOOK.read_text(encoding="utf-8"), as_version=4), NOTEBOOK.parent)
    NOTEBOOK.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    NOTEBOOK.with_suffix(".md").write_text(rendered(notebook), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
