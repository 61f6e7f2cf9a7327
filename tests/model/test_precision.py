"""Every precision on a CPU: how far it is from float64, rows that do not move each other, what becomes of weights."""

from __future__ import annotations

import copy
import logging
import math
import shutil
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from dialogpt import GenerationConfig, Tokenizer, generate_batch
from dialogpt.model import GPT2, KVCache, precision
from dialogpt.model.gpt2 import Block
from dialogpt.model.precision import kernels, packed
from dialogpt.model.precision.choice import FLOAT32_OF_FLOAT16, candidates, kernel_for
from dialogpt.ranking.scoring import score
from dialogpt.weights import CheckpointError, load, open_checkpoint
from dialogpt.weights.load import build_network
from scripts import small_talk
from tests.helpers import needs_float16, needs_int8, write_published

# The largest difference of logits to float64 that is allowed, relative to the largest logit. Weights are random, and
# much wilder than trained ones.
BOUNDS = {"float32": 1e-5, "float16": 5e-4, "bfloat16": 4e-2, "int8": 1e-1, "int4": 5e-1}
SIZES = {"n_embd": 64, "n_head": 2, "n_layer": 2, "n_positions": 64}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 64 channels, all parameters random."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    write_published(folder, deviation=0.1, **SIZES)
    return folder


@pytest.fixture(autouse=True)
def warn_again() -> None:
    packed.warn_once.cache_clear()


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
        rounds = dtype == "bfloat16" and not kernels.Float16.runs_here()  # activations, to 8 bits
        assert difference(beside, alone) < (1e-2 if rounds else 1e-5)


@needs_int8
@torch.no_grad()
def test_that_test_sees_a_scale_that_rows_share(wide: Path) -> None:
    network = load(wide, dtype="int8")
    network(torch.tensor(ids_of(5)))
    quantized = network.blocks[0].attention.qkv.kernel.packed  # type: ignore[union-attr]
    quiet, loud = torch.randn(1, 64), 20 * torch.randn(3, 64)
    alone = torch.ops.quantized.linear_dynamic(quiet, quantized)
    beside = torch.ops.quantized.linear_dynamic(torch.cat([quiet, loud]), quantized)[:1]
    assert difference(beside, alone) > 1e-2


@pytest.mark.parametrize(("kind", "bits"), [(kernels.Int8, 8), (kernels.Int8SevenBit, 7), (kernels.Int8Weights, None)])
@pytest.mark.parametrize(("scale", "shift"), [(0, 0), (0, 1e-6), (-1, 0), (1, 5)])
def test_int8_takes_rows_of_any_range(kind: type[kernels.Kernel], bits: int | None, scale: float, shift: float) -> None:
    """Each product is within 4.5 standard deviations of what rounding weights and, where they are rounded, x adds.

    It asked for 2 % of the largest number once, which depended on the numbers drawn: of one draw in some hundred, a
    right kernel missed it.
    """
    if not kind.runs_here():
        pytest.skip(f"{kind.name} does not run here")
    x = (scale * torch.rand(2, 32) + shift).double()
    weight, bias = torch.randn(5, 32), torch.randn(5)
    kernel = kind(weight, bias, gelu=False)
    weight = weight.double()
    expected = x @ weight.T + bias
    weight_step = weight.abs().amax(1) / 127  # a scale for each channel
    x_range = x.amax(1).clamp(min=0) - x.amin(1).clamp(max=0)  # of each row; zero is always in it
    x_step = (x_range / (2**bits - 1)).clamp(min=kernels.MIN_SCALE) if bits else torch.zeros(2).double()
    variance = x.square().sum(1, keepdim=True) * weight_step**2 / 12  # of a uniform error of one step
    variance = variance + x_step[:, None] ** 2 * weight.square().sum(1) / 12
    bound = 4.5 * variance.sqrt() + 1e-5 * expected.abs().amax()
    x = x.float()
    for found in (kernel(x), torch.cat([kernel(row[None]) for row in x])):
        assert ((found - expected).abs() <= bound).all()


@torch.no_grad()
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("kind", [{}, {"activation_function": "relu", "scale_attn_by_inverse_layer_idx": True}])
@torch.inference_mode()
def test_one_row_comes_by_a_shorter_way_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, kind: dict[str, Any]
) -> None:
    write_published(tmp_path, deviation=0.1, **SIZES, **kind)
    network = load(tmp_path, dtype=dtype)
    ids = torch.tensor(ids_of(9))
    cache = KVCache.for_model(network)
    short = [network(ids[:, :2], cache), *(network(ids[:, n : n + 1], cache) for n in range(2, 9))]
    assert all("one_row" in vars(block) for block in network.blocks)  # it was taken
    monkeypatch.setattr(packed.PackedBlock, "forward", Block.forward)
    other = KVCache.for_model(network)
    plain = [network(ids[:, :2], other), *(network(ids[:, n : n + 1], other) for n in range(2, 9))]
    assert all(map(torch.equal, short, plain))
    assert torch.equal(cache.buffer, other.buffer)


@torch.inference_mode()
def test_the_shorter_way_takes_what_is_no_token(wide: Path) -> None:
    """A row of padding alone is cached nowhere."""
    network = load(wide)
    cache = KVCache.for_model(network)
    network(torch.tensor([[5, 6]]), cache)
    network(torch.tensor([[7]]), cache, lengths=torch.tensor([0]))
    assert cache.ids == [[5, 6]]
    found, expected = network(torch.tensor([[7]]), cache), network(torch.tensor([[5, 6, 7]]))[:, 2:]
    assert difference(found, expected.double()) < BOUNDS["float32"]


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


@pytest.mark.parametrize("kernel", candidates("float32"), ids=lambda kernel: kernel.name)
@torch.no_grad()
def test_each_kernel_of_float32_decodes_near_float64(
    tmp_path: Path, kernel: type[kernels.Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token after token, as a dialogue is decoded: for one row a kernel may have another way."""
    if not kernel.runs_here():
        pytest.skip("it does not run here")
    write_published(tmp_path / "wider", deviation=0.1, n_embd=256, n_head=4, n_layer=2, n_positions=64)
    monkeypatch.setenv("DIALOGPT_KERNELS", f"float32={kernel.name}")
    network, exact = load(tmp_path / "wider"), load(tmp_path / "wider", dtype="float64")
    (ids,) = ids_of(20)
    cache = KVCache.for_model(network)
    steps = [network(torch.tensor([part]), cache)[0] for part in (ids[:9], *([each] for each in ids[9:]))]
    assert difference(torch.cat(steps), exact(torch.tensor([ids]))[0]) < BOUNDS["float32"]
    assert type(network.blocks[0].mlp.up.kernel) is kernel


@pytest.mark.parametrize("dtype", BOUNDS)
@torch.no_grad()
def test_the_state_is_complete_and_the_files(wide: Path, dtype: str) -> None:
    network, plain = load(wide, dtype=dtype), load(wide, trainable=True)
    expected = plain.state_dict()
    for _ in range(2):  # before and after use
        found = network.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        network(torch.tensor(ids_of(6)))


def test_packed_weights_are_not_for_training(wide: Path) -> None:
    network = load(wide)
    ids = torch.tensor(ids_of(6))
    assert not network(ids).requires_grad
    with pytest.raises(RuntimeError, match="load it with trainable=True"):
        network.train()(ids)
    network.eval().final_norm.requires_grad_()
    with pytest.raises(RuntimeError, match="gives no gradients"):  # none that would be missing in silence
        network(ids)
    with pytest.raises(CheckpointError, match="int8 is for inference on a CPU; for training choose"):
        load(wide, dtype="int8", trainable=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_trainable_network_is_plain(wide: Path, dtype: str) -> None:
    network, exact = load(wide, dtype=dtype, trainable=True), load(wide, dtype="float64")
    ids = torch.tensor(ids_of(6))
    with torch.no_grad():
        network(ids)
    for each in (network, exact):
        each(ids).square().mean().backward()
    assert {parameter.dtype for parameter in network.parameters()} == {getattr(torch, dtype)}
    for ours, theirs in zip(network.parameters(), exact.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert difference(ours.grad, theirs.grad) < (1e-4 if dtype == "float32" else 0.2)


@pytest.mark.parametrize("kernel", candidates("bfloat16"), ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@torch.no_grad()
def test_a_product_of_16_bits_is_that_of_the_rounded_weight(
    wide: Path, dtype: str, kernel: type[kernels.Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations stay float32 with fbgemm; bfloat16's numbers below 2^-14 move by at most 2^-25 there."""
    if kernel not in candidates(dtype) or not kernel.runs_here():
        pytest.skip("it does not run here, or is none of this precision")
    monkeypatch.setenv("DIALOGPT_KERNELS", f"{dtype}={kernel.name}")
    network, plain = load(wide, dtype=dtype), load(wide, dtype="float64")
    weight = plain.blocks[1].mlp.down.weight.to(getattr(torch, dtype)).double()
    x = torch.randn(1, 256, generator=torch.Generator().manual_seed(0))
    expected = F.linear(x.double(), weight, plain.blocks[1].mlp.down.bias.double())
    layer = network.blocks[1].mlp.down
    assert isinstance(layer, packed.PackedLinear)
    assert difference(layer(x), expected) < (1e-2 if kernel.max_error == 2e-2 else 1e-6)
    assert type(layer.kernel) is kernel


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_logits_are_not_rounded_to_bfloat16(tied: bool, tmp_path: Path) -> None:
    """Those about -100, as GPT-2's are, would be half a nat apart, and many of them equal."""
    if not kernels.Float16.runs_here():
        pytest.skip("the products that keep float32 do not run here")
    write_published(tmp_path / "model", deviation=0.1, tie_word_embeddings=tied, **SIZES)
    network, plain = (load(tmp_path / "model", dtype=dtype) for dtype in ("bfloat16", "float64"))
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)) * 100
    head = plain.token_embedding if plain.output_head is None else plain.output_head
    expected = F.linear(hidden.double(), head.weight.bfloat16().double())
    assert difference(network.logits(hidden), expected) < 1e-6


@torch.no_grad()
def test_bfloat16_has_small_and_large_numbers(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels.Float16.runs_here():
        monkeypatch.setenv("DIALOGPT_KERNELS", "bfloat16=fbgemm-float16")
    weight = torch.tensor([[1e-6, 3e-5, -6e-8], [1e-30, 0.5, 65504.0]])  # the last becomes 65,536
    x = torch.tensor([[1.0, -2.0, 0.25]])
    for each in (weight[:, :2], weight):
        kernel = packed.pack(each, None, "bfloat16", gelu=False)
        expected = x[:, : each.size(1)].double() @ each.bfloat16().double().T
        relative = 1e-6 if kernels.Float16.runs_here() else 1e-2  # without fbgemm the sum is rounded to bfloat16, too
        assert (kernel(x[:, : each.size(1)]) - expected).abs().max() <= 2 * 2**-25 + relative * expected.abs().max()
    assert ("its layer is kept in float32" in caplog.text) == kernels.Float16.runs_here()


@torch.no_grad()
def test_without_fbgemm_bfloat16_is_multiplied_as_it_is(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.Float16, "runs_here", lambda: False)
    network, ids = load(wide, dtype="bfloat16"), torch.tensor(ids_of(6))
    assert difference(network(ids), load(wide, dtype="float64")(ids)) < BOUNDS["bfloat16"]
    kernel = network.token_embedding.kernel
    assert isinstance(kernel, kernels.BFloat16 | kernels.BFloat16SixRows)  # or widened
    assert kernel.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("unknown", ["int2", "float64", ""])
def test_an_unknown_precision_is_refused_by_name(wide: Path, unknown: str) -> None:
    """It used to be packed as another one, in silence."""
    sentence = f"there is no precision '{unknown}'; expected one of float32, bfloat16, float16, int8, int4"
    checkpoint = open_checkpoint(wide)
    reads = {name: stored.read for name, stored in checkpoint.tensors.items()}
    with pytest.raises(ValueError, match=sentence):
        precision.prepare(GPT2(checkpoint.config), unknown, reads)
    weight = checkpoint.tensors["blocks.0.mlp.up.weight"].read
    layer = packed.PackedLinear(weight, checkpoint.tensors["blocks.0.mlp.up.bias"].read, unknown, gelu=False)
    with pytest.raises(ValueError, match=sentence):
        layer.eval()(torch.randn(1, 64))


@pytest.mark.parametrize("dtype", BOUNDS)
@torch.no_grad()
def test_a_copy_says_the_same(wide: Path, dtype: str) -> None:
    network = load(wide, dtype=dtype)
    ids = torch.tensor(ids_of(6))
    assert torch.equal(copy.deepcopy(network)(ids), network(ids))
    assert torch.equal(copy.deepcopy(network)(ids), network(ids))


@needs_float16
def test_every_number_of_float16_is_kept() -> None:
    """Products with float16's numbers are those of float32, infinities and NaN aside."""
    numbers = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    numbers = numbers[torch.isfinite(numbers)].float()  # 63,488 of them
    weight = numbers.view(-1, 32)
    kernel = kernels.Float16(weight, None, gelu=False)
    for rows in (1, 5, 32):
        assert torch.equal(torch.cat([kernel(part) for part in torch.eye(32).split(rows)]).T, weight)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 9, 70])
@torch.no_grad()
def test_what_is_stored_in_float16_is_float32_when_packed_so(tmp_path: Path, rows: int) -> None:
    """As DialoGPT's checkpoints are."""
    write_published(tmp_path / "half", deviation=0.1, dtype=torch.float16, **SIZES)
    exact, network = load(tmp_path / "half", dtype="float64"), load(tmp_path / "half")
    ids = torch.tensor(ids_of(*[6] * rows))
    for step in (ids, ids[:, :1]):
        assert difference(network(step), exact(step)) < BOUNDS["float32"]
    expected = kernel_for(FLOAT32_OF_FLOAT16, 64)
    assert expected is not None
    assert isinstance(network.blocks[0].mlp.up.kernel, expected)
    assert type(network.token_embedding.kernel) is kernel_for(FLOAT32_OF_FLOAT16, 64, for_logits=True)
    rounded = exact.state_dict()
    assert all(torch.equal(values.double(), rounded[name]) for name, values in network.state_dict().items())


@torch.no_grad()
def test_a_weight_beyond_float16_is_not_clamped(wide: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By itself, fbgemm takes 65,504 for all that is larger, and prints a line on stderr."""
    theirs = GPT2LMHeadModel.from_pretrained(wide)
    theirs.transformer.h[1].mlp.c_proj.weight[0, 0] = 1e5
    theirs.save_pretrained(tmp_path / "loud")
    ids = torch.tensor(ids_of(6))
    found = load(tmp_path / "loud", dtype="float16")(ids)
    assert difference(found, load(tmp_path / "loud", dtype="float64")(ids)) < BOUNDS["float16"]
    assert "a weight is beyond float16, whose largest number is 65,504" in caplog.text


@torch.no_grad()
def test_a_hidden_state_alone_has_logits(wide: Path) -> None:
    exact = load(wide, dtype="float64")
    hidden = torch.randn(64, generator=torch.Generator().manual_seed(0))
    for dtype, bound in BOUNDS.items():
        found = load(wide, dtype=dtype).logits(hidden)
        assert found.shape == (557,)
        assert difference(found, exact.logits(hidden.double())) < bound


@torch.no_grad()
def test_without_its_kernel_float16_is_rounded_all_the_same(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.tensor(ids_of(6))
    expected = load(wide, dtype="float16")(ids)
    monkeypatch.setattr(kernels.Float16, "runs_here", lambda: False)
    network = load(wide, dtype="float16")
    assert difference(network(ids), expected) < 1e-5 < difference(load(wide)(ids), expected)
    assert type(network.token_embedding.kernel) is kernel_for("float32", 64, for_logits=True)


@torch.no_grad()
def test_without_its_kernel_float32_stays_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_published(tmp_path / "half", deviation=0.1, dtype=torch.float16, **SIZES)
    monkeypatch.setattr(kernels.Float16, "runs_here", lambda: False)
    network, ids = load(tmp_path / "half"), torch.tensor(ids_of(6))
    assert difference(network(ids), load(tmp_path / "half", dtype="float64")(ids)) < BOUNDS["float32"]
    assert type(network.token_embedding.kernel) is kernel_for("float32", 64, for_logits=True)
    assert not caplog.records


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_packed_weights_stay_as_they_are(wide: Path, dtype: str) -> None:
    network = load(wide, dtype=dtype)
    assert network.cpu() is network
    assert network.float() is network
    for change in (network.double, network.half, lambda: network.to("meta")):
        with pytest.raises(RuntimeError, match="load the network again as it should be"):
            change()
    assert network.token_embedding.weight.dtype == torch.float32


def test_two_networks_of_one_checkpoint_share_nothing(wide: Path) -> None:
    checkpoint = open_checkpoint(wide)
    one = load(checkpoint, trainable=True)
    before = one.token_embedding.weight.clone()
    with torch.no_grad():
        one.token_embedding.weight.add_(1)
        other = load(checkpoint)
        other(torch.tensor(ids_of(6)))
    assert torch.equal(one.token_embedding.weight, before + 1)
    assert torch.equal(other.token_embedding.weight, before)


def test_many_threads_may_begin_at_once(wide: Path) -> None:
    network, ids = load(wide, dtype="int8"), torch.tensor(ids_of(6))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: network(ids), range(8)))
    assert all(torch.equal(each, found[0]) for each in found)


@torch.no_grad()
def test_no_rows_and_no_tokens(wide: Path) -> None:
    for dtype in BOUNDS:
        assert load(wide, dtype=dtype)(torch.zeros(1, 0, dtype=torch.long)).shape == (1, 0, 557)


@pytest.mark.parametrize("dtype", BOUNDS)
def test_eight_threads_leave_the_settings_of_the_process_alone(wide: Path, dtype: str) -> None:
    """bfloat16 used to switch oneDNN off for each row, and threads restored each other's "off": it stayed off."""
    network, ids = load(wide, dtype=dtype), torch.tensor(ids_of(1))
    torch._C._set_mkldnn_enabled(True)

    def settings() -> tuple[object, ...]:
        filters = id(warnings.filters), len(warnings.filters)
        return torch._C._get_mkldnn_enabled(), torch.get_num_threads(), torch.get_default_dtype(), filters

    before, started = settings(), threading.Barrier(8)

    def decode(_: int) -> set[tuple[object, ...]]:
        started.wait()
        with torch.inference_mode():
            return {(network(ids), settings())[1] for _ in range(50)}

    try:
        with ThreadPoolExecutor(8) as pool:
            seen = set().union(*pool.map(decode, range(8)))
        assert seen == {before}
        assert settings() == before
    finally:
        torch._C._set_mkldnn_enabled(True)


def test_a_file_that_was_replaced_is_not_read(wide: Path, tmp_path: Path) -> None:
    shutil.copytree(wide, tmp_path / "copy")
    checkpoint = open_checkpoint(tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    shutil.copy(weights, tmp_path / "other")
    (tmp_path / "other").replace(weights)
    with pytest.raises(CheckpointError, match=r"model.safetensors was changed while it was in use; open it again"):
        load(checkpoint)
    with torch.no_grad():
        found, expected = load(wide), load(wide, dtype="float64")
        fresh = load(tmp_path / "copy")
        weights.unlink()
        ids = torch.tensor(ids_of(6))
        assert difference(fresh(ids), expected(ids)) < BOUNDS["float32"]  # what was loaded is there
        assert torch.equal(fresh(ids), found(ids))


OPTIONAL = ("Float32", "Float16", "Int8", "Int8SevenBit", "Int8Weights", "Int4")


@pytest.mark.parametrize(
    ("dtype", "present", "sentence"),
    [
        ("float32", (), None),  # a Mac's plain product is its fastest, and gives the same numbers
        ("float32", ("Float32",), None),
        ("float16", ("Float32",), "no products of float16: the weights are rounded, but kept in float32"),
        ("bfloat16", ("Float32",), None),
        ("int8", ("Float32", "Int8SevenBit"), None),
        ("int8", ("Float32", "Float16", "Int4", "Int8Weights"), "int8 only saves memory"),
        ("int8", ("Float32", "Float16", "Int4"), "no products of int8: the weights are rounded"),
        ("int4", ("Float32", "Float16", "Int8"), "int8 takes their place"),
        ("int4", ("Int8SevenBit",), "int8 takes their place"),
        ("int4", (), "no products of int4: the weights are rounded"),
    ],
)
@torch.no_grad()
def test_without_a_kernel_another_takes_its_place(
    wide: Path,
    dtype: str,
    present: tuple[str, ...],
    sentence: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As on a processor or a torch that has no more; what is there must run here too, else the test is skipped."""
    runs = {kernel: getattr(kernels, kernel).runs_here() for kernel in OPTIONAL}
    for kernel in OPTIONAL:
        if kernel in present and not runs[kernel]:
            pytest.skip(f"{kernel} does not run here")
        # each by itself: Int8SevenBit would inherit Int8's answer
        monkeypatch.setattr(getattr(kernels, kernel), "runs_here", lambda there=kernel in present: there)
    with caplog.at_level(logging.WARNING):
        network = load(wide, dtype=dtype)
        told = [record.message for record in caplog.records]  # once, when it is loaded
        found = network(torch.tensor(ids_of(6, 6)))
    assert difference(found, load(wide, dtype="float64")(torch.tensor(ids_of(6, 6)))) < BOUNDS[dtype]
    assert [record.message for record in caplog.records] == told
    assert len(told) == (sentence is not None)
    assert all(sentence in each for each in told if sentence)


@pytest.mark.skipif(
    not (kernels.Int4.runs_here() and kernels.Int8.runs_here()), reason="no int8 takes the place of int4 here"
)
@torch.no_grad()
def test_a_width_that_int4_cannot_group(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_published(tmp_path / "narrow", deviation=0.1, n_embd=24, n_head=3)
    ids = torch.tensor(ids_of(6))
    found = load(tmp_path / "narrow", dtype="int4")(ids)
    assert difference(found, load(tmp_path / "narrow", dtype="float64")(ids)) < BOUNDS["int8"]
    assert "a width is no multiple of 32" in caplog.text


def test_int8_is_for_a_processor(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build_network.__globals__, "device_of", torch.device)
    with pytest.raises(CheckpointError, match="int8 is for inference on a CPU; for meta choose bfloat16 or float16"):
        build_network(open_checkpoint(wide), dtype="int8", device="meta")


def test_the_network_itself_is_not_changed() -> None:
    network = GPT2(load("tiny").config)
    assert type(network.blocks[0].mlp.up) is nn.Linear
    assert type(network.blocks[0].mlp.activation) is nn.GELU


def nats_of_tiny(dtype: str) -> tuple[int, float]:
    """How many tokens of held-out small talk are scored, and what they cost.

    Of people's chats, which `tiny` has long left behind, 3,282 tokens had a perplexity of 634, and rounding alone moved
    int8's by 0.2 %.
    """
    tokenizer = Tokenizer.load("tiny")
    texts = [turns for turns in small_talk.read() if small_talk.is_held_out(turns)][:120]
    ids = [[id_ for turn in turns for id_ in (*tokenizer.encode(turn), tokenizer.eos_id)][:512] for turns in texts]
    return sum(len(row) - 1 for row in ids), -sum(found.total for found in score(load("tiny", dtype=dtype), ids))


@pytest.fixture(scope="module")
def expected_nats() -> float:
    """float32's."""
    return nats_of_tiny("float32")[1]


@pytest.mark.parametrize(
    ("dtype", "kernel", "most"),
    [
        ("bfloat16", "", 0.005),
        ("bfloat16", "bfloat16", 0.005),
        ("bfloat16", "bfloat16-widened", 0.005),
        ("bfloat16", "onednn-bfloat16", 0.005),
        ("float16", "", 0.001),
        ("int8", "", 0.01),
        ("int8", "fbgemm-int8-7-bit", 0.01),
        ("int8", "int8-weights", 0.01),
        ("int4", "", 0.05),
    ],
)
def test_perplexity_of_tiny_is_hardly_higher(
    dtype: str, kernel: str, most: float, expected_nats: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On held-out small talk, with this machine's kernel and with those of others; docs/benchmarks.md has all."""
    if kernel:
        if not next(each for each in candidates(dtype) if each.name == kernel).runs_here():
            pytest.skip(f"{kernel} does not run here")
        monkeypatch.setenv("DIALOGPT_KERNELS", f"{dtype}={kernel}")
    tokens, nats = nats_of_tiny(dtype)
    assert math.exp((nats - expected_nats) / tokens) < 1 + most
