"""One process or two: the same losses and gradients for the same global batch, in float64."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dialogpt.cli.main import main
from dialogpt.errors import DialogueError
from dialogpt.train.distributed import Processes
from dialogpt.train.loop import TrainingRequest
from dialogpt.train.objective import Objective
from tests.helpers import WAIT_SECONDS, random_model
from tests.train.runs import a_request, after, measured, train, weights_of

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def train_with_two(out: Path, request: TrainingRequest, *flags: str) -> None:
    """What the tests ask of one process, as a command line for two."""
    settings = {"steps": 6, "accumulation": 4, "batch-tokens": 256, "lr": 1e-3, "warmup-steps": 3, "valid-every": 4,
                "save-every": 3, "dtype": "float64"}  # fmt: skip
    arguments = [request.data[0], "--valid", request.valid[0], "--out", str(out), "--model", str(request.source)]
    in_two_processes([*arguments, *(part for k, v in settings.items() for part in (f"--{k}", str(v))), *flags])


def in_two_processes(arguments: list[str]) -> None:
    """`dialogpt train` in two processes, with the environment that torchrun gives them."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "dialogpt", "train", *arguments],
            cwd=ROOT,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=WAIT_SECONDS)
            assert process.returncode == 0, errors
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("flags", [(), ("--parallel", "fsdp"), ("--optimizer", "muon")], ids=["data", "fsdp", "muon"])
def test_two_processes_learn_what_one_does(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Weighted turns, four ragged batches a step, dropout, clipping and validation; two batches for each process."""
    optimizer = {"optimizer": "muon"} if "muon" in flags else {}
    request = a_request(tmp_path, weighted=True, steps=6, accumulation=4, dtype="float64", **optimizer)
    train(tmp_path / "one", request)
    train_with_two(tmp_path / "two", request, *flags)
    for alone, together in zip(measured(tmp_path / "one"), measured(tmp_path / "two"), strict=True):
        assert together == pytest.approx(alone, rel=1e-9, abs=0)
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-9


def test_a_run_that_was_begun_alone_is_resumed_by_two_in_shares(tmp_path: Path) -> None:
    """Weights and what the optimizer remembers are dealt out again."""
    request = a_request(tmp_path, weighted=True, steps=6, accumulation=4, dtype="float64", parallel="fsdp")
    train(tmp_path / "one", request)
    train(tmp_path / "two", request, stop=after(3))
    in_two_processes(["--resume", "--out", str(tmp_path / "two")])
    for alone, together in zip(measured(tmp_path / "one"), measured(tmp_path / "two"), strict=True):
        assert together == pytest.approx(alone, rel=1e-9, abs=0)
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-9


def test_half_of_torchruns_environment_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "a.jsonl", "--out", str(tmp_path / "run")]) == 1
    assert "start several processes with torchrun, or unset WORLD_SIZE" in capsys.readouterr().err


def test_fsdp_shares_every_block_and_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal results alone would not show that anything was shared."""
    shared: list[torch.nn.Module] = []
    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", lambda module, mesh: shared.append(module))
    monkeypatch.setattr("torch.distributed.device_mesh.init_device_mesh", lambda device, sizes: sizes)
    objective = Objective(random_model())
    Processes(0, 2, torch.device("cpu")).wrap(objective, "fsdp")
    assert shared == [*objective.model.blocks, objective]


def test_batches_that_cannot_be_dealt_out_are_refused(tmp_path: Path) -> None:
    from dialogpt.train.loop import begin, fit

    with begin(tmp_path / "run", a_request(tmp_path, accumulation=3), Processes(0, 1, torch.device("cpu"))) as run:
        two = Processes(0, 2, torch.device("cpu"))
        two.sums = list  # type: ignore[method-assign] # there is no second one to add up with
        with pytest.raises(DialogueError, match="3 batches per step cannot be divided among 2 processes"):
            fit(run, two)
