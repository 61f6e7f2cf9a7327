"""The network against transformers: all parameters random, float64, 1e-9 of the largest logit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dialogpt.model.gpt2
from dialogpt.cli.verify import layer_differences, relative_difference
from dialogpt.model import GPT2, KVCache
from dialogpt.weights import load, names
from tests.helpers import pair, random_model, seeded, their_model

TOLERANCE = 1e-9  # float64 rounding reaches 1e-14 here; the smallest fault below is above 1e-6

CONFIGS: list[dict[str, Any]] = [
    {"n_embd": 24, "n_head": 3, "n_layer": 2},
    {"n_embd": 30, "n_head": 5, "n_layer": 3, "vocab_size": 101, "n_positions": 33},
    {"n_embd": 7, "n_head": 1, "n_layer": 1, "vocab_size": 13, "n_positions": 7},
    {"n_embd": 7, "n_head": 7, "n_layer": 4, "vocab_size": 257, "n_positions": 19},  # heads one wide
    {"n_embd": 33, "n_head": 3, "n_layer": 2, "vocab_size": 1009, "n_positions": 64},
    {"n_embd": 64, "n_head": 1, "n_layer": 2, "n_positions": 40},
    {"n_embd": 128, "n_head": 2, "n_layer": 2, "n_positions": 128},  # the published head width, 64
    {"n_embd": 24, "n_head": 2, "n_layer": 1, "n_inner": 5},
    {"n_embd": 26, "n_head": 2, "n_layer": 3, "n_inner": 200, "n_positions": 50},
    {"n_embd": 16, "n_head": 4, "n_layer": 2, "layer_norm_epsilon": 0.3},
    {"n_embd": 18, "n_head": 6, "n_layer": 2, "n_positions": 1024, "vocab_size": 61},
    {"n_embd": 40, "n_head": 8, "n_layer": 4, "vocab_size": 2, "n_positions": 11},
    {"n_embd": 12, "n_head": 2, "n_layer": 2, "activation_function": "gelu_pytorch_tanh"},
]


@pytest.mark.parametrize("sizes", CONFIGS, ids=lambda sizes: "-".join(map(str, sizes.values())))
def test_logits_equal_transformers(tmp_path: Path, sizes: dict[str, Any]) -> None:
    ours, theirs = pair(tmp_path, **sizes)
    T = ours.config.n_positions
    ids = torch.randint(0, ours.config.vocab_size, (2, T), generator=seeded())
    with torch.no_grad():
        differences = layer_differences(ours, theirs, ids)
    worst = [(name, difference) for name, difference in differences if not difference <= TOLERANCE]
    assert not worst, f"first layer that differs: {worst[0]}"


@pytest.fixture(scope="module")
def prompt() -> tuple[GPT2, Tensor, Tensor]:
    """A network, 24 ids of two rows, and their logits computed at once."""
    network = random_model()
    ids = torch.randint(0, 97, (2, 24), generator=seeded(1))
    with torch.no_grad():
        return network, ids, network(ids)


def read_in_pieces(network: GPT2, ids: Tensor, cuts: list[int]) -> Tensor:
    cache = KVCache.for_model(network, rows=ids.size(0))
    with torch.no_grad():
        parts = [network(ids[:, start:end], cache) for start, end in pairwise([0, *cuts, ids.size(1)])]
    assert cache.ids == ids.tolist()
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("cut", range(1, 24))
def test_cached_equals_uncached_for_every_split(prompt: tuple[GPT2, Tensor, Tensor], cut: int) -> None:
    network, ids, whole = prompt
    assert relative_difference(read_in_pieces(network, ids, [cut]), whole) <= TOLERANCE


@pytest.mark.parametrize("cuts", [list(range(1, 24)), [5, 10, 15, 20], [1, 23], [8, 9, 20, 21]], ids=str)
def test_cached_equals_uncached_in_many_pieces(prompt: tuple[GPT2, Tensor, Tensor], cuts: list[int]) -> None:
    network, ids, whole = prompt
    assert relative_difference(read_in_pieces(network, ids, cuts), whole) <= TOLERANCE


def test_a_ragged_batch_equals_its_rows_alone() -> None:
    """Three passes in which rows read different numbers of tokens, none of them in one, up to the last position."""
    network = random_model(n_positions=20)
    passes = [(7, 3, 1), (1, 1, 1), (6, 0, 12), (2, 16, 3), (4, 0, 3)]
    rows = [torch.randint(0, 97, (20,), generator=seeded(row)) for row in range(3)]
    cache = KVCache.for_model(network, rows=3)
    got: list[list[Tensor]] = [[], [], []]
    with torch.no_grad():
        for lengths in passes:
            starts = cache.lengths.tolist()
            T = max(lengths) + 1  # one column of padding for every row
            ids = torch.full((3, T), 50)
            for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
                ids[row, :length] = rows[row][start : start + length]
            out = network(ids, cache, torch.tensor(lengths))
            for row, length in enumerate(lengths):
                got[row].append(out[row, :length])
        assert cache.lengths.tolist() == [20, 20, 20]
        for row in range(3):
            alone = network(rows[row][None])[0]
            assert relative_difference(torch.cat(got[row]), alone) <= TOLERANCE


def test_ragged_rows_need_no_cache() -> None:
    network = random_model()
    ids = torch.randint(0, 97, (2, 9), generator=seeded())
    with torch.no_grad():
        both = network(ids, lengths=torch.tensor([9, 4]))
        assert relative_difference(both[1, :4], network(ids[1:, :4])[0]) <= TOLERANCE


def test_gradients_equal_transformers(tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path)
    ids = torch.randint(0, 97, (2, 12), generator=seeded())
    ours(ids).square().sum().backward()
    theirs(ids).logits.square().sum().backward()
    left, right = ours.position_embedding.weight.grad, theirs.transformer.wpe.weight.grad
    assert left is not None
    assert relative_difference(left, right) <= TOLERANCE


# ---- the tests of the tests: each fault must be seen ----


def skip_transpose(ours: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in ours.blocks:
        weight = block.attention.output.weight  # square: only the numbers tell
        weight.data = weight.data.t().contiguous()


def swap_norms(ours: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in ours.blocks:
        block.attention_norm, block.mlp_norm = block.mlp_norm, block.attention_norm


def erf_gelu(ours: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in ours.blocks:
        block.mlp.activation = nn.GELU()


def drop_bias(ours: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    ours.blocks[0].attention.output.bias.data.zero_()


def shift_positions(ours: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = dialogpt.model.gpt2.positions_of
    monkeypatch.setattr(dialogpt.model.gpt2, "positions_of", lambda *arguments: honest(*arguments) + 1)


def see_one_token_ahead(ours: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    def mask(held: list[int], positions: Tensor, S: int) -> Tensor:
        return torch.arange(S) <= positions[:, None, :, None] + 1

    monkeypatch.setattr(dialogpt.model.gpt2, "attention_mask", mask)


def miss_the_own_token(ours: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    def mask(held: list[int], positions: Tensor, S: int) -> Tensor:
        return torch.arange(S) <= (positions[:, None, :, None] - 1).clamp(min=0)

    monkeypatch.setattr(dialogpt.model.gpt2, "attention_mask", mask)


Fault = Callable[[GPT2, pytest.MonkeyPatch], None]


@pytest.mark.parametrize(
    "fault",
    [skip_transpose, swap_norms, erf_gelu, drop_bias, shift_positions, see_one_token_ahead, miss_the_own_token],
)
def test_parity_sees_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    ours, theirs = pair(tmp_path)
    ids = torch.randint(0, 97, (2, 30), generator=seeded())
    with torch.no_grad():
        assert relative_difference(ours(ids), theirs(ids).logits) <= TOLERANCE
        fault(ours, monkeypatch)
        assert relative_difference(ours(ids), theirs(ids).logits) > 1000 * TOLERANCE


@pytest.mark.parametrize("fault", [shift_positions, see_one_token_ahead, miss_the_own_token])
def test_the_cache_test_sees_a_fault(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    """A fault in the cached path only: the reference is computed before, in one piece."""
    network = random_model()
    ids = torch.randint(0, 97, (2, 24), generator=seeded(1))
    with torch.no_grad():
        whole = network(ids)
    fault(network, monkeypatch)
    assert relative_difference(read_in_pieces(network, ids, [9]), whole) > 1000 * TOLERANCE


def test_a_rule_without_its_transpose_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same fault in the rule table, where it would be made; the projection is square, so no shape tells."""
    broken = tuple(
        dataclasses.replace(rule, transpose=False) if rule.published == "h.{}.attn.c_proj.weight" else rule
        for rule in names.RULES
    )
    theirs = their_model()
    theirs.save_pretrained(tmp_path)
    monkeypatch.setattr(names, "RULES", broken)
    ids = torch.randint(0, 97, (1, 20), generator=seeded())
    with torch.no_grad():
        assert relative_difference(load(tmp_path, dtype="float64")(ids), theirs(ids).logits) > 1000 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "medium"])
def test_published_shapes_in_float32_say_the_same_greedy_tokens(tmp_path: Path, size: str) -> None:
    """Random weights of the published shapes: 64 greedy tokens, and the logits' largest difference."""
    from dialogpt import GenerationConfig, generate
    from dialogpt.model import PRESETS

    preset = PRESETS[size]
    ours, theirs = pair(
        tmp_path,
        dtype="float32",
        deviation=0.05,
        vocab_size=preset.vocab_size,
        n_positions=preset.n_positions,
        n_embd=preset.n_embd,
        n_layer=preset.n_layer,
        n_head=preset.n_head,
    )
    prompt = torch.randint(0, preset.vocab_size - 1, (20,), generator=seeded()).tolist()
    with torch.no_grad():
        difference = relative_difference(ours(torch.tensor([prompt])), theirs(torch.tensor([prompt])).logits)
    print(f"{size}: largest logit difference {difference:.1e} of the largest logit")
    assert difference < 1e-4
    config = GenerationConfig(max_new_tokens=64, min_new_tokens=64)
    mine = [step.id for step in generate(ours, prompt, config)]
    ids = torch.tensor([prompt])
    output = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, min_new_tokens=64, pad_token_id=50256
    )
    assert mine == output[0, len(prompt) :].tolist()
