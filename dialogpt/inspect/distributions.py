"""How the settings narrowed the choice: the distribution of the next token after every processor that acted.

The processors are those of `dialogpt.sampler`, applied one after the other as it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dialogpt.generation_config import GenerationConfig
from dialogpt.logits.processors import Seen
from dialogpt.sampler import active_processors


@dataclass(frozen=True)
class Stage:
    """The distribution after one processor.

    Attributes:
        name: of the processor; "network" is what the network itself answered.
        settings: the settings that make it act, by name.
        probabilities: (V,) in float32.
        removed: the tokens that this processor made impossible, (V,) of booleans.
    """

    name: str
    settings: dict[str, Any]
    probabilities: Tensor
    removed: Tensor


@torch.inference_mode()
def stages(logits: Tensor, config: GenerationConfig, seen: Seen) -> list[Stage]:
    """Apply the processors that the settings ask for, in order.

    Args:
        logits: the network's own at one position, (V,).
        config: with the end tokens filled in.
        seen: what the sequence holds.

    Returns:
        "network" first, then one stage for each processor that acts. A processor that changes nothing at this position
        is among them, with the distribution of the one before.
    """
    scores = logits.float()[None]  # (1, V)
    if config.num_beams > 1:
        scores = scores.log_softmax(dim=-1)  # as beam search has it
    found = [Stage("network", {}, scores.softmax(dim=-1)[0], torch.zeros_like(scores[0], dtype=torch.bool))]
    for processor in active_processors(config, [seen]):
        processed = processor.apply(scores.clone())  # it may change them in place
        removed = ((processed == -torch.inf) & (scores > -torch.inf))[0]
        scores = processed
        settings = {name: getattr(config, name) for name in processor.settings}
        found.append(Stage(processor.name, settings, scores.softmax(dim=-1)[0], removed))
    return found
