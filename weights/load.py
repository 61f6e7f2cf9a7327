"""From a checkpoint to a network that is ready to run, with the weights in memory once.

Finding and checking the checkpoint is left to `checkpoint.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dialogpt.model import GPT2
from dialogpt.model.precision import CPU_PRECISIONS, prepare
from dialogpt.weights.checkpoint import Checkpoint, Source, open_checkpoint
from dialogpt.weights.names import EMBEDDING
from dialogpt.weights.stored import DTYPES, PRECISIONS, CheckpointError


def load(
    source: Source, *, dtype: str = "float32", device: str | torch.device = "cpu", trainable: bool = False
) -> GPT2:
    """Build the network of a checkpoint, in evaluation mode.

    It is built without memory of its own, and takes the file's mapped tensors where dtype, device and orientation allow
    it; else each tensor is converted alone. On a CPU, in all but float64, its products are those of
    `model/precision/`: what they compute is float32, and their weights are packed, and no parameters.

    Args:
        source: see `open_checkpoint`.
        dtype: a name in `PRECISIONS`.
        device: where the weights go, as torch names it.
        trainable: whether all weights are to be parameters of the dtype, and the network is the plain one.

    Raises:
        CheckpointError: the source cannot be used, the dtype or device do not exist, or int8 and int4 are asked for
            where they cannot be.
    """
    if dtype not in PRECISIONS:
        raise CheckpointError(f"there is no dtype {dtype!r}; expected one of {', '.join(PRECISIONS)}")
    require_dtype(dtype, device)
    place = device_of(device)
    if dtype not in DTYPES and (place.type != "cpu" or trainable):
        use = "training" if trainable else place.type
        raise CheckpointError(f"{dtype} is for inference on a CPU; for {use} choose bfloat16 or float16")
    checkpoint = open_checkpoint(source)
    if not checkpoint.ours:
        refuse_damage(checkpoint)
    with torch.device("meta"):
        model = GPT2(checkpoint.config)
    packed: set[str] = set()
    if place.type == "cpu" and dtype in CPU_PRECISIONS and not trainable:
        try:
            packed = prepare(model, dtype, {name: stored.read for name, stored in checkpoint.tensors.items()})
        except ValueError as error:  # DIALOGPT_KERNELS asks for what cannot be
            raise CheckpointError(str(error)) from None
    target = torch.float32 if packed else DTYPES[dtype]
    state = {
        name: stored.read().to(place, target).contiguous()
        for name, stored in checkpoint.tensors.items()
        if name not in packed
    }
    model.load_state_dict(state, assign=True, strict=not packed)
    return model.requires_grad_(not packed).eval()


def load_ranking_head(
    source: Source, *, dtype: str = "float32", device: str | torch.device = "cpu", n_head: int | None = None
) -> Tensor:
    """The ranking head of a DialogRPT checkpoint, (1, C); the network below it is what `load` gives.

    A reply's score is ``sigmoid(hidden @ head.T)``, hidden being the state of its last token (golsun/DialogRPT,
    src/model.py, ``Scorer``).

    Args:
        source: see `open_checkpoint`.
        dtype: a name in `DTYPES`.
        device: where it goes, as torch names it.
        n_head: see `open_checkpoint`.

    Raises:
        CheckpointError: as `load`, or the checkpoint has no such head.
    """
    require_dtype(dtype, device)
    target, place = dtype_of(dtype), device_of(device)
    checkpoint = open_checkpoint(source, n_head=n_head)
    if checkpoint.ranking_head is None:
        raise CheckpointError(
            f"{checkpoint.path} has no ranking head (score.weight); expected a DialogRPT, such as "
            f"microsoft/DialogRPT-updown"
        )
    head = checkpoint.ranking_head.read()
    if count := count_non_finite(head):
        raise CheckpointError(f"{checkpoint.path}: the ranking head holds {count:,} values that are NaN or infinite")
    return head.to(place, target)  # (1, C)


def dtype_of(name: str) -> torch.dtype:
    """The dtype of a name in `DTYPES`; a sentence for any other."""
    if name not in DTYPES:
        raise CheckpointError(f"there is no dtype {name!r}; expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def require_dtype(dtype: str, device: str | torch.device) -> None:
    """Refuse float64 on a Mac's GPU, which has none; torch would say so in the middle of the first tensor.

    Raises:
        CheckpointError: as said.
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


def refuse_damage(checkpoint: Checkpoint) -> None:
    """Read a checkpoint from elsewhere once, and look at its values.

    Raises:
        CheckpointError: tensors hold NaN or infinity, or the file's own output head is not the token embedding; all of
            these are named.
    """
    problems = [
        f"{stored.name} holds {count:,} values that are NaN or infinite"
        for stored in checkpoint.stored.values()
        if (count := count_non_finite(stored.read()))
    ]
    problems += [
        f"{head.name} differs from the token embedding, and an output head of its own (tie_word_embeddings false) is "
        f"not implemented"
        for head in checkpoint.heads
        if not equal_values(head.read(), checkpoint.tensors[EMBEDDING].read())
    ]
    if problems:
        raise CheckpointError(f"{checkpoint.path} cannot be used: {'; '.join(problems)}. Fetch it again")


def equal_values(left: Tensor, right: Tensor) -> bool:
    """Whether all values are the same, in the dtype that holds both."""
    dtype = torch.promote_types(left.dtype, right.dtype)
    return torch.equal(left.to(dtype), right.to(dtype))


def count_non_finite(tensor: Tensor) -> int:
    """How many values of a tensor are NaN or infinite; one pass and no copy where there are none."""
    if tensor.numel() == 0 or all(map(math.isfinite, map(float, torch.aminmax(tensor)))):  # a NaN becomes both ends
        return 0
    return int((~torch.isfinite(tensor)).sum())
