"""One training process among several, as `torchrun` starts them, or alone.

What differs between one process and many is here: who one is, how sums are taken, and how the network is wrapped. Data
parallel training keeps a copy of the network in each process (torch's DistributedDataParallel); fully sharded training
gives each a share of every weight (torch's FSDP2, `fully_shard`), for networks that outgrow one device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from dialogpt.errors import DialogueError
from dialogpt.train.objective import Objective
from dialogpt.weights.load import device_of

LONGEST_WAIT = timedelta(days=7)  # for the first process, which may be preparing terabytes; torch's is 10 or 30 minutes


class Processes:
    """All processes of a run, seen from one of them.

    Attributes:
        rank: number of this one, from 0.
        size: how many there are.
        device: where this one computes.
    """

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank, size, device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks to the person."""
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Add numbers up over all processes, each for itself, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        summed: list[float] = total.tolist()
        return summed

    def by_first(self, action: Callable[[], object]) -> None:
        """Let the first process do something, and the others wait for it; its error ends all of them.

        Raises:
            DialogueError: in the others, the first has failed. In the first, whatever its action raises.
        """
        error: BaseException | None = None
        if self.first:
            try:
                action()
            except (ValueError, OSError, KeyboardInterrupt) as caught:
                error = caught
        if self.sums([float(error is not None)])[0]:
            raise error or DialogueError("the first process has stopped; its message says why")

    def wrap(self, objective: Objective, parallel: str) -> nn.Module:
        """The objective as it is to be called: itself, data parallel, or sharded."""
        if self.size == 1:
            return objective
        if parallel == "fsdp":
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(self.device.type, (self.size,))
            for block in objective.model.blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(objective, mesh=mesh)
            return objective
        devices = None if self.device.type == "cpu" else [self.device]
        return nn.parallel.DistributedDataParallel(objective, device_ids=devices)

    def put_back(self, wrapped: nn.Module) -> None:
        """Give up what was gathered of a sharded network to be judged, so that its weights are shares again."""
        for module in wrapped.modules():
            if hasattr(module, "reshard"):
                sharded: Any = module
                sharded.reshard()

    @contextmanager
    def adding_up(self, wrapped: nn.Module, last: bool) -> Iterator[None]:
        """Leave gradients of a step's batches in each process until the last of them."""
        if isinstance(wrapped, nn.parallel.DistributedDataParallel) and not last:
            with wrapped.no_sync():
                yield
            return
        if hasattr(wrapped, "set_requires_gradient_sync"):
            sharded: Any = wrapped
            sharded.set_requires_gradient_sync(last)
        yield


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the processes that `torchrun` started, or be the only one.

    Args:
        device: as torch names it; with several processes on GPUs, each takes its own.

    Raises:
        CheckpointError: the device cannot be used.
        DialogueError: the environment is not torchrun's, or the processes do not find each other.
    """
    place = {name: os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    if place["WORLD_SIZE"] in ("", "1"):
        yield Processes(0, 1, device_of(device))
        return
    if not all(number.isdecimal() for number in place.values()):
        raise DialogueError(
            f"the environment holds {place}; start several processes with torchrun, or unset WORLD_SIZE"
        )
    chosen = device_of(f"cuda:{place['LOCAL_RANK']}" if device == "cuda" else device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    try:
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, timeout=LONGEST_WAIT)
    except Exception as error:  # each way of not finding each other has a type of its own
        reason = str(error).splitlines()[0]
        raise DialogueError(f"the processes do not find each other ({reason}); start them with torchrun") from None
    try:
        yield Processes(int(place["RANK"]), int(place["WORLD_SIZE"]), chosen)
    finally:
        torch.distributed.destroy_process_group()


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may have a share, as one; all processes must ask for it."""
    gather: Any = getattr(tensor, "full_tensor", None)
    gathered: Tensor = tensor.detach() if gather is None else gather().detach()
    return gathered


def share(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, laid out as another one is."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    layout: Any = like
    shared: Tensor = distribute_tensor(tensor.to(like.device), layout.device_mesh, layout.placements)
    return shared
