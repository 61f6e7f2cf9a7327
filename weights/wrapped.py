"""Take a network out of the module that a training program has put it in, whatever that calls it.

The wrappers that libraries leave, in `names.py`, are known by their names; a LightningModule has the network under any
name: ``network.transformer.wpe.weight`` beside ``accuracy.total``. The table of positions tells the prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from dialogpt.weights.names import PREFIX
from dialogpt.weights.published import bare_name

Tensor = TypeVar("Tensor")
OUTSIDE = "outside the network: of the module that it was trained in"
_POSITIONS = "wpe.weight"


def outer_prefix(names: Mapping[str, object]) -> str:
    """What stands before the names of the one network in a file; empty where that is nothing, or not one thing."""
    bare = [bare_name(name) for name in names]
    found = {name.removesuffix(_POSITIONS) for name in bare if name.endswith(f".{_POSITIONS}")}
    if len(found) != 1 or _POSITIONS in bare:
        return ""
    return found.pop().removesuffix(PREFIX)


def unwrapped(stored: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file's tensors without the prefix of their own, and the names of those outside the network with the reason."""
    prefix = outer_prefix(stored)
    if not prefix:
        return dict(stored), {}
    bare = {name: bare_name(name) for name in stored}
    inside = {name: short.removeprefix(prefix) for name, short in bare.items() if short.startswith(prefix)}
    if len(set(inside.values())) != len(inside):
        return dict(stored), {}  # reported where names are
    ignored = dict.fromkeys([name for name in stored if name not in inside], OUTSIDE)
    return {short: stored[name] for name, short in inside.items()}, ignored
