"""Build the network of an open checkpoint, with the weights in memory once.

Opening one is left to `sources.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from dialogpt.model import GPT2
from dialogpt.model.precision import CPU_PRECISIONS, prepare
from dialogpt.weights.checkpoint import Checkpoint
from dialogpt.weights.formats import DTYPES, PRECISIONS, CheckpointError, Progress, find_damage, non_finite, refuse
from dialogpt.weights.published import CLASSIFIER

Item = TypeVar("Item")


def build_network(
    checkpoint: Checkpoint,
    *,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    trainable: bool = False,
    progress: Progress | None = None,
) -> GPT2:
    """Build the network of a checkpoint, in evaluation mode.

    It is built without memory of its own, and takes the file's mapped tensors where dtype, device and orientation allow
    it; else each tensor is converted alone. On a CPU, in all but float64, its products are those of
    `model/precision/`: what they compute is float32, and their weights are packed, and no parameters.

    Args:
        checkpoint: where its weights are.
        dtype: a name in `PRECISIONS`.
        device: where the weights go, as torch names it.
        trainable: whether all weights are to be parameters of the dtype, and the network is the plain one.
        progress: called before each tensor that is checked or converted.

    Raises:
        CheckpointError: the weights are damaged, the dtype or device do not exist, or int8 and int4 are asked for
            where they cannot be.
    """
    if dtype not in PRECISIONS:
        raise CheckpointError(f"there is no dtype {dtype!r}; expected one of {', '.join(PRECISIONS)}")
    require_dtype(dtype, device)
    target_device = device_of(device)
    if dtype not in DTYPES and (target_device.type != "cpu" or trainable):
        use = "training" if trainable else target_device.type
        raise CheckpointError(f"{dtype} is for inference on a CPU; for {use} choose bfloat16 or float16")
    if not checkpoint.ours:
        refuse(checkpoint.path, find_damage(_counted(checkpoint.stored.values(), progress)))
    with torch.device("meta"):
        model = GPT2(checkpoint.config)
    packed: set[str] = set()
    if target_device.type == "cpu" and dtype in CPU_PRECISIONS and not trainable:
        try:
            packed = prepare(model, dtype, {name: stored.read for name, stored in checkpoint.tensors.items()})
        except ValueError as error:  # DIALOGPT_KERNELS asks for what cannot be
            raise CheckpointError(str(error)) from None
    target = torch.float32 if packed else DTYPES[dtype]
    loose = [(name, stored) for name, stored in checkpoint.tensors.items() if name not in packed]
    state = {name: stored.read().to(target_device, target).contiguous() for name, stored in _counted(loose, progress)}
    model.load_state_dict(state, assign=True, strict=not packed)
    return model.requires_grad_(not packed).eval()


def _counted(items: Collection[Item], progress: Progress | None) -> Iterator[Item]:
    """The items, each announced."""
    for done, item in enumerate(items):
        if progress is not None:
            progress(done, len(items))
        yield item


def read_ranking_head(checkpoint: Checkpoint, *, dtype: str = "float32", device: str | torch.device = "cpu") -> Tensor:
    """The ranking head of a DialogRPT checkpoint, (1, C); the network below it is what `build_network` gives.

    A reply's score is ``sigmoid(hidden @ head.T)``, hidden being the state of its last token (golsun/DialogRPT,
    src/model.py, ``Scorer``).

    Args:
        checkpoint: where it is.
        dtype: a name in `DTYPES`.
        device: where it goes, as torch names it.

    Raises:
        CheckpointError: as `build_network`, or the checkpoint has no such head.
    """
    require_dtype(dtype, device)
    target, target_device = dtype_of(dtype), device_of(device)
    if checkpoint.ranking_head is None and CLASSIFIER in checkpoint.ignored.values():
        raise CheckpointError(
            f"{checkpoint.path} has no ranking head: its score.weight is a classifier of several labels, and which of "
            f"them ranks replies is not known; expected one label, as a DialogRPT has"
        )
    if checkpoint.ranking_head is None:
        raise CheckpointError(
            f"{checkpoint.path} has no ranking head (score.weight); expected a DialogRPT, such as "
            f"microsoft/DialogRPT-updown"
        )
    head = checkpoint.ranking_head.read()
    refuse(checkpoint.path, non_finite(checkpoint.ranking_head, head))
    return head.to(target_device, target)  # (1, C)


def dtype_of(name: str) -> torch.dtype:
    """The dtype of a name in `DTYPES`; a sentence for any other."""
    if name not in DTYPES:
        raise CheckpointError(f"there is no dtype {name!r}; expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def require_dtype(dtype: str, device: str | torch.device) -> None:
    """Refuse float64 on a Mac's GPU, which has none; torch would report it only in the middle of the first tensor.

    Raises:
        CheckpointError: it is such a GPU.
    """
    if dtype == "float64" and str(device).partition(":")[0] == "mps":
        raise CheckpointError("the dtype float64 does not exist on the device mps; choose float32, or the device cpu")


def device_of(name: str | torch.device) -> torch.device:
    """The device of a name, tried out; a sentence where this machine or this torch has none such."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except Exception as error:  # torch raises a different type for each backend that is not there
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"the device {str(name)!r} cannot be used here ({reason}); try cpu") from None
    return device
