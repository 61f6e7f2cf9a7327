"""Find the weights in what training saves: a state_dict, or one beside an optimizer, counters and hyper-parameters.

Lightning keeps it under "state_dict", DeepSpeed under "module", nanoGPT and many scripts under "model". What lies
beside it is ignored, whatever it is, so that neither the choice nor a message depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dialogpt.weights.formats.tensors import CheckpointError

USUAL = ("state_dict", "model_state_dict", "module", "model", "network", "net", "weights")  # the first that is there
MAX_DEPTH = 3  # of dictionaries in dictionaries
MAX_LISTED = 20  # keys beside the weights that are reported
SETTINGS = "model_args"  # nanoGPT's config
_EXTRA = "_extra_state"  # how torch ends the name of what a module saves beside its tensors
_NOT_WEIGHTS = "not weights, but other state of the training run"


@dataclass(frozen=True)
class State:
    """The weights' dictionary, what else there is with the reason, and nanoGPT's config."""

    tensors: dict[str, Any]
    ignored: dict[str, str]
    settings: dict[str, Any]


def find_state(path: Path, content: Mapping[Any, Any], tensor: type) -> State:
    """Choose the dictionary from names to tensors in the content of a pickle.

    Args:
        path: for messages.
        content: what the pickle describes.
        tensor: the type of a described tensor.

    Raises:
        CheckpointError: there is none, or there are several and none has a usual name.
    """
    tensors = sum(isinstance(value, tensor) for value in content.values())  # one may be a loss, as nanoGPT's is
    if tensors * 2 > len(content) or not any(isinstance(value, dict) and value for value in content.values()):
        return State(_flat(path, content, tensor), {}, {})
    found = _search(content, tensor)
    if not found:
        raise CheckpointError(
            f"{path} does not hold a dictionary from names to tensors, as a saved state_dict does, nor has it one "
            f"{MAX_DEPTH} levels down; save the state_dict alone"
        )
    usual = [name for key in USUAL for name in found if name[-1] == key]
    if not usual and len(found) > 1:
        names = ", ".join(repr(".".join(name)) for name in list(found)[:4])
        raise CheckpointError(
            f"{path} holds several dictionaries of tensors ({names}); save the one that is meant alone"
        )
    chosen = (usual or list(found))[0]
    beside = [str(key)[:80] for key in content if key != chosen[0]]
    settings = content.get(SETTINGS)
    return State(
        _flat(path, found[chosen], tensor),
        dict.fromkeys(beside[:MAX_LISTED], _NOT_WEIGHTS),
        {str(key): value for key, value in settings.items()} if isinstance(settings, dict) else {},
    )


def _flat(path: Path, state: Mapping[Any, Any], tensor: type) -> dict[str, Any]:
    """Check that names lead to tensors; what is foreign among them is left for the reader to refuse."""
    kept: dict[str, Any] = {}
    for name, value in state.items():
        if not isinstance(name, str) or not (isinstance(value, tensor) or _is_foreign(value)):
            if isinstance(name, str) and name.endswith(_EXTRA):
                continue
            problem = f"{name[:80]!r} is none" if isinstance(name, str) else "a key is no name"
            raise CheckpointError(
                f"{path} does not hold a dictionary from names to tensors, as a saved state_dict does: {problem}; save "
                f"the state_dict alone"
            )
        kept[name] = value
    return kept


def _is_foreign(value: Any) -> bool:
    """Whether a value is an object of the reader's, and no plain number, text or collection."""
    return not isinstance(value, (str, bytes, int, float, list, tuple, dict, type(None)))


def _search(content: Mapping[Any, Any], tensor: type) -> dict[tuple[str, ...], dict[Any, Any]]:
    """All dictionaries of tensors below the top, by the keys that lead to them; breadth first, each once."""
    found: dict[tuple[str, ...], dict[Any, Any]] = {}
    level: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), content)]
    seen = {id(content)}
    for _ in range(MAX_DEPTH):
        below: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = []
        for keys, parent in level:
            for key, value in parent.items():
                if not isinstance(key, str) or not isinstance(value, dict) or id(value) in seen:
                    continue
                seen.add(id(value))
                name = (*keys, key)
                if sum(isinstance(each, tensor) for each in value.values()) * 2 > len(value):
                    found[name] = value
                else:
                    below.append((name, value))
        level = below
    return found
