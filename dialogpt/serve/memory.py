"""Copy a served network into memory, so that it no longer depends on the checkpoint's file."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dialogpt.model import GPT2


@torch.inference_mode(False)
def copy_weights(model: GPT2) -> None:
    """Copy all weights that are mapped from a file into memory.

    A mapped file that another program overwrites in place (`cp NEW OLD`, `rsync --inplace`) ends every process that
    reads it with SIGBUS, or changes its weights. Most weights are packed, and so copied, when they are first used, and
    biases when they are loaded; this copies the others: embeddings, norms, and what a kernel has left as it was. Forked
    processes share the copy.

    Args:
        model: a network on the CPU with packed weights.
    """
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.device.type == "cpu":
                setattr(module, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
        for owner in (module, getattr(module, "kernel", None)):
            for name, value in list(getattr(owner, "__dict__", {}).items()):
                if isinstance(value, Tensor) and value.device.type == "cpu" and value.layout == torch.strided:
                    setattr(owner, name, value.clone())
        vars(module).pop("one_row", None)  # `PackedBlock` looks its norms up again
