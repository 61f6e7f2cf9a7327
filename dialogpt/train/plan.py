"""Defaults that are derived from the data; docs/training.md describes the same rules.

    batch_tokens   1/24 of the data, between 256 and 8,192
    epochs         enough for 150 steps, between 3 and 30
    lr             1e-3 * (256 / width)^2, at least 2e-5; times (150 / steps)^(1/4) in runs of more than 150 steps, but
                   at least 0.3 of it; times 5 for adapters (LoRA)
    valid_every    one epoch, at most 500 steps

With the 8,192 tokens per batch and 3 epochs of a large data set, 200 dialogues gave 6 steps and had no visible effect:
the loss of tiny fell from 5.32 to 4.80, and its replies stayed the same.
"""

from __future__ import annotations

import math
from dataclasses import replace

from dialogpt.data.dialogue import counted
from dialogpt.train.settings import TrainConfig

BATCHES, STEPS = 24, 150  # targets: batches per epoch, steps per run
MIN_BATCH, MAX_BATCH, ROUNDED = 256, 8192, 64  # tokens
MIN_EPOCHS, MAX_EPOCHS = 3, 30
LR, WIDTH, MIN_LR = 1e-3, 256, 2e-5
MIN_LR_FACTOR, LORA_LR = 0.3, 5.0
VALID_EVERY = 500


def batch_tokens_for(tokens: int, processes: int) -> int:
    """Choose the batch size of a data set, in tokens.

    Args:
        tokens: the size of the data.
        processes: how many processes share the batches of a step.
    """
    share = tokens // (BATCHES * processes) // ROUNDED * ROUNDED
    return max(MIN_BATCH, min(MAX_BATCH, share))


def planned(config: TrainConfig, steps_an_epoch: float, width: int) -> TrainConfig:
    """Return settings in which everything that depends on the data is filled in.

    Args:
        config: what the user chose.
        steps_an_epoch: steps per epoch with the chosen batches.
        width: n_embd of the network.
    """
    if config.steps is None and config.epochs is None:
        epochs = round(STEPS / steps_an_epoch)
        config = replace(config, epochs=float(max(MIN_EPOCHS, min(MAX_EPOCHS, epochs))))
    steps = config.steps or math.ceil(round((config.epochs or 0) * steps_an_epoch, 6))
    if config.lr is None:
        lr = max(MIN_LR, LR * min(1.0, (WIDTH / width) ** 2)) * (LORA_LR if config.lora else 1.0)
        lr *= max(MIN_LR_FACTOR, min(1.0, (STEPS / steps) ** 0.25))
        config = replace(config, lr=float(f"{lr:.2g}"))
    if config.valid_every is None:
        config = replace(config, valid_every=max(1, min(VALID_EVERY, math.ceil(steps_an_epoch))))
    return config


def idle_settings(config: TrainConfig, steps: int, validates: bool) -> list[str]:
    """Return one sentence for each setting that has no effect in a run of this many steps."""
    found = []
    warmup = 16_000 if config.warmup_steps is None and config.schedule == "noam" else config.warmup_steps
    if warmup is not None and warmup >= steps:
        found.append(f"the learning rate rises for {warmup:,} steps and the run has {steps:,}: it never reaches --lr")
    validations = math.ceil(steps / (config.valid_every or VALID_EVERY))
    if config.patience is not None and config.patience >= validations:
        found.append(f"--patience {config.patience} never ends a run with {validations:,} validations")
    if config.patience is not None and not validates:
        found.append("nothing is held out, so --patience does nothing")
    unset = TrainConfig()
    for name in ("lora_target", "lora_alpha"):
        if config.lora is None and getattr(config, name) != getattr(unset, name):
            found.append(f"--{name.replace('_', '-')} does nothing without --lora, so that all weights are trained")
    if steps < 20:
        more = "--epochs" if config.steps is None else "--steps"
        found.append(f"a run of {counted(steps, 'step')} changes little; give more {more}")
    return found
