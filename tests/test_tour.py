"""The tour runs from its first cell to its last, and its Markdown is the notebook's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scripts.render_tour import NOTEBOOK, rendered, run
from tests.helpers import environment

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed (the extra test)")
OUTPUT_LIMIT = 20_000  # bytes of all outputs


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.mark.filterwarnings("ignore")  # of jupyter's own
def test_every_cell_runs(notebook: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its cells check themselves with assertions, which an exercise that no longer holds would fail."""
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    ran = run(notebook, tmp_path)
    assert all(cell.execution_count for cell in ran.cells if cell.cell_type == "code")


def test_the_markdown_is_the_notebook_s(notebook: Any) -> None:
    """After a change of the notebook: `python scripts/render_tour.py`."""
    assert NOTEBOOK.with_suffix(".md").read_text(encoding="utf-8") == rendered(notebook)


def test_it_has_twelve_exercises_with_answers_and_small_outputs(notebook: Any) -> None:
    cells = notebook.cells
    questions = [k for k, cell in enumerate(cells) if "**Exercise " in cell.source]
    assert len(questions) == 12
    assert all(cells[k + 1].cell_type == "code" and cells[k + 1].outputs for k in questions)
    assert sum(len(str(cell.outputs)) for cell in cells if cell.cell_type == "code") < OUTPUT_LIMIT
