"""The network: GPT-2 in pure PyTorch. It knows tensors only; of this project it imports how settings are checked."""

from dialogpt.model.cache import CacheFull, KVCache, shared_prefix
from dialogpt.model.config import IGNORABLE, PRESETS, ConfigError, GPT2Config, unknown_keys
from dialogpt.model.gpt2 import GPT2

__all__ = [
    "GPT2",
    "IGNORABLE",
    "PRESETS",
    "CacheFull",
    "ConfigError",
    "GPT2Config",
    "KVCache",
    "shared_prefix",
    "unknown_keys",
]
