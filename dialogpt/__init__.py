"""The dialogue system: text to token ids, dialogue to prompt, logits to reply, and a conversation that ties them.

The names below are loaded when they are first used (PEP 562): `dialogpt --help` must not wait a second for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str

    from dialogpt.chat import Chat
    from dialogpt.decoding.loop import Decoder
    from dialogpt.decoding.speculative import Draft
    from dialogpt.decoding.step import Step
    from dialogpt.errors import DialogueError
    from dialogpt.generation import Reply, generate, generate_batch
    from dialogpt.generation_config import GenerationConfig
    from dialogpt.history import History
    from dialogpt.ranking.dialogrpt import DialogRPT
    from dialogpt.ranking.mmi import MMI
    from dialogpt.ranking.scoring import Score
    from dialogpt.text.stream_decoder import StreamDecoder
    from dialogpt.tokenizer import Tokenizer

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
    "Step": "decoding.step",
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
    "StreamDecoder": "text.stream_decoder",
    "Tokenizer": "tokenizer",
}


def __getattr__(name: str) -> Any:
    value: Any
    if name == "__version__":
        value = _installed_version()
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def _installed_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("dialogpt")
    except PackageNotFoundError:
        return "(not installed)"
