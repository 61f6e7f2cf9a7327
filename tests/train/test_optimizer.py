"""Learning rates at their corners, which weights decay, and Muon's steps."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from dialogpt.train.optimizer import Muon, build_optimizers, lr_at
from dialogpt.train.settings import TrainConfig
from tests.helpers import random_model, seeded


def config(**settings: object) -> TrainConfig:
    return TrainConfig.from_dict({"lr": 0.5, "warmup_steps": 10, "final_lr": 0.1, **settings})


@pytest.mark.parametrize(("schedule", "halfway"), [("cosine", 0.5 * 0.55), ("linear", 0.5 * 0.55)])
def test_rise_and_fall(schedule: str, halfway: float) -> None:
    rates = [lr_at(step, 110, 64, config(schedule=schedule)) for step in range(1, 111)]
    assert rates[0] == 0.05
    assert max(rates) == rates[9] == 0.5
    assert rates[59] == pytest.approx(halfway)
    assert rates[-1] == pytest.approx(0.05)
    assert all(a > b for a, b in pairwise(rates[9:]))


def test_cosine_is_not_linear() -> None:
    assert lr_at(35, 110, 64, config(schedule="cosine")) > lr_at(35, 110, 64, config(schedule="linear"))


@pytest.mark.parametrize(
    ("width", "warmup", "peak"), [(768, 16000, 2.85e-5), (1024, 16000, 2.47e-5), (768, 4000, 5.7e-5)]
)
def test_noam_peaks_where_dialogpt_does(width: int, warmup: int, peak: float) -> None:
    """The peaks of microsoft/DialoGPT's own settings, lr 1e-5."""
    noam = TrainConfig(schedule="noam", lr=1e-5, warmup_steps=warmup)
    assert lr_at(warmup, 10**6, width, noam) == pytest.approx(peak, rel=5e-3)
    assert lr_at(warmup // 2, 10**6, width, noam) == pytest.approx(peak / 2, rel=5e-3)
    assert lr_at(4 * warmup, 10**6, width, noam) == pytest.approx(peak / 2, rel=5e-3)


def test_no_warm_up_starts_at_the_top() -> None:
    assert lr_at(1, 1, 64, config(warmup_steps=0)) == pytest.approx(0.05)  # the only step is the last
    assert lr_at(1, 1000, 64, config(warmup_steps=0)) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_weight_is_moved_once_and_norms_and_biases_do_not_decay(optimizer: str) -> None:
    model = random_model()
    decay: dict[int, float] = {}
    for built in build_optimizers(model, config(optimizer=optimizer, weight_decay=0.3), torch.float32):
        for group in built.param_groups:
            for parameter in group["params"]:
                assert id(parameter) not in decay
                decay[id(parameter)] = group["weight_decay"]
    for name, parameter in model.named_parameters():
        is_matrix = name.endswith("weight") and "norm" not in name
        assert decay[id(parameter)] == (0.3 if is_matrix else 0.0), name


@pytest.mark.parametrize("shape", [(24, 24), (72, 24), (24, 96)])
def test_muon_takes_all_singular_values_near_one(shape: tuple[int, int]) -> None:
    gradient = torch.randn(*shape, generator=seeded(), dtype=torch.float64)
    s = torch.linalg.svdvals(Muon.orthogonal(gradient))
    assert s.min() > 0.3
    assert s.max() < 1.3
    exact_u, _, exact_v = torch.linalg.svd(gradient, full_matrices=False)
    assert torch.allclose(Muon.orthogonal(gradient), exact_u @ exact_v, atol=0.35)  # rough, as published


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_equals_torchs(dtype: torch.dtype) -> None:
    """The one of torch iterates in bfloat16, hence the tolerance; scaling and momentum are the same."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    start = torch.randn(32, 48, generator=seeded())
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    mine = Muon([ours], weight_decay=0.1, dtype=dtype)
    reference = torch.optim.Muon([theirs], weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        gradient = torch.randn(32, 48, generator=seeded(step + 1))
        for parameter, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.param_groups[0]["lr"] = 0.01
            parameter.grad = gradient.clone()
            optimizer.step()
    moved = (ours - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved
    assert moved > 0.1 * math.sqrt(ours.numel()) * 0.01


def test_an_optimizer_finds_the_minimum() -> None:
    target = torch.randn(8, 8, generator=seeded())
    weight = torch.nn.Parameter(torch.zeros(8, 8))
    optimizer = Muon([weight], weight_decay=0.0, dtype=torch.float32)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 300)
        optimizer.zero_grad()
        (weight - target).square().sum().backward()
        optimizer.step()
    assert (weight - target).abs().max() < 0.05
