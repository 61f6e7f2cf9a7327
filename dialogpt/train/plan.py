"""Settings that follow from the data where nobody chose them: one rule, written down here and in docs/training.md.

    batch_tokens   a 24th of the data, between 256 and 8,192
    epochs         as many as make 150 steps, between 3 and 30
    lr             1e-3 for a network that is 256 wide, falling with the square of the width; of more than 150 steps
                   their fourth root less, at most to 0.3 of it; five times as much for adapters (LoRA)
    valid_every    an epoch, at most 500 steps

With 8,192 tokens a batch and three epochs, as a large data set has them, 200 dialogues took 6 steps and changed
nothing: the loss of tiny went from 5.32 to 4.80, and its replies stayed.
"""

from __future__ import annotations

import math
from dataclasses import replace

from dialogpt.train.settings import TrainConfig

BATCHES, STEPS = 24, 150  # an epoch should have, a run should have
MIN_BATCH, MAX_BATCH, ROUNDED = 256, 8192, 64  # tokens
MIN_EPOCHS, MAX_EPOCHS = 3, 30
LR, WIDTH, MIN_LR = 1e-3, 256, 2e-5
MIN_LR_FACTOR, LORA_LR = 0.3, 5.0
VALID_EVERY = 500


def batch_tokens_for(tokens: int, processes: int) -> int:
    """How large a batch of a small data set is.

    Args:
        tokens: of the data.
        processes: that share a step's batches.
    """
    share = tokens // (BATCHES * processes) // ROUNDED * ROUNDED
    return max(MIN_BATCH, min(MAX_BATCH, share))


def planned(config: TrainConfig, steps_an_epoch: float, width: int) -> TrainConfig:
    """The settings with all that follows from the data.

    Args:
        config: what was chosen.
        steps_an_epoch: how many there are, with the chosen batches.
        width: of the network (n_embd).
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
    """Settings that cannot do anything in a run of so many steps, a sentence each."""
    found = []
    warmup = 16_000 if config.warmup_steps is None and config.schedule == "noam" else config.warmup_steps
    if warmup is not None and warmup >= steps:
        found.append(f"the learning rate rises for {warmup:,} steps and the run has {steps:,}: it never reaches --lr")
    validations = math.ceil(steps / (config.valid_every or VALID_EVERY))
    if config.patience is not None and config.patience >= validations:
        found.append(f"--patience {config.patience} never ends a run with {validations:,} validations")
    if config.patience is not None and not validates:
        found.append("nothing is held out, so --patience does nothing")
    if steps < 20:
        found.append(f"{steps:,} steps change little; give more --epochs")
    return found
