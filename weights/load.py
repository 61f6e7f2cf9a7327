"""From a checkpoint to a network that is ready to run, with the weights in memory once.

Finding and checking the checkpoint is left to `weights.checkpoint`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model import GPT2
from weights.checkpoint import Checkpoint, Source, open_checkpoint
from weights.files import DTYPES, CheckpointError
from weights.names import EMBEDDING


def load(source: Source, *, dtype: str = "float32", device: str | torch.device = "cpu") -> GPT2:
    """Build the network of a checkpoint, in evaluation mode.

    The network is built without memory of its own, and takes the file's mapped tensors where dtype, device and
    orientation allow it; else each tensor is converted alone.

    Args:
        source: see `open_checkpoint`.
        dtype: a name in `DTYPES`.
        device: where the weights go, as torch names it.

    Raises:
        CheckpointError: the source cannot be used, or the dtype or device do not exist.
    """
    target = dtype_of(dtype)
    place = device_of(device)
    checkpoint = open_checkpoint(source)
    if not checkpoint.ours:
        refuse_damage(checkpoint)
    with torch.device("meta"):
        model = GPT2(checkpoint.config)
    state = {name: stored.read().to(place, target).contiguous() for name, stored in checkpoint.tensors.items()}
    model.load_state_dict(state, assign=True)
    return model.eval()


def dtype_of(name: str) -> torch.dtype:
    """The dtype of a name in `DTYPES`; a sentence for any other."""
    if name not in DTYPES:
        raise CheckpointError(f"there is no dtype {name!r}; expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def device_of(name: str | torch.device) -> torch.device:
    """The device of a name, tried out; a sentence where this machine or this torch has none such."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except Exception as error:  # torch raises a different type for each backend that is not there
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"the device {str(name)!r} cannot be used here ({reason}); try cpu") from None
    return device


def refuse_damage(checkpoint: Checkpoint) -> None:
    """Read a checkpoint from elsewhere once, and look at its values.

    Raises:
        CheckpointError: tensors hold NaN or infinity, or the file's own output head is not the token embedding; all of
            these are named.
    """
    problems = [
        f"{stored.name} holds {count:,} values that are NaN or infinite"
        for stored in checkpoint.tensors.values()
        if (count := count_non_finite(stored.read()))
    ]
    if checkpoint.head is not None and not torch.equal(checkpoint.head.read(), checkpoint.tensors[EMBEDDING].read()):
        problems.append(
            f"{checkpoint.head.name} differs from the token embedding, and an output head of its own "
            f"(tie_word_embeddings false) is not implemented"
        )
    if problems:
        raise CheckpointError(f"{checkpoint.path} cannot be used: {'; '.join(problems)}. Fetch it again")


def count_non_finite(tensor: Tensor) -> int:
    """How many values of a tensor are NaN or infinite; one pass and no copy where there are none."""
    if tensor.numel() == 0 or all(map(math.isfinite, map(float, torch.aminmax(tensor)))):  # a NaN becomes both ends
        return 0
    return int((~torch.isfinite(tensor)).sum())
