"""All settings of a training run with their ranges and defaults; the flags of `dialogpt train` are derived from them.

It imports nothing heavy, as `dialogpt --help` reads it. What the settings do is left to the modules that use them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dialogpt.errors import DialogueError, Problem, SettingsError
from dialogpt.settings import NON_NEGATIVE, SWITCH, Kind, choice, integer, kinds_of, number, problems_of, setting

SCHEDULES = ("cosine", "linear", "noam")
OPTIMIZERS = ("adamw", "muon")
TRAIN_DTYPES = ("auto", "float64", "float32", "bfloat16")
LORA_TARGETS = ("c_attn", "c_proj", "c_fc")  # PEFT's names of GPT-2's layers; c_proj is attention's and the MLP's
LOSS_ON = ("replies", "all")
PARALLEL = ("data", "fsdp")
MAX_INTEGER = 10**9  # of any setting

_STEPS = integer(1, MAX_INTEGER)
_ABOVE_0 = number(above=0)
_SHARE_BELOW_1 = number(minimum=0, below=1)
_TARGETS = Kind(
    lambda value: isinstance(value, str) and all(name in LORA_TARGETS for name in value.split(",")),
    f"one or several of {','.join(LORA_TARGETS)}",
    str,
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of a training run, without its data and its folder.

    Raises:
        SettingsError: values have a wrong type or range, or contradict each other; all problems are reported.
    """

    epochs: float | None = setting(
        None, number(above=0, maximum=1_000_000), "passes over the data (default: 3, and more for little data)"
    )
    steps: int | None = setting(None, _STEPS, "number of steps, instead of --epochs")
    batch_tokens: int | None = setting(
        None,
        _STEPS,
        "slots of a batch: rows times the longest row (default: 8192, and less for little data)",
    )
    accumulation: int | None = setting(
        None, _STEPS, "batches whose gradients make one step (default: one for each process)"
    )
    window: int | None = setting(
        None, integer(2, MAX_INTEGER), "maximum tokens of a row (default: all positions of the model)"
    )
    loss_on: str = setting("replies", choice(*LOSS_ON), "which turns are targets: all but the first, or all")
    reverse: bool = setting(False, SWITCH, "train on the source given the reply, for MMI reranking")
    tsv_weights: bool = setting(False, SWITCH, "each turn of a .tsv file begins with its weight")
    optimizer: str = setting(
        "adamw", choice(*OPTIMIZERS), "muon updates the blocks' matrices with Muon, the rest with AdamW"
    )
    lr: float | None = setting(
        None,
        _ABOVE_0,
        "peak learning rate (noam: the factor before 1e4 / sqrt(n_embd); default: by width and steps)",
    )
    schedule: str = setting("cosine", choice(*SCHEDULES), "how the learning rate decays")
    warmup_steps: int | None = setting(
        None,
        integer(0, MAX_INTEGER),
        "steps in which the learning rate rises (default: a tenth, at most 100; noam: 16000)",
    )
    final_lr: float = setting(
        0.02, number(minimum=0, maximum=1), "final learning rate as a fraction of --lr (cosine, linear)"
    )
    beta1: float = setting(0.9, _SHARE_BELOW_1, "AdamW's decay rate of the mean gradient")
    beta2: float = setting(0.95, _SHARE_BELOW_1, "AdamW's decay rate of the mean squared gradient")
    epsilon: float = setting(1e-8, _ABOVE_0, "AdamW's epsilon, added to the denominator")
    weight_decay: float = setting(0.1, number(minimum=0), "weight decay of matrices; norms and biases have none")
    max_grad_norm: float = setting(1.0, _ABOVE_0, "gradients are clipped to this norm")
    dropout: float | None = setting(None, _SHARE_BELOW_1, "one dropout rate in place of the model's three")
    dtype: str = setting(
        "auto", choice(*TRAIN_DTYPES), "dtype of matrix products; auto is bfloat16 where the processor supports it"
    )
    gradient_checkpointing: bool = setting(
        False, SWITCH, "recompute the activations of each block instead of storing them"
    )
    lora: int | None = setting(None, _STEPS, "train LoRA adapters of this rank and freeze the weights")
    lora_target: str = setting(
        "c_attn", _TARGETS, "with --lora: which layers have adapters, by their published names: c_attn,c_proj,c_fc"
    )
    lora_alpha: float | None = setting(
        None, _ABOVE_0, "with --lora: the adapters' scale times rank (default: twice the rank)"
    )
    parallel: str = setting(
        "data", choice(*PARALLEL), "with torchrun: replicate the network in each process (data), or shard it (fsdp)"
    )
    split: float = setting(
        0.05, _SHARE_BELOW_1, "fraction of dialogues that is held out for validation, unless --valid is given"
    )
    samples: int = setting(4, integer(0, 100), "held-out prompts that are answered before, during and after training")
    valid_every: int | None = setting(None, _STEPS, "steps between validations (default: an epoch, at most 500)")
    save_every: int = setting(500, _STEPS, "steps between checkpoints")
    patience: int | None = setting(None, _STEPS, "stop after this many validations in a row without improvement")
    seed: int = setting(1, NON_NEGATIVE, "seed of fresh weights, dropout and the order of batches")

    def __post_init__(self) -> None:
        problems = problems_of(self, kinds_of(self))
        if self.epochs is not None and self.steps is not None:
            problems.append(Problem("epochs", self.epochs, "omitted, as {steps} sets the length of the run"))
        if self.schedule == "noam" and self.warmup_steps == 0:
            problems.append(Problem("warmup_steps", 0, "positive with {schedule} noam, whose peak ends the warm-up"))
        if self.optimizer == "muon" and self.parallel == "fsdp":
            problems.append(Problem("optimizer", "muon", "adamw with {parallel} fsdp, which shards the matrices"))
        if self.lora is not None and self.parallel == "fsdp":
            problems.append(Problem("lora", self.lora, "omitted with {parallel} fsdp: adapters are too small to shard"))
        if problems:
            raise SettingsError(problems)
        for name, kind in kinds_of(self).items():
            value = getattr(self, name)
            if kind.parse is float and value is not None:  # torch's AdamW refuses a beta that is the integer 0
                object.__setattr__(self, name, float(value))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Build settings from names and values; unknown names are refused.

        Raises:
            DialogueError: as the class, or a name is not known.
        """
        unknown = sorted(values.keys() - {declared.name for declared in fields(cls)})
        if unknown:
            raise DialogueError(f"there is no setting {', '.join(unknown)}")
        return cls(**values)
