"""The dialogue system: text to token ids, dialogue to prompt, logits to reply, and a conversation that ties them.

The names below are loaded when they are first used (PEP 562): `dialogpt --help` must not wait a second for torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dialogpt.chat import Chat
    from dialogpt.decoder import Decoder, Step
    from dialogpt.errors import DialogueError
    from dialogpt.generate import Reply, generate, generate_batch
    from dialogpt.generation_config import GenerationConfig
    from dialogpt.history import History
    from dialogpt.rerank import MMI, DialogRPT
    from dialogpt.score import Score
    from dialogpt.speculate import Draft
    from dialogpt.tokenizer import StreamDecoder, Tokenizer

__all__ = [
    "MMI",
    "Chat",
    "Decoder",
    "DialogRPT",
    "DialogueError",
    "Draft",
    "GenerationConfig",
    "History",
    "Reply",
    "Score",
    "Step",
    "StreamDecoder",
    "Tokenizer",
    "generate",
    "generate_batch",
]

_HOMES = {
    "Chat": "chat",
    "Decoder": "decoder",
    "Step": "decoder",
    "DialogueError": "errors",
    "Reply": "generate",
    "generate": "generate",
    "generate_batch": "generate",
    "GenerationConfig": "generation_config",
    "History": "history",
    "MMI": "rerank",
    "DialogRPT": "rerank",
    "Score": "score",
    "Draft": "speculate",
    "StreamDecoder": "tokenizer",
    "Tokenizer": "tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Keeps `dialogpt.generate` the function: importing the file of that name would put the module in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "generate" and isinstance(value, ModuleType):
            value = value.__dict__["generate"]
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
