"""One training step, and all state that steps change: the network, its optimizers, and a few numbers.

The gradient of a step is exact for any way of dealing its batches out: the sum over all learned tokens of all batches
and processes, divided by the sum of their weights. Every draw of step n comes from the seed and n, so that there is no
state of a generator to keep. When to validate and save is left to `dialogpt.train.loop`, files to
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

from dialogpt import own_files
from dialogpt.errors import DialogueError
from dialogpt.model import GPT2
from dialogpt.settings import integer
from dialogpt.train.data.batches import Batch, Batches
from dialogpt.train.distributed import Processes, share, whole
from dialogpt.train.dropout import use_cheap_dropout
from dialogpt.train.lora import adapters, merged_parameters
from dialogpt.train.objective import Objective
from dialogpt.train.optimizer import Muon, build_optimizers, lr_at, set_lr
from dialogpt.train.plan import planned
from dialogpt.train.settings import LARGEST, TrainConfig
from dialogpt.weights.formats import count_non_finite


@dataclass(frozen=True)
class Measured:
    """What one step saw.

    Attributes:
        step: its number, from 1.
        loss: mean over the learned tokens, weighted, in nats, before the step.
        learned: tokens.
        lr: learning rate.
        grad_norm: before clipping.
        seconds: it took.
    """

    step: int
    loss: float
    learned: int
    lr: float
    grad_norm: float
    seconds: float


PROGRESS_SCHEMA: own_files.Schema = {
    "step": integer(0, LARGEST),
    "tokens": own_files.COUNT,
    "seconds": own_files.SECONDS,
    "best_loss": own_files.optional(own_files.NUMBER),
    "best_step": integer(0, LARGEST),
    "worse": integer(0, LARGEST),
}


@dataclass
class Progress:
    """How far a run is; what a checkpoint keeps beside weights and optimizers.

    Attributes:
        step: steps taken.
        tokens: learned in them.
        seconds: spent in them.
        best_loss: of all validations.
        best_step: when it was measured; 0 is never.
        worse: validations since the best.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0
    worse: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For a file of JSON, which has no infinity."""
        return asdict(self) | {"best_loss": self.best_loss if math.isfinite(self.best_loss) else None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Progress:
        """From the content of a file.

        Raises:
            DialogueError: it holds something else.
        """
        own_files.require(values, PROGRESS_SCHEMA, "the progress")
        best = values["best_loss"]
        numbers = {"seconds": float(values["seconds"]), "best_loss": math.inf if best is None else float(best)}
        return cls(**{field.name: values[field.name] for field in fields(cls)} | numbers)


class Trainer:
    """A network in training.

    Attributes:
        config: how it is trained, with all that follows from the data.
        model: its weights, in float32 (float64 with that dtype).
        optimizers: what moves them.
        progress: how far it is.
        steps: how many there will be.
        interrupted: whether training was left before its end because the caller asked for it.
    """

    def __init__(
        self, model: GPT2, batches: Batches, valid: Batches | None, config: TrainConfig, processes: Processes
    ) -> None:
        """Wrap a network for training.

        Args:
            model: with memory of its own.
            batches: what is learned.
            valid: what the network is judged by.
            config: how; its batches of a step can be dealt out evenly.
            processes: alone, or among others; all must have been given equal weights.
        """
        self.config, self.processes = config, processes
        self.batches, self.valid = batches, valid
        self.dtype = multiply_dtype(config.dtype, processes.device)
        self.accumulation = config.accumulation or processes.size
        self.model = model.to(torch.float64 if self.dtype == torch.float64 else torch.float32).train()
        if config.parallel == "data" or processes.size == 1:  # one that is shared out moves block by block as it is
            self.model.to(processes.device)  # wrapped: it may not fit one device
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
        """Learn from the next batches.

        Raises:
            DialogueError: loss or gradient are not finite; the weights are as they were before the step.
        """
        start, number = time.perf_counter(), self.progress.step + 1
        count, processes = self.accumulation, self.processes
        mine = range((number - 1) * count + processes.rank, number * count, processes.size)
        batches = [self.batches[n] for n in mine]
        weight, learned = processes.sums([sum(b.weight for b in batches), sum(b.learned for b in batches)])
        total = 0.0
        for n, batch in zip(mine, batches, strict=True):
            torch.manual_seed((self.config.seed * 1_000_003 + n) % (1 << 63))  # for dropout, whoever computes the batch
            with processes.adding_up(self.objective, last=n + processes.size >= number * count):
                loss = self._loss(batch)
                scaled = loss * (processes.size / weight)  # as the processes' gradients are averaged
                scaled.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        (loss_sum,) = processes.sums([total])
        parameters = list(self.model.parameters())
        norm = float(whole(torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)))
        if not (math.isfinite(loss_sum) and math.isfinite(norm)):
            raise _not_finite(number, f"the loss is {loss_sum / weight:.4g} and the length of its gradient {norm:.4g}")
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
        """The mean loss, in nats, over every learned token of the validation data; weights count.

        Raises:
            DialogueError: it is not finite.
        """
        assert self.valid is not None
        loss = self._judged(self.valid, range(self.valid.per_epoch))
        if not math.isfinite(loss):
            raise _not_finite(self.progress.step, f"the validation loss is {loss:.4g}")
        return loss

    def try_out(self) -> None:
        """Look at the next batches with weights that no loss has seen since they were moved, before they are saved.

        Raises:
            DialogueError: their loss is not finite.
        """
        first = self.progress.step * self.accumulation
        loss = self._judged(self.batches, range(first, first + self.processes.size))
        if not math.isfinite(loss):
            raise _not_finite(self.progress.step, f"it leads to a loss of {loss:.4g}")

    def _judged(self, batches: Batches, numbers: range) -> float:
        """The mean loss over some batches, without learning from them."""
        total = weight = 0.0
        self.model.eval()
        try:
            with torch.no_grad():
                # Sharded networks are gathered for each batch, so all processes must run equally many.
                for first in numbers[:: self.processes.size]:
                    mine = first + self.processes.rank
                    batch = batches[min(mine, numbers[-1])]
                    loss = float(self._loss(batch))
                    if mine in numbers:
                        total, weight = total + loss, weight + batch.weight
        finally:
            self.model.train()
            self.processes.put_back(self.objective)
        total, weight = self.processes.sums([total, weight])
        return total / weight

    def _loss(self, batch: Batch) -> Tensor:
        device = self.processes.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            loss: Tensor = self.objective(batch.ids.to(device), batch.labels.to(device), batch.weights.to(device))
        return loss

    def optimizer_state(self) -> dict[str, Tensor]:
        """What the optimizers remember of each weight: "0.blocks.0.mlp.up.weight.exp_avg" and so on, as `weights`."""
        return self._collected(
            (f"{n}.{name}.{key}", value)
            for n, optimizer in enumerate(self.optimizers)
            for name, parameter in self._learned()
            for key, value in optimizer.state.get(parameter, {}).items()
        )

    def weights(self) -> dict[str, Tensor]:
        """The network's weights, whole and on the CPU, for the first process; the others help and get nothing.

        The effect of adapters is in them.
        """
        return self._collected(merged_parameters(self.model))

    def adapter_weights(self) -> dict[str, Tensor]:
        """What is learned of a network with adapters; nothing of another."""
        return self._collected(self._learned()) if adapters(self.model) else {}

    def _learned(self) -> list[tuple[str, nn.Parameter]]:
        return [pair for pair in self.model.named_parameters() if pair[1].requires_grad]

    def _collected(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        collected = {}
        for name, tensor in tensors:
            gathered = whole(tensor)  # one at a time: all of a network that is shared out may not fit one device
            if self.processes.first:
                collected[name] = gathered.cpu()
        return collected

    def restore(self, weights: dict[str, Tensor], optimizer_state: dict[str, Tensor], progress: Progress) -> None:
        """Go back to a saved state. Weights are copied, as a mapped file's alignment would change the last bits.

        Args:
            weights: of everything that is learned, by name.
            optimizer_state: what the optimizers remember.
            progress: how far it was.

        Raises:
            ValueError: the state is not one of this network and these optimizers; nothing is changed.
        """
        parameters = dict(self._learned())
        self._check(weights, optimizer_state, parameters, progress)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(share(weights[name].to(parameter.dtype), parameter))
        for name, value in optimizer_state.items():
            n, rest = name.split(".", 1)
            owner, key = rest.rsplit(".", 1)
            parameter = parameters[owner]
            scalar = value.dim() == 0  # AdamW's count of steps, which stays on the CPU unless it is fused on a GPU
            kept = value.clone() if scalar else share(value.clone().to(parameter.device), parameter)
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
        f"step {step}: {what}; the run ends, and its last good checkpoint is kept. Try a lower --lr, a longer "
        f"--warmup-steps, or --dtype float32, in a new folder"
    )


STATE_KEYS: dict[type, tuple[str, ...]] = {torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"), Muon: ("momentum",)}


def recompute_blocks(model: GPT2) -> None:
    """Let each block forget its inside and compute it again on the way back: less memory, a third more time."""
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def multiply_dtype(name: str, device: torch.device) -> torch.dtype:
    """What to multiply in: the dtype of a name, or, for auto, bfloat16 where the device has instructions for it.

    Where it has not, torch computes the same products several times slower: 60 against 290 GFLOP/s on a processor with
    AVX-512 but without AVX512_BF16.
    """
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    probes = (getattr(torch.cpu, probe, None) for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    native = device.type == "cpu" and any(probe() for probe in probes if probe is not None)
    return torch.bfloat16 if native else torch.float32
