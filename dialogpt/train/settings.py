"""Every setting of a training run, with its range and its default; the flags of `dialogpt train` are made of it.

It imports nothing heavy, as `dialogpt --help` reads it. What the settings do is left to the files that use them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from dialogpt.errors import DialogueError

SCHEDULES = ("cosine", "linear", "noam")
OPTIMIZERS = ("adamw", "muon")
TRAIN_DTYPES = ("auto", "float64", "float32", "bfloat16")
LORA_TARGETS = ("c_attn", "c_proj", "c_fc")  # PEFT's names of GPT-2's layers; c_proj is attention's and the MLP's
LOSS_ON = ("replies", "all")
PARALLEL = ("data", "fsdp")
LARGEST = 10**9  # of whole numbers whose range says nothing else


def _setting(default: Any, purpose: str, **range_: Any) -> Any:
    """A setting with its help and its range: `least` and `most`, or `choices`."""
    return field(default=default, metadata={"help": purpose, **range_})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained; what it learns from and where it goes are arguments beside it.

    Raises:
        DialogueError: a value has the wrong type or range, or two contradict each other; all of them are named.
    """

    epochs: float | None = _setting(
        None, "how often each turn is learned (default: 3, and more of little data)", above=0, most=1e6
    )
    steps: int | None = _setting(None, "how many steps to take, instead of --epochs", least=1)
    batch_tokens: int | None = _setting(
        None, "places of a batch: its rows times the longest of them (default: 8192, and less of little data)", least=1
    )
    accumulation: int | None = _setting(
        None, "batches whose gradients make one step (default: one for each process)", least=1
    )
    window: int | None = _setting(None, "the most tokens of a row (default: as many as the model sees)", least=2)
    loss_on: str = _setting("replies", "learn every turn but the first, or all", choices=LOSS_ON)
    reverse: bool = _setting(False, "learn the source given the reply, as MMI reranking needs it")
    tsv_weights: bool = _setting(False, "each turn of a .tsv file begins with its weight")
    optimizer: str = _setting("adamw", "muon moves the blocks' matrices by Muon, the rest by AdamW", choices=OPTIMIZERS)
    lr: float | None = _setting(
        None,
        "the highest learning rate (noam: the factor before 1e4 / sqrt(n_embd); default: by width and steps)",
        above=0,
    )
    schedule: str = _setting("cosine", "how the learning rate falls", choices=SCHEDULES)
    warmup_steps: int | None = _setting(
        None, "steps in which the learning rate rises (default: a tenth, at most 100; noam: 16000)", least=0
    )
    final_lr: float = _setting(0.02, "what is left of the learning rate at the end (cosine, linear)", least=0, most=1)
    beta1: float = _setting(0.9, "AdamW's decay of the mean gradient", least=0, below=1)
    beta2: float = _setting(0.95, "AdamW's decay of the mean squared gradient", least=0, below=1)
    epsilon: float = _setting(1e-8, "AdamW's smallest divisor", above=0)
    weight_decay: float = _setting(0.1, "decay of matrices; norms and biases have none", least=0)
    max_grad_norm: float = _setting(1.0, "longer gradients are shortened to this", above=0)
    dropout: float | None = _setting(None, "in place of the model's own three rates", least=0, below=1)
    dtype: str = _setting("auto", "to multiply in; auto is bfloat16 where the processor can", choices=TRAIN_DTYPES)
    gradient_checkpointing: bool = _setting(False, "compute each block twice rather than keep its inside in memory")
    lora: int | None = _setting(None, "train adapters of this rank, and leave the weights as they are", least=1)
    lora_target: str = _setting(
        "c_attn", "with --lora: which layers have adapters, by their published names: c_attn,c_proj,c_fc"
    )
    lora_alpha: float | None = _setting(
        None, "with --lora: the adapters' scale times rank (default: twice the rank)", above=0
    )
    parallel: str = _setting("data", "with torchrun: a copy in each process, or a share (fsdp)", choices=PARALLEL)
    split: float = _setting(
        0.05, "the share of dialogues that are held out to validate with, where no --valid is given", least=0, below=1
    )
    samples: int = _setting(
        4, "held-out prompts that are answered before, during and after training", least=0, most=100
    )
    valid_every: int | None = _setting(None, "steps between validations (default: an epoch, at most 500)", least=1)
    save_every: int = _setting(500, "steps between checkpoints", least=1)
    patience: int | None = _setting(None, "stop after so many validations without a better one", least=1)
    seed: int = _setting(1, "of fresh weights, dropout and the order of batches", least=0, most=2**63 - 1)

    def __post_init__(self) -> None:
        problems = [problem for setting in fields(self) if (problem := _problem(setting, getattr(self, setting.name)))]
        if self.epochs is not None and self.steps is not None:
            problems.append("epochs and steps both say when to stop; give one of them")
        if self.schedule == "noam" and self.warmup_steps == 0:
            problems.append("warmup_steps is 0, and noam has its peak at the end of the warm-up; expected at least 1")
        if self.optimizer == "muon" and self.parallel == "fsdp":
            problems.append("muon needs whole matrices and fsdp shares them out; use adamw, or parallel data")
        if self.lora is not None and self.parallel == "fsdp":
            problems.append("lora trains too little to be shared out; use parallel data")
        wrong = [name for name in self.lora_target.split(",") if name not in LORA_TARGETS]
        if wrong:
            problems.append(f"lora_target is {self.lora_target!r}, expected some of {','.join(LORA_TARGETS)}")
        if problems:
            raise DialogueError("; ".join(problems))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """A config from its names and values; unknown names are refused.

        Raises:
            DialogueError: as the class, or a name is not known.
        """
        unknown = sorted(values.keys() - {setting.name for setting in fields(cls)})
        if unknown:
            raise DialogueError(f"there is no setting {', '.join(unknown)}")
        return cls(**values)


def _problem(setting: Any, value: Any) -> str | None:
    """What is wrong with a value; None where nothing is."""
    rules = setting.metadata
    if value is None and setting.default is None:
        return None
    if "choices" in rules:
        expected, fits = " or ".join(rules["choices"]), value in rules["choices"]
    elif isinstance(setting.default, str):
        expected, fits = "a text", isinstance(value, str)
    elif isinstance(setting.default, bool):
        expected, fits = "true or false", isinstance(value, bool)
    else:
        whole = setting.type.startswith("int")
        rules = {"most": LARGEST, **rules} if whole else rules
        is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        expected = ("a whole number" if whole else "a number") + "".join(
            f" {words} {rules[rule]:,}" for rule, words in _BOUNDS.items() if rule in rules
        )
        fits = (
            is_number
            and (isinstance(value, int) or math.isfinite(value))
            and all(holds(value, rules[rule]) for rule, holds in _HOLDS.items() if rule in rules)
        )
    return None if fits else f"{setting.name} is {value!r}, expected {expected}"


_BOUNDS = {"least": "from", "above": "above", "most": "up to", "below": "below"}
_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "least": lambda value, bound: value >= bound,
    "above": lambda value, bound: value > bound,
    "most": lambda value, bound: value <= bound,
    "below": lambda value, bound: value < bound,
}
