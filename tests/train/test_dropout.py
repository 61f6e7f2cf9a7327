"""The cheaper dropout: the same distribution as torch's, and nothing at all in evaluation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dialogpt.train.dropout import Dropout, use_cheap_dropout
from tests.helpers import random_model


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_it_drops_at_its_rate_and_keeps_the_mean(rate: float) -> None:
    """One million values: the share that is dropped lies within five deviations, which fails once in two million."""
    torch.manual_seed(0)
    out = Dropout(rate)(torch.ones(1000, 1001))
    dropped = float((out == 0).double().mean())
    assert abs(dropped - rate) < 5 * math.sqrt(rate * (1 - rate) / out.numel())
    assert torch.unique(out).tolist() == pytest.approx([0, 1 / (1 - rate)])


def test_neighbours_are_dropped_independently() -> None:
    """Four values share a number of 64 bits; each pair among them agrees as often as chance has it."""
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(250_000, 4)) > 0).double() * 2 - 1
    correlations = kept.t() @ kept / len(kept) - torch.eye(4, dtype=torch.float64)
    assert correlations.abs().max() < 5 / math.sqrt(len(kept))


def test_gradients_pass_where_values_do() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    out = Dropout(0.4)(x)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad > 0, out != 0)
    assert torch.allclose(out, x * x.grad)


def test_evaluation_and_rate_zero_change_nothing() -> None:
    x = torch.randn(3, 3)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_a_network_gets_it_everywhere_at_its_own_rates() -> None:
    model = random_model(embd_pdrop=0.1, resid_pdrop=0.2)
    use_cheap_dropout(model)
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())
    assert [module.rate for module in model.modules() if isinstance(module, Dropout)] == [0.1, 0.2, 0.2, 0.2, 0.2]
