"""What people watch a run with: TensorBoard, Trackio, samples.md and loss.png, as the tools themselves read them."""

from __future__ import annotations

import builtins
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest

from dialogpt.cli.main import main
from dialogpt.errors import DialogueError
from dialogpt.train import plot
from dialogpt.train.run_folder import Run
from dialogpt.train.trackers import TRACKERS, tracker
from tests.train.runs import a_request, after, train

needs_tensorboard = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
needs_trackio = pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="needs trackio")


def typed(folder: Path, *flags: str) -> list[str]:
    """A run of four steps, as a person types it."""
    request = a_request(folder)
    return ["train", *request.data, "--valid", *request.valid, "--model", str(request.source), "--steps", "4",
            "--batch-tokens", "256", "--valid-every", "2", "--dtype", "float32", "--samples", "2",
            "--out", str(folder / "run"), *flags]  # fmt: skip


def losses_of(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(line["step"], line[name]) for line in Run(folder).metrics() if name in line]


def close(found: list[tuple[int, float]], expected: list[tuple[int, float]]) -> bool:
    """Whether the steps are equal, and the losses to the digits of float32, which TensorBoard keeps."""
    steps = [step for step, _ in found] == [step for step, _ in expected]
    return steps and all(math.isclose(a, b, rel_tol=1e-6) for (_, a), (_, b) in zip(found, expected, strict=True))


@needs_tensorboard
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own
def test_tensorboard_reads_what_was_measured(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(typed(tmp_path, "--log", "tensorboard")) == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    for tag, name in (("train/loss", "loss"), ("train/lr", "lr"), ("valid/loss", "valid_loss")):
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert found
        assert close(found, losses_of(tmp_path / "run", name))
    (tag,) = [tag for tag in events.Tags()["tensors"] if tag.startswith("samples/")]
    assert [event.step for event in events.Tensors(tag)] == [0, 2, 4]
    shown = events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
    assert "(before training: " in shown


@needs_trackio
@pytest.mark.filterwarnings("ignore")  # trackio's own
def test_trackio_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder is read from the environment when it is imported, so this runs in a process of its own."""
    import sqlite3
    import subprocess
    import sys

    from tests.helpers import ROOT, environment

    command = [sys.executable, "-m", "dialogpt", *typed(tmp_path, "--log", "trackio")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT,
                          env=environment(TRACKIO_DIR=str(tmp_path / "trackio")))  # fmt: skip
    assert done.returncode == 0, done.stderr
    (database,) = (tmp_path / "trackio").glob("dialogpt*.db")
    with sqlite3.connect(database) as rows:
        logged = [(step, json.loads(values)) for step, values in rows.execute("select step, metrics from metrics")]
    found = sorted((step, values["train/loss"]) for step, values in logged if "train/loss" in values)
    assert close(found, losses_of(tmp_path / "run", "loss"))


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tool_that_is_missing_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    honest = builtins.__import__

    def refuse(module: str, *arguments: Any, **more: Any) -> Any:
        if module in ("torch.utils.tensorboard", "trackio"):
            raise ImportError(module)
        return honest(module, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DialogueError, match=rf"--log {name} needs {name}: pip install .*\[log\]"):
        tracker(name, tmp_path)


def table_of(page: str, number: int) -> dict[str, str]:
    """The replies of a prompt in samples.md, by the name of their row."""
    part = page.split(f"## {number}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ", 1) for line in part.splitlines() if line.startswith("| ")]
    return {name: (text[0] if text else "") for name, *text in rows[2:]}


def test_samples_stand_beside_those_of_the_base_at_each_validation_and_at_the_end(tmp_path: Path) -> None:
    """Validated at 4 and 8, ended at 10; with the same seeds each time, another run gives the same samples."""
    pages = []
    for name in ("run", "again"):
        train(tmp_path / name, a_request(tmp_path, steps=10, lr=0.05, samples=2))
        pages.append((tmp_path / name / "samples.md").read_text(encoding="utf-8"))
    assert pages[0] == pages[1]
    tables = [table_of(pages[0], number) for number in (1, 2)]
    assert all(list(table) == ["step 0", "step 4", "step 8", "step 10", "the data"] for table in tables)
    assert any(table["step 0"] != table["step 10"] for table in tables)  # the base beside the tuned one
    kept = json.loads((tmp_path / "run" / "samples.json").read_text(encoding="utf-8"))
    assert list(kept["replies"]) == ["0", "4", "8", "10"]
    assert " ".join(kept["expected"][0].split()) == tables[0]["the data"]


def test_a_resumed_run_keeps_its_samples_and_adds_those_of_where_it_was_left(tmp_path: Path) -> None:
    train(tmp_path / "whole", a_request(tmp_path, samples=2))
    train(tmp_path / "parts", a_request(tmp_path, samples=2), stop=after(5))
    train(tmp_path / "parts", None)
    whole, parts = ((tmp_path / name / "samples.md").read_text(encoding="utf-8") for name in ("whole", "parts"))
    added = [line for line in parts.splitlines() if line.startswith("| step 5 |")]
    assert len(added) == 2  # a prompt each
    assert [line for line in parts.splitlines() if line not in added] == whole.splitlines()


def test_the_picture_has_every_measurement_at_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps on the axis, also of a run that logs begin late; the mean of a falling loss starts at its first point."""
    figure_module = pytest.importorskip("matplotlib.figure")
    drawn: list[Any] = []
    honest = figure_module.Figure.savefig

    def keep(self: Any, *arguments: Any, **settings: Any) -> None:
        drawn.append(self)
        honest(self, *arguments, **settings)

    monkeypatch.setattr(figure_module.Figure, "savefig", keep)
    metrics: list[dict[str, Any]] = [{"step": step, "loss": 5 - 0.01 * step} for step in range(7, 187)]
    metrics += [{"step": 100, "valid_loss": 4.5}, {"step": 186, "valid_loss": 4.0}]
    plot.draw(metrics, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    each, mean, valid = axes.get_lines()
    assert axes.get_xlabel() == "steps"
    assert list(each.get_xdata()) == list(mean.get_xdata()) == list(range(7, 187))
    assert list(mean.get_ydata()) == pytest.approx(list(each.get_ydata()))
    assert list(zip(valid.get_xdata(), valid.get_ydata(), strict=True)) == [(100, 4.5), (186, 4.0)]
