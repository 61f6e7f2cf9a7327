"""One training step, and all state that steps change: the network, its optimizers and the progress of the run.

The gradient of a step is the same however its batches are distributed over processes: the sum over all target tokens,
divided by the sum of their weights. The random numbers of step n follow from the seed and n, so no generator state is
saved. When to validate and save is left to `dialogpt.train.loop`, files to
`dialogpt.train.run_folder`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dialogpt.errors import DialogueError
from dialogpt.files import own_files
from dialogpt.model import GPT2
from dialogpt.settings import integer
from dialogpt.train.data.batches import Batch, Batches
from dialogpt.train.distributed import Processes, gather, shard
from dialogpt.train.dropout import use_cheap_dropout
from dialogpt.train.lora import adapters, merged_parameters
from dialogpt.train.objective import Objective
from dialogpt.train.optimizer import Muon, build_optimizers, lr_at, set_lr
from dialogpt.train.plan import planned
from dialogpt.train.settings import MAX_INTEGER, TrainConfig
from dialogpt.weights.formats import count_non_finite


@dataclass(frozen=True)
class Measured:
    """The metrics of one step.

    Attributes:
        step: its number, from 1.
        loss: weighted mean over the target tokens, in nats, before the update.
        learned: the number of target tokens.
        lr: the learning rate.
        grad_norm: the norm of the gradient before clipping.
        seconds: the duration of the step.
    """

    step: int
    loss: float
    learned: int
    lr: float
    grad_norm: float
    seconds: float


PROGRESS_SCHEMA: own_files.Schema = {
    "step": integer(0, MAX_INTEGER),
    "tokens": own_files.COUNT,
    "seconds": own_files.SECONDS,
    "best_loss": own_files.optional(own_files.NUMBER),
    "best_step": integer(0, MAX_INTEGER),
    "worse": integer(0, MAX_INTEGER),
}


@dataclass
class Progress:
    """The progress of a run, which a checkpoint stores beside weights and optimizer state.

    Attributes:
        step: how many steps were taken.
        tokens: how many target tokens they had.
        seconds: how long they took.
        best_loss: the lowest validation loss.
        best_step: the step that had it; 0 if there was none.
        worse: how many validations have passed since.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0
    worse: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return values that JSON can express: it has no infinity."""
        return asdict(self) | {"best_loss": self.best_loss if math.isfinite(self.best_loss) else None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Progress:
        """Parse the content of a file.

        Raises:
            DialogueError: it holds something else.
        """
        own_files.require(values, PROGRESS_SCHEMA, "the progress")
        best = values.get("best_loss")
        numbers: dict[str, Any] = {
            "seconds": float(values["seconds"]),
            "best_loss": math.inf if best is None else float(best),
        }
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name not in numbers}, **numbers)


class Trainer:
    """A network in training.

    Attributes:
        config: the training settings, with all defaults that depend on the data filled in.
        model: the network, in float32 (in float64 with that dtype).
        optimizers: they update its weights.
        progress: the progress of the run.
        steps: the number of steps of the whole run.
        interrupted: whether the caller stopped training before its last step.
    """

    def __init__(
        self, model: GPT2, batches: Batches, valid: Batches | None, config: TrainConfig, processes: Processes
    ) -> None:
        """Wrap a network for training.

        Args:
            model: a network in its own memory.
            batches: training data.
            valid: validation data.
            config: settings; `accumulation` is a multiple of the number of processes.
            processes: all processes of the run; each must pass equal weights.
        """
        self.config, self.processes = config, processes
        self.batches, self.valid = batches, valid
        self.dtype = multiply_dtype(config.dtype, processes.device)
        self.accumulation = config.accumulation or processes.size
        self.model = model.to(torch.float64 if self.dtype == torch.float64 else torch.float32).train()
        if config.parallel == "data" or processes.size == 1:  # FSDP moves block by block: all may not fit one device
            self.model.to(processes.device)
        if processes.device.type == "cpu":
            use_cheap_dropout(model)
        if config.gradient_checkpointing:
            recompute_blocks(model)
        self.objective = processes.wrap(Objective(self.model), config.parallel)
        self.optimizers = build_optimizers(self.model, config, self.dtype)
        self.progress = Progress()
        self.config = config = planned(config, batches.per_epoch / self.accumulation, model.config.n_embd)
        exact = round((config.epochs or 0) * batches.per_epoch / self.accumulation, 6)  # 1.1 * 50 is 55.00000000000001
        self.steps = config.steps or math.ceil(exact)
        self.interrupted = False

    def step(self) -> Measured:
        """Run one training step on the next batches.

        Raises:
            DialogueError: the loss or the gradient is not finite; the weights are unchanged.
        """
        start, number = time.perf_counter(), self.progress.step + 1
        count, processes = self.accumulation, self.processes
        mine = range((number - 1) * count + processes.rank, number * count, processes.size)
        batches = [self.batches[n] for n in mine]
        weight, learned = processes.sums([sum(b.weight for b in batches), sum(b.learned for b in batches)])
        total = 0.0
        for n, batch in zip(mine, batches, strict=True):
            torch.manual_seed((self.config.seed * 1_000_003 + n) % (1 << 63))  # dropout is independent of the rank
            with processes.accumulating(self.objective, last=n + processes.size >= number * count):
                loss = self._loss(batch)
                scaled = loss * (processes.size / weight)  # gradients are averaged over processes
                scaled.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        (loss_sum,) = processes.sums([total])
        parameters = list(self.model.parameters())
        norm = float(gather(torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)))
        if not (math.isfinite(loss_sum) and math.isfinite(norm)):
            raise _not_finite(number, f"the loss is {loss_sum / weight:.4g} and the gradient norm is {norm:.4g}")
        lr = lr_at(number, self.steps, self.model.config.n_embd, self.config)
        set_lr(self.optimizers, lr)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - start
        self.progress.step = number
        self.progress.tokens += int(learned)
        self.progress.seconds += seconds
        return Measured(number, loss_sum / weight, int(learned), lr, norm, seconds)

    def validate(self) -> float:
        """Return the weighted mean loss over all target tokens of the validation data, in nats.

        Raises:
            DialogueError: it is not finite.
        """
        assert self.valid is not None
        loss = self._mean_loss(self.valid, range(self.valid.per_epoch))
        if not math.isfinite(loss):
            raise _not_finite(self.progress.step, f"the validation loss is {loss:.4g}")
        return loss

    def check_next_loss(self) -> None:
        """Evaluate the updated weights on the next batches before they are saved.

        Raises:
            DialogueError: their loss is not finite.
        """
        first = self.progress.step * self.accumulation
        loss = self._mean_loss(self.batches, range(first, first + self.processes.size))
        if not math.isfinite(loss):
            raise _not_finite(self.progress.step, f"the loss after its update is {loss:.4g}")

    def _mean_loss(self, batches: Batches, numbers: range) -> float:
        """Return the mean loss over a range of batches, without gradients."""
        total = weight = 0.0
        self.model.eval()
        try:
            with torch.no_grad():
                # Sharded weights are gathered for each batch, so all processes must run the same number.
                for first in numbers[:: self.processes.size]:
                    mine = first + self.processes.rank
                    batch = batches[min(mine, numbers[-1])]
                    loss = float(self._loss(batch))
                    if mine in numbers:
                        total, weight = total + loss, weight + batch.weight
        finally:
            self.model.train()
            self.processes.reshard(self.objective)
        total, weight = self.processes.sums([total, weight])
        return total / weight

    def _loss(self, batch: Batch) -> Tensor:
        device = self.processes.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            loss: Tensor = self.objective(batch.ids.to(device), batch.labels.to(device), batch.weights.to(device))
        return loss

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the state of the optimizers under names such as "0.blocks.0.mlp.up.weight.exp_avg"; see `weights`."""
        return self._collected(
            (f"{n}.{name}.{key}", value)
            for n, optimizer in enumerate(self.optimizers)
            for name, parameter in self._trainable()
            for key, value in optimizer.state.get(parameter, {}).items()
        )

    def weights(self) -> dict[str, Tensor]:
        """Gather the network's weights on the CPU of rank 0, with adapters merged; other ranks get an empty dictionary.

        All ranks must call this.
        """
        return self._collected(merged_parameters(self.model))

    def adapter_weights(self) -> dict[str, Tensor]:
        """Return the weights of the adapters; empty if there are none."""
        return self._collected(self._trainable()) if adapters(self.model) else {}

    def _trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [pair for pair in self.model.named_parameters() if pair[1].requires_grad]

    def _collected(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        collected = {}
        for name, tensor in tensors:
            gathered = gather(tensor)  # one at a time: a sharded network may not fit one device
            if self.processes.first:
                collected[name] = gathered.cpu()
        return collected

    def restore(self, weights: dict[str, Tensor], optimizer_state: dict[str, Tensor], progress: Progress) -> None:
        """Restore a saved state. Weights are copied, as the alignment of a mapped file would change the last bits.

        Args:
            weights: all trainable weights, by name.
            optimizer_state: see `optimizer_state`.
            progress: the progress at that time.

        Raises:
            ValueError: the state does not belong to this network and these optimizers; nothing is changed.
        """
        parameters = dict(self._trainable())
        self._check(weights, optimizer_state, parameters, progress)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(shard(weights[name].to(parameter.dtype), parameter))
        for name, value in optimizer_state.items():
            n, rest = name.split(".", 1)
            owner, key = rest.rsplit(".", 1)
            parameter = parameters[owner]
            scalar = value.dim() == 0  # AdamW's count of steps, which stays on the CPU unless it is fused on a GPU
            kept = value.clone() if scalar else shard(value.clone().to(parameter.device), parameter)
            self.optimizers[int(n)].state[parameter][key] = kept.to(parameter.device) if scalar else kept
        self.progress = progress

    def _check(
        self,
        weights: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
        progress: Progress,
    ) -> None:
        """Raise unless weights and state are what `Run.save` writes, to the shape: the optimizers would believe any."""
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        if any(name not in weights or weights[name].shape != shape for name, shape in shapes.items()):
            raise ValueError("not the weights of this network")
        names = {parameter: name for name, parameter in parameters.items()}
        expected = {
            f"{n}.{names[parameter]}.{key}": torch.Size() if key == "step" else parameter.shape
            for n, optimizer in enumerate(self.optimizers)
            for group in optimizer.param_groups
            for parameter in group["params"]
            for key in STATE_KEYS[type(optimizer)]
        }
        if {name: value.shape for name, value in state.items()} != (expected if progress.step else {}):
            raise ValueError("not the optimizer's state of this network")
        values = [*(weights[name] for name in parameters), *state.values()]
        if not all(value.is_floating_point() for value in values) or any(count_non_finite(value) for value in values):
            raise ValueError("it holds NaN or infinity, or numbers of another kind")


def _not_finite(step: int, what: str) -> DialogueError:
    return DialogueError(
        f"step {step}: {what}; training stops, and the last good checkpoint is kept. Try a lower --lr, a longer "
        f"--warmup-steps, or --dtype float32, in a new folder"
    )


STATE_KEYS: dict[type, tuple[str, ...]] = {torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"), Muon: ("momentum",)}


def recompute_blocks(model: GPT2) -> None:
    """Recompute the activations of each block in the backward pass: less memory, a third more time."""
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def multiply_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of matrix products; "auto" is bfloat16 if the device has instructions for it, else float32.

    Without such instructions bfloat16 is several times slower: 60 instead of 290 GFLOP/s on a processor with AVX-512
    but without AVX512_BF16.
    """
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    probes = (getattr(torch.cpu, probe, None) for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    native = device.type == "cpu" and any(probe() for probe in probes if probe is not None)
    return torch.bfloat16 if native else torch.float32
