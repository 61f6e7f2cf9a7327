"""Every precision on a CPU: how far it is from float64, rows that do not move each other, what becomes of weights."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dialogpt import GenerationConfig, Tokenizer, generate_batch
from dialogpt.score import score
from model import GPT2, KVCache, precision
from scripts.train_tiny import conversations
from tests.helpers import write_published
from weights import CheckpointError, load

# The largest difference of logits to float64 that is allowed, relative to the largest logit. Weights are random, and
# much wilder than trained ones.
BOUNDS = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2, "int8": 1e-1, "int4": 5e-1}
SIZES = {"n_embd": 64, "n_head": 2, "n_layer": 2, "n_positions": 64}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 64 channels, all parameters random."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    write_published(folder, deviation=0.1, **SIZES)
    return folder


@pytest.fixture(autouse=True)
def notices_again() -> None:
    precision._notice.cache_clear()


def ids_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 550, (length,), generator=generator).tolist() for length in lengths]


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 9, 70])
@torch.no_grad()
def test_logits_are_near_those_of_float64(wide: Path, dtype: str, rows: int) -> None:
    exact, network = load(wide, dtype="float64"), load(wide, dtype=dtype)
    prompt = torch.tensor(ids_of(*[12] * rows))
    caches = [KVCache.for_model(exact, rows), KVCache.for_model(network, rows)]
    for step in (prompt[:, :11], prompt[:, 11:]):  # many rows of activations, and one for each dialogue
        expected, found = (each(step, cache) for each, cache in zip((exact, network), caches, strict=True))
        assert found.dtype == torch.float32
        assert difference(found, expected) < BOUNDS[dtype]


@pytest.mark.parametrize("dtype", BOUNDS)
@torch.no_grad()
def test_a_loud_neighbour_moves_no_row(wide: Path, dtype: str) -> None:
    network = load(wide, dtype=dtype)
    network(torch.tensor(ids_of(5)))  # packs
    quiet, loud = torch.randn(1, 64), 20 * torch.randn(3, 64)
    for layer in (network.blocks[0].attention.qkv, network.blocks[0].mlp.up, network.token_embedding.logits):
        alone, beside = layer(quiet), layer(torch.cat([quiet, loud]))[:1]
        assert difference(beside, alone) < (1e-2 if dtype == "bfloat16" else 1e-5)  # which rounds to 8 bits


@torch.no_grad()
def test_that_test_sees_a_scale_that_rows_share(wide: Path) -> None:
    network = load(wide, dtype="int8")
    network(torch.tensor(ids_of(5)))
    packed = network.blocks[0].attention.qkv.kernel.packed  # type: ignore[union-attr]
    quiet, loud = torch.randn(1, 64), 20 * torch.randn(3, 64)
    alone = torch.ops.quantized.linear_dynamic(quiet, packed)
    beside = torch.ops.quantized.linear_dynamic(torch.cat([quiet, loud]), packed)[:1]
    assert difference(beside, alone) > 1e-2


@pytest.mark.parametrize("x", [torch.zeros(2, 8), torch.full((2, 8), 1e-6), -torch.rand(2, 8), torch.rand(2, 8) + 5])
def test_int8_takes_rows_of_any_range(x: Tensor) -> None:
    weight, bias = torch.randn(5, 8), torch.randn(5)
    kernel = precision.Int8(*precision.quantized(weight, lambda: None), bias, gelu=False)
    expected = x.double() @ weight.double().T + bias
    for found in (kernel(x), torch.cat([kernel(row[None]) for row in x])):
        assert difference(found, expected) < 2e-2


@torch.no_grad()
def test_greedy_tokens_of_float32_are_those_of_float64(wide: Path) -> None:
    prompts = ids_of(5, 9, 20, 13)
    replies = [
        [
            reply.ids
            for (reply,) in generate_batch(load(wide, dtype=dtype), prompts, GenerationConfig(max_new_tokens=16))
        ]
        for dtype in ("float64", "float32")
    ]
    assert replies[0] == replies[1]


def test_weights_are_parameters_until_they_are_packed(wide: Path) -> None:
    network, plain = load(wide, dtype="float32"), load(wide, dtype="float64")
    assert network.state_dict().keys() == plain.state_dict().keys()
    ids = torch.tensor(ids_of(6))
    loss = network(ids).square().mean()
    loss.backward()
    reference = plain(ids).square().mean()
    reference.backward()
    for ours, exact in zip(network.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert torch.allclose(ours.grad.double(), exact.grad, rtol=1e-3, atol=1e-5)  # type: ignore[arg-type]
    with torch.no_grad():
        before = network.token_embedding(ids)
        assert difference(network(ids), plain(ids)) < BOUNDS["float32"]
        assert torch.equal(network.token_embedding(ids), before)
    assert "blocks.0.mlp.up.weight" not in network.state_dict()
    with pytest.raises(RuntimeError, match="cannot be trained; load it again"):
        network.train()


@torch.no_grad()
def test_changed_weights_are_the_ones_that_are_packed(wide: Path) -> None:
    network, plain = load(wide, dtype="float32"), load(wide, dtype="float64")
    for each in (network, plain):
        each.blocks[1].mlp.up.weight.mul_(2)
    ids = torch.tensor(ids_of(6))
    assert difference(network(ids), plain(ids)) < BOUNDS["float32"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves_keep_their_parameters(wide: Path, dtype: str) -> None:
    network = load(wide, dtype=dtype)
    names = network.state_dict().keys()
    assert {p.dtype for p in network.parameters()} == {getattr(torch, dtype)}
    with torch.no_grad():
        network(torch.tensor(ids_of(6)))
    assert network.state_dict().keys() == names


@pytest.mark.parametrize(
    ("dtype", "missing", "sentence"),
    [
        ("float32", "_linear_float", "no packed products"),
        ("int8", "_linear_int8", "the weights are rounded, but kept in float32"),
        ("int4", "_linear_int4", "int8 takes their place"),
    ],
)
@torch.no_grad()
def test_without_a_kernel_another_takes_its_place(
    wide: Path,
    dtype: str,
    missing: str,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(precision, missing, None)
    ids = torch.tensor(ids_of(6, 6))
    with caplog.at_level(logging.WARNING):
        found = load(wide, dtype=dtype)(ids)
    assert difference(found, load(wide, dtype="float64")(ids)) < BOUNDS[dtype]
    assert [sentence in record.message for record in caplog.records] == [True]  # said once


@torch.no_grad()
def test_a_width_that_int4_cannot_group(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_published(tmp_path / "narrow", deviation=0.1, n_embd=24, n_head=3)
    ids = torch.tensor(ids_of(6))
    found = load(tmp_path / "narrow", dtype="int4")(ids)
    assert difference(found, load(tmp_path / "narrow", dtype="float64")(ids)) < BOUNDS["int8"]
    assert "a width is no multiple of 32" in caplog.text


def test_int8_is_for_a_processor(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(load.__globals__, "device_of", torch.device)
    with pytest.raises(CheckpointError, match="int8 is for a CPU; on meta choose bfloat16 or float16"):
        load(wide, dtype="int8", device="meta")


def test_the_network_itself_is_not_changed() -> None:
    network = GPT2(load("tiny").config)
    assert type(network.blocks[0].mlp.up) is nn.Linear
    assert type(network.blocks[0].mlp.gelu) is nn.GELU


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 0.005), ("float16", 0.001), ("int8", 0.01), ("int4", 0.05)])
def test_perplexity_of_tiny_is_hardly_higher(dtype: str, most: float) -> None:
    """On held-out conversations; all of them, and the other checkpoint, are in scripts/README.md."""
    tokenizer = Tokenizer.load("tiny")
    texts = [turns for _, turns in zip(range(12), conversations(held_out=True), strict=False)]
    ids = [[id_ for turn in turns for id_ in (*tokenizer.encode(turn), tokenizer.eos_id)][:512] for turns in texts]
    nats = {each: -sum(found.total for found in score(load("tiny", dtype=each), ids)) for each in ("float32", dtype)}
    tokens = sum(len(row) - 1 for row in ids)
    assert math.exp((nats[dtype] - nats["float32"]) / tokens) < 1 + most
