"""The dialogue system: text to token ids, dialogue to prompt, logits to reply, and a conversation that ties them.

The names below are loaded when they are first used (PEP 562): `dialogpt --help` must not wait a second for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dialogpt.chat import Chat
    from dialogpt.decoding.loop import Decoder, Step
    from dialogpt.decoding.speculative import Draft
    from dialogpt.errors import DialogueError
    from dialogpt.generation import Reply, generate, generate_batch
    from dialogpt.generation_config import GenerationConfig
    from dialogpt.history import History
    from dialogpt.ranking.dialogrpt import DialogRPT
    from dialogpt.ranking.mmi import MMI
    from dialogpt.ranking.scoring import Score
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
    "Decoder": "decoding.loop",
    "Step": "decoding.loop",
    "DialogueError": "errors",
    "Reply": "generation",
    "generate": "generation",
    "generate_batch": "generation",
    "GenerationConfig": "generation_config",
    "History": "history",
    "MMI": "ranking.mmi",
    "DialogRPT": "ranking.dialogrpt",
    "Score": "ranking.scoring",
    "Draft": "decoding.speculative",
    "StreamDecoder": "tokenizer",
    "Tokenizer": "tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
