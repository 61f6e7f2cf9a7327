"""The sizes of a GPT-2, and which published settings this network implements.

Field names and meanings are those of ``transformers.GPT2Config``. A setting that would change the result and is not
implemented is refused by name; a setting that cannot change it is in `IGNORABLE`. Reading a file is left to `weights`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dialogpt.errors import Problem, SettingsError
from dialogpt.settings import SWITCH, Kind, choice, integer, is_ids, is_integer, number, problems_of


class ConfigError(SettingsError):
    """A configuration that this network cannot run; the message names every problem found."""


@dataclass(frozen=True, kw_only=True)
class GPT2Config:
    """The sizes of one GPT-2; the defaults are GPT-2 small's.

    Raises:
        ConfigError: a value has the wrong type or range; all of them are named.
    """

    vocab_size: int = 50257  # 256 bytes + 50,000 merges + <|endoftext|>
    n_positions: int = 1024  # the longest sequence: rows of the position table
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None  # width of the MLP; None is 4 * n_embd
    layer_norm_epsilon: float = 1e-5
    embd_pdrop: float = 0.1  # the three dropout rates act in training only
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    activation_function: str = "gelu_new"  # of the MLP; one of `ACTIVATIONS`
    scale_attn_weights: bool = True  # whether scores are divided by sqrt(head_dim)
    scale_attn_by_inverse_layer_idx: bool = False  # whether they are also divided by the layer's number, from 1
    reorder_and_upcast_attn: bool = False  # scores in float32: torch's attention computes them so in every dtype
    tie_word_embeddings: bool = True  # whether the output head is the token embedding
    eos_token_id: int | tuple[int, ...] | None = 50256  # the network does not use it; it travels with the sizes

    def __post_init__(self) -> None:
        problems = problems_of(self, _KINDS)
        if not problems and self.n_embd % self.n_head:
            problems.append(Problem("n_embd", self.n_embd, f"a multiple of {{n_head}}, {self.n_head}"))
        if problems:
            raise ConfigError(problems)

    @property
    def head_dim(self) -> int:
        """Width of one attention head (64 in every published GPT-2)."""
        return self.n_embd // self.n_head

    @property
    def inner_dim(self) -> int:
        """Width of the MLP's hidden layer."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GPT2Config:
        """Build a config from the content of a published ``config.json``.

        Args:
            values: keys as `transformers` writes them; missing ones take its defaults.

        Raises:
            ConfigError: a value is invalid, or asks for something that is not implemented; all of them are named.
        """
        problems = [
            Problem(key, values[key], f"{' or '.join(map(repr, accepted))} (nothing else is implemented)")
            for key, accepted in FIXED.items()
            if key in values and not any(values[key] == a and type(values[key]) is type(a) for a in accepted)
        ]
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        for alias, name in ALIASES.items():
            if alias in values and known.setdefault(name, values[alias]) != values[alias]:
                problems.append(Problem(alias, values[alias], f"{known[name]!r} like {name}, its other name"))
        if "n_ctx" in values:  # the older name; the newer one overrides it
            known.setdefault("n_positions", values["n_ctx"])
        if isinstance(known.get("eos_token_id"), list):
            known["eos_token_id"] = tuple(known["eos_token_id"])
        try:
            config = cls(**known)
        except ConfigError as error:
            raise ConfigError([*problems, *error.problems]) from None
        if problems:
            raise ConfigError(problems)
        return config


def unknown_keys(values: Mapping[str, Any]) -> list[str]:
    """Keys of a ``config.json`` that are neither used, nor fixed, nor known to be without effect."""
    used = {field.name for field in fields(GPT2Config)}
    return sorted(key for key in values if not any(key in known for known in (used, ALIASES, FIXED, IGNORABLE)))


ALIASES = {  # other models' names for the sizes, which transformers takes too
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}

TANH_GELUS = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")  # three spellings of one formula, equal to 1e-10
ACTIVATIONS = (*TANH_GELUS, "gelu", "relu", "silu", "swish")

# Settings that would change the result: key -> the values that this network computes.
FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}

# Settings that cannot change the network's result: labels, notes about the file, and settings of generation, which old
# files hold; transformers 5 and `GenerationConfig` read those from generation_config.json only.
# fmt: off
IGNORABLE = frozenset({
    "_name_or_path", "_num_labels", "architectures", "bos_token_id", "pad_token_id", "sep_token_id",
    "transformers_version", "torch_dtype", "dtype", "n_ctx", "use_cache", "initializer_range",
    "gradient_checkpointing", "chunk_size_feed_forward", "problem_type", "id2label", "label2id", "num_labels",
    "finetuning_task", "task_specific_params", "predict_special_tokens", "summary_activation",
    "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj", "output_attentions",
    "output_hidden_states", "output_past", "output_scores", "return_dict", "return_dict_in_generate", "torchscript",
    "use_bfloat16", "is_decoder", "attn_implementation", "_attn_implementation", "_attn_implementation_autoset",
    "decoder_start_token_id", "tokenizer_class", "prefix", "max_length", "min_length", "do_sample",
    "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p",
    "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "bad_words_ids", "num_return_sequences", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "suppress_tokens", "begin_suppress_tokens", "exponential_decay_length_penalty", "cross_attention_hidden_size",
    "tf_legacy_loss",
})
# fmt: on


_SWITCHES = (
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "reorder_and_upcast_attn",
    "tie_word_embeddings",
)
_SIZE = integer(1, (1 << 31) - 1)
_RATE = number(minimum=0, below=1)
_IDS = Kind(lambda value: value is None or is_integer(value) or is_ids(value), "a token id, several, or null", str)
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"), _SIZE),
    "layer_norm_epsilon": number(above=0),
    **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), _RATE),
    "activation_function": choice(*ACTIVATIONS),
    **dict.fromkeys(_SWITCHES, SWITCH),
    "eos_token_id": _IDS,
}

PRESETS = {
    # The size of weights/tiny, with the first merges of GPT-2's vocabulary.
    "tiny": GPT2Config(
        vocab_size=8192, n_positions=512, n_embd=256, n_layer=6, n_head=4, attn_pdrop=0.0, eos_token_id=8191
    ),
    # The published sizes, microsoft/DialoGPT-{small,medium,large}.
    "small": GPT2Config(n_embd=768, n_layer=12, n_head=12),
    "medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
}
