"""Which configurations are taken, refused by name, or noticed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config as TheirConfig

from dialogpt.model import GPT2, PRESETS, ConfigError, GPT2Config, unknown_keys


def test_defaults_and_fields_are_those_of_transformers() -> None:
    ours, theirs = GPT2Config(), TheirConfig()
    for name in ours.__dataclass_fields__:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert GPT2Config.from_dict(theirs.to_dict()) == ours
    assert unknown_keys(theirs.to_dict()) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("activation_function", "tanh"),
        ("activation_function", ["gelu_new"]),
        ("scale_attn_weights", 1),
        ("tie_word_embeddings", "yes"),
        ("add_cross_attention", True),
        ("model_type", "llama"),
        ("pruned_heads", {"0": [1]}),
        ("quantization_config", {"bits": 4}),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        GPT2Config.from_dict({key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_layer", "12"),
        ("n_layer", 0),
        ("n_layer", True),
        ("n_embd", 768.0),
        ("vocab_size", -1),
        ("n_positions", None),
        ("n_inner", 0),
        ("layer_norm_epsilon", 0),
        ("layer_norm_epsilon", float("nan")),
        ("attn_pdrop", 1),
        ("eos_token_id", "50256"),
        ("eos_token_id", [1, -2]),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be .*got"):
        GPT2Config.from_dict({key: value})


def test_all_problems_come_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        GPT2Config.from_dict({"activation_function": "tanh", "n_head": 0, "n_embd": "x"})
    assert all(name in str(raised.value) for name in ("activation_function", "n_head", "n_embd"))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="n_embd must be a multiple of n_head, 3, got 10"):
        GPT2Config(n_embd=10, n_head=3)


def test_an_unknown_key_is_noticed() -> None:
    assert unknown_keys({"n_layer": 1, "dtype": "float16", "rope_theta": 1e4}) == ["rope_theta"]


@pytest.mark.parametrize(("name", "count"), [("small", 124_439_808), ("medium", 354_823_168), ("large", 774_030_080)])
def test_presets_are_the_published_sizes(name: str, count: int) -> None:
    with torch.device("meta"):
        network = GPT2(PRESETS[name])
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_a_fresh_network_is_drawn_as_gpt2_is() -> None:
    torch.manual_seed(0)
    network = GPT2(GPT2Config(vocab_size=500, n_positions=32, n_embd=64, n_layer=8, n_head=2))
    assert network.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert network.blocks[0].mlp.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for added in (network.blocks[0].mlp.down, network.blocks[0].attention.output):
        assert added.weight.std().item() == pytest.approx(0.005, rel=0.05)  # 0.02 / sqrt(2 * 8)
    assert all(not parameter.any() for name, parameter in network.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("acting", ["embd_pdrop", "attn_pdrop", "resid_pdrop"])
def test_dropout_acts_in_training_only(acting: str) -> None:
    rates = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0) | {acting: 0.5}
    network = GPT2(GPT2Config(vocab_size=50, n_positions=32, n_embd=64, n_layer=1, n_head=2, **rates))
    ids = torch.arange(20)[None]
    assert not torch.equal(network.train()(ids), network(ids))
    assert torch.equal(network.eval()(ids), network(ids))
