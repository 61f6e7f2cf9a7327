"""One training process among several, as `torchrun` starts them, or alone.

Everything that depends on the number of processes is here: ranks, sums over processes, and how the network is wrapped.
Data parallel training keeps a copy of the network in each process (torch's DistributedDataParallel). Fully sharded
training stores a shard of every weight in each (torch's FSDP2, `fully_shard`), for networks that outgrow one device.
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

COLLECTIVE_TIMEOUT = timedelta(days=7)  # rank 0 may be preparing terabytes of data; torch's default is 10 to 30 minutes


class Processes:
    """All processes of a run, seen from one of them.

    Attributes:
        rank: the index of this process.
        size: the number of processes.
        device: the device that this process computes on.
    """

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank, size, device

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes files and reports to the user."""
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Sum each value over all processes, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        summed: list[float] = total.tolist()
        return summed

    def on_rank_0(self, action: Callable[[], object]) -> None:
        """Run an action on rank 0 while the other ranks wait; an error there ends all of them.

        Raises:
            DialogueError: on the other ranks, if rank 0 failed. Rank 0 raises what its action raised.
        """
        error: BaseException | None = None
        if self.first:
            try:
                action()
            except (ValueError, OSError, KeyboardInterrupt) as caught:
                error = caught
        if self.sums([float(error is not None)])[0]:
            raise error or DialogueError("rank 0 failed; see its error message")

    def wrap(self, objective: Objective, parallel: str) -> nn.Module:
        """Wrap the objective for data parallel or sharded training; return it unchanged for a single process."""
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

    def reshard(self, wrapped: nn.Module) -> None:
        """Shard a network again whose weights were gathered for evaluation."""
        for module in wrapped.modules():
            if hasattr(module, "reshard"):
                sharded: Any = module
                sharded.reshard()

    @contextmanager
    def accumulating(self, wrapped: nn.Module, last: bool) -> Iterator[None]:
        """Accumulate gradients locally; synchronize them over processes with the last batch of a step only."""
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
    """Join the process group that `torchrun` started; without torchrun there is a single process.

    Args:
        device: a device name of torch; with "cuda" and several processes, each uses the GPU of its local rank.

    Raises:
        CheckpointError: the device cannot be used.
        DialogueError: torchrun's environment variables are incomplete, or the processes cannot connect.
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
        torch.distributed.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    except Exception as error:  # every kind of failed rendezvous has its own type
        reason = str(error).splitlines()[0]
        raise DialogueError(
            f"the processes cannot connect to each other ({reason}); start them with torchrun"
        ) from None
    try:
        yield Processes(int(place["RANK"]), int(place["WORLD_SIZE"]), chosen)
    finally:
        torch.distributed.destroy_process_group()


def gather(tensor: Tensor) -> Tensor:
    """Gather a tensor that may be sharded; all processes must call this."""
    full: Any = getattr(tensor, "full_tensor", None)  # a method of sharded tensors only
    gathered: Tensor = tensor.detach() if full is None else full().detach()
    return gathered


def shard(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a full tensor as `like` is sharded; return it unchanged if `like` is not."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    layout: Any = like
    sharded: Tensor = distribute_tensor(tensor.to(like.device), layout.device_mesh, layout.placements)
    return sharded
