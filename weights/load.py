"""From a checkpoint to a network that is ready to run, with the weights in memory once.

Finding and checking the checkpoint is left to `weights.checkpoint`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model import GPT2
from weights.checkpoint import Checkpoint, Source, open_checkpoint
from weights.files import DTYPES, CheckpointError, StoredTensor


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
    with torch.device("meta"):
        model = GPT2(checkpoint.config)
    read = read_checked if not checkpoint.ours else _read
    state = {name: read(checkpoint, name).to(place, target).contiguous() for name in checkpoint.tensors}
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
        torch.empty(0, device=device)
    except Exception as error:  # torch raises a different type for each backend that is not there
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"the device {str(name)!r} cannot be used here ({reason}); try cpu") from None
    return device


def read_checked(checkpoint: Checkpoint, name: str) -> Tensor:
    """Read one tensor of a checkpoint from elsewhere: it must be finite, and its own head must be the tied one.

    Raises:
        CheckpointError: the tensor holds NaN or infinity, or the file's output head is another than the embedding.
    """
    tensor = _read(checkpoint, name)
    refuse_non_finite(tensor, checkpoint.tensors[name])
    if name == "token_embedding.weight" and checkpoint.head is not None:
        head = checkpoint.head.read()
        if head.shape != tensor.shape or not torch.equal(head, tensor):
            raise CheckpointError(
                f"{checkpoint.path}: {checkpoint.head.name} differs from the token embedding; an output head of its "
                f"own (tie_word_embeddings false) is not implemented"
            )
    return tensor


def refuse_non_finite(tensor: Tensor, stored: StoredTensor) -> None:
    """Raise for NaN and infinity, with their number; one pass and no copy where all is well."""
    lowest, highest = torch.aminmax(tensor)  # a NaN anywhere becomes both
    if not (torch.isfinite(lowest) and torch.isfinite(highest)):
        count = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(
            f"tensor {stored.name} holds {count:,} values that are NaN or infinite (as {str(tensor.dtype)[6:]}); "
            f"such a network cannot talk: fetch it again, or convert to a wider dtype"
        )


def _read(checkpoint: Checkpoint, name: str) -> Tensor:
    return checkpoint.tensors[name].read()


def count_non_finite(checkpoint: Checkpoint, name: str) -> int:
    """How many values of a tensor are NaN or infinite."""
    return int((~torch.isfinite(_read(checkpoint, name))).sum())
