"""What follows from the data's size: the rule at its corners."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dialogpt.errors import DialogueError
from dialogpt.train.plan import batch_tokens_for, idle_settings, planned
from dialogpt.train.plot import smoothed
from dialogpt.train.settings import TrainConfig


@pytest.mark.parametrize(("tokens", "batch"), [(0, 256), (6_000, 256), (24_000, 960), (196_608, 8192), (10**9, 8192)])
def test_a_batch_is_a_24th_of_the_data(tokens: int, batch: int) -> None:
    assert batch_tokens_for(tokens, 1) == batch


def test_small_data_is_learned_more_often() -> None:
    small, large = planned(TrainConfig(), 24, 256), planned(TrainConfig(), 2_000, 256)
    assert (small.epochs, small.lr, small.valid_every) == (6, 1e-3, 24)
    assert (large.epochs, large.lr, large.valid_every) == (3, 4e-4, 500)
    assert planned(TrainConfig(), 1, 256).epochs == 30
    assert planned(TrainConfig(), 24, 768).lr == 1.1e-4
    assert planned(TrainConfig(lora=4), 24, 768).lr == 5.6e-4


def test_what_was_chosen_is_kept() -> None:
    config = TrainConfig(steps=7, lr=0.5, valid_every=3)
    assert planned(config, 24, 256) == config


def test_settings_that_do_nothing_are_said() -> None:
    assert idle_settings(planned(TrainConfig(), 24, 256), 144, True) == []
    noam = planned(TrainConfig(schedule="noam"), 24, 256)
    assert "never reaches --lr" in idle_settings(noam, 144, True)[0]
    patient = planned(TrainConfig(patience=9), 24, 256)
    assert "--patience 9 never ends a run with 6 validations" in idle_settings(patient, 144, True)[0]
    assert idle_settings(planned(TrainConfig(steps=5), 24, 256), 5, True) == [
        "a run of 5 steps changes little; give more --steps"
    ]
    assert idle_settings(planned(TrainConfig(epochs=1), 1, 256), 1, True) == [
        "a run of 1 step changes little; give more --epochs"
    ]
    adapted = TrainConfig(lora_target="c_fc", lora_alpha=2.0)
    assert [sentence[:35] for sentence in idle_settings(planned(adapted, 24, 256), 144, True)] == [
        "--lora-target does nothing without ",
        "--lora-alpha does nothing without -",
    ]
    assert idle_settings(planned(replace(adapted, lora=1), 24, 256), 144, True) == []
    with pytest.raises(DialogueError, match="lora_target must be one or several of c_attn,c_proj,c_fc, got 'wte'"):
        TrainConfig(lora=1, lora_target="wte")


def test_the_curve_is_true_from_its_first_point() -> None:
    """The mean of the steps before lay a nat above a falling loss, in the first third of a short run."""
    falling = [5.0 - 0.02 * step for step in range(200)]
    assert smoothed(falling) == pytest.approx(falling)
