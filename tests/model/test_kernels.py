"""The kernels themselves: a check that finds a wrong product, the table, its override, and the measurement."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dialogpt.cli.main import main
from dialogpt.cli.opening import warn_of_slow_draft
from dialogpt.model import GPT2Config
from dialogpt.model.precision import bytes_per_step, choice, kernels
from dialogpt.model.precision.choice import CPU_PRECISIONS, TABLE, candidates, capability, kernel_for, overrides
from dialogpt.model.precision.measure import Timing, contradictions, measure_kernels
from dialogpt.weights import CheckpointError, load
from tests.helpers import environment

KINDS = tuple(dict.fromkeys(kind for precision in TABLE["other"] for kind in candidates(precision)))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("rows", [1, 2, 5, 70])
@torch.no_grad()
def test_each_kernel_computes_each_row_alone(kind: type[kernels.Kernel], rows: int) -> None:
    if not kind.runs_here():
        pytest.skip("it does not run here")
    generator = torch.Generator().manual_seed(rows)
    weight, bias = torch.randn(100, 64, generator=generator), torch.randn(100, generator=generator)
    x = torch.randn(rows, 64, generator=generator)
    expected = F.gelu(F.linear(x, weight, bias), approximate="tanh")
    kernel = kind(weight, bias, True)
    found = kernel(x)
    assert found.dtype == torch.float32
    assert (
        (found - expected).abs().max() / expected.abs().max()
    ) <= 2 * kind.max_error  # the probe's numbers are kinder
    loud = torch.cat([x, 30 * torch.randn(3, 64, generator=generator)])
    rounds = kind in (
        kernels.BFloat16,
        kernels.BFloat16SixRows,
        kernels.BFloat16Widened,
        kernels.Int8Weights,
        kernels.Int4,
    )  # sums to 8 bits of bfloat16
    assert torch.allclose(
        kernel(loud)[:rows], found, rtol=0, atol=(2e-2 if rounds else 1e-5) * float(found.abs().max())
    )
    spoiled = torch.cat([x, torch.full((1, 64), float("nan"))])
    assert torch.isfinite(kernel(spoiled)[:rows]).all()


@pytest.mark.parametrize(
    "operator",
    [
        lambda x, packed, *_: torch.full((*x.shape[:-1], 96), float("nan")),
        lambda x, packed, *_: torch.zeros(*x.shape[:-1], 96),
        lambda x, packed, *_: (_ for _ in ()).throw(NotImplementedError("this processor has no such instruction")),
        None,
    ],
)
def test_a_product_that_is_missing_or_wrong_does_not_run(operator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_linear_float16", operator)
    kernels.Kernel.runs_here.__func__.cache_clear()  # type: ignore[attr-defined]
    try:
        assert not kernels.Float16.runs_here()
        assert kernels.Plain.runs_here()
    finally:
        kernels.Kernel.runs_here.__func__.cache_clear()  # type: ignore[attr-defined]


PROGRAM = """
from dialogpt.model.precision.choice import kernel_for
from dialogpt.model.precision import kernels
print(kernels.Int8.runs_here(), kernel_for("int8", 64).name)
"""


@pytest.mark.skipif(not kernels.Int8SevenBit.runs_here(), reason="fbgemm does not run here")
def test_without_vnni_eight_bits_overflow_and_seven_do_not() -> None:
    """A switch of fbgemm hides the instruction; it adds each pair of products in 16 bits then."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment(FBGEMM_ENABLE_INSTRUCTIONS="AVX2"), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["False", "fbgemm-int8-7-bit"]


def test_trying_a_kernel_warns_nobody() -> None:
    kernels.Kernel.runs_here.__func__.cache_clear()  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in KINDS:
            kind.runs_here()


def test_the_table_has_a_kernel_of_float32_everywhere_and_each_name_once() -> None:
    assert capability() in TABLE
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    for row in TABLE.values():
        assert set(CPU_PRECISIONS) < set(row)
        assert kernels.Plain in row["float32"]
    assert kernel_for("float32", 7) is not None


def test_the_variable_overrides_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALOGPT_KERNELS", " float32 = plain, bfloat16=bfloat16-widened,")
    assert kernel_for("float32", 64) is kernels.Plain
    assert kernel_for("bfloat16", 64) is kernels.BFloat16Widened
    network = load("tiny")
    network(torch.tensor([[1, 2, 3]]))
    assert type(network.blocks[0].mlp.up.kernel) is kernels.Plain


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("int2=plain", "'int2=plain' is none of float32"),
        ("plain", "'plain' is none of"),
        ("float32=int8", "float32 has no kernel 'int8'; expected one of onednn-6-rows"),
        ("float16=", "float16 has no kernel ''"),
    ],
)
def test_a_wrong_override_is_a_sentence(
    text: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=sentence):
        overrides(text)
    monkeypatch.setenv("DIALOGPT_KERNELS", text)
    with pytest.raises(CheckpointError, match=sentence):
        load("tiny")
    assert main(["bench", "--kernels", "--size", "tiny"]) == 1
    assert "DIALOGPT_KERNELS" in capsys.readouterr().err


def test_an_override_that_does_not_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.Float16, "runs_here", lambda: False)
    with pytest.raises(
        ValueError, match="fbgemm-float16 does not run on this machine; remove 'float16=fbgemm-float16'"
    ):
        overrides("float16=fbgemm-float16")


def test_every_kernel_is_measured_and_one_of_a_precision_is_used() -> None:
    config = GPT2Config(n_embd=64, n_head=2, n_layer=1, vocab_size=97)
    for timings in measure_kernels(config, rounds=1):
        assert sum(timing.chosen for timing in timings) <= 1
        assert all((timing.one_row_ms is None) == (timing.many_rows_ms is None) for timing in timings)
        assert timings[0].precision != "float32" or any(timing.kernel == "plain" for timing in timings)


def test_a_contradiction_names_how_to_override() -> None:
    used, faster, narrow = (
        Timing("float32", name, name == "plain", one, many)
        for name, one, many in (("plain", 10.0, 50.0), ("onednn", 8.0, 51.0), ("onednn-6-rows", 5.0, 90.0))
    )
    assert contradictions([used, faster, narrow]) == [
        "float32: onednn takes 0.80 of the time of plain for one row and 1.02 for 64. To use it, set "
        "DIALOGPT_KERNELS='float32=onednn'"
    ]
    assert contradictions([faster]) == []


@torch.no_grad()
def test_many_rows_of_bfloat16_are_multiplied_in_float32_and_few_are_not() -> None:
    weight, bias = torch.randn(600, 64), torch.randn(600)
    kernel = kernels.BFloat16Widened(weight, bias, gelu=False)
    x = torch.randn(8, 64)
    exact = F.linear(x.double(), weight.bfloat16().double(), bias.bfloat16().double())
    assert ((kernel(x) - exact).abs().max() / exact.abs().max()) < 1e-6
    assert ((kernel(x[:7]) - exact[:7]).abs().max() / exact.abs().max()) < 2e-2
    assert kernel(x.view(2, 4, 64)).shape == (2, 4, 600)
    assert kernel.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("outputs", [3, 8, 64, 997, 2304])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@torch.no_grad()
def test_blocks_give_the_product_for_any_number_of_outputs_and_rows(outputs: int, gelu: bool, biased: bool) -> None:
    """Outputs beyond the last whole block, as GPT-2's 50,257 have one, are multiplied apart."""
    generator = torch.Generator().manual_seed(outputs)
    weight, x = torch.randn(outputs, 768, generator=generator), torch.randn(6, 768, generator=generator)
    bias = torch.randn(outputs, generator=generator) if biased else None
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    exact = F.gelu(exact, approximate="tanh") if gelu else exact
    kernel = kernels.Float32Blocks(weight, bias, gelu)
    for rows, expected in ((x, exact), (x.view(2, 3, 768), exact.view(2, 3, -1)), (x[:1], exact[:1]), (x[0], exact[0])):
        found = kernel(rows)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() / exact.abs().max() < 2e-6
    assert kernel(x[:0]).shape == (0, outputs)
    strided = x.T.contiguous().T
    assert (kernel(strided) - exact).abs().max() / exact.abs().max() < 2e-6


def test_a_head_on_avx2_is_not_multiplied_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its many outputs are copied twice for several rows, and take twice the time of oneDNN's."""
    monkeypatch.setattr(choice, "capability", lambda: "AVX2")
    monkeypatch.delenv(choice.VARIABLE, raising=False)
    assert choice.kernel_for("float32", 64) is kernels.Float32Blocks
    assert choice.kernel_for("float32", 64, for_logits=True) in (kernels.Float32, kernels.Plain)


@torch.no_grad()
def test_blocks_do_not_depend_on_the_file_of_the_weight() -> None:
    """They were its mapped memory: a checkpoint that was overwritten changed replies, or ended the server."""
    memory = torch.randn(100 * 64 + 2)
    weight, x = memory[2:].view(100, 64), torch.randn(1, 64)  # at 8 bytes, as a file may hold it
    shifted, aligned = (kernels.Float32Blocks(each, None, gelu=False) for each in (weight, weight.clone()))
    expected = aligned(x)
    memory.zero_()
    assert torch.equal(shifted(x), expected)


@pytest.mark.parametrize(
    ("machine", "system", "bfloat16", "expected"),
    [
        ("aarch64", "Linux", True, "ARM-BF16"),
        ("aarch64", "Linux", False, "ARM"),
        ("arm64", "Darwin", True, "Accelerate"),
        ("x86_64", "Linux", False, torch.backends.cpu.get_cpu_capability()),
        ("x86_64", "Linux", True, torch.backends.cpu.get_cpu_capability()),
    ],
)
def test_the_capability_of_a_processor(
    machine: str, system: str, bfloat16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16)
    if machine == "x86_64" and expected == "AVX512" and bfloat16:
        expected = "AVX512-BF16"
    if machine == "x86_64" and expected not in TABLE:
        expected = "other"
    assert capability() == expected


@pytest.mark.parametrize(("dtype", "draft", "warned"), [("float64", "int8", False), ("int8", "int8", True)])
def test_a_draft_that_reads_as_much_is_warned_of(
    dtype: str, draft: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """In int8 on a processor without VNNI, float32 with a draft was slower than alone."""
    if kernel_for("int8", 256) not in (kernels.Int8, kernels.Int8SevenBit):
        pytest.skip("int8 is as slow as float32 here")
    warn_of_slow_draft(load("tiny", dtype=dtype), load("tiny", dtype=draft))
    assert ("is not likely to make it faster" in caplog.text) == warned


def test_bytes_of_a_step() -> None:
    config = load("tiny", dtype="float64").config
    count = config.vocab_size * config.n_embd + config.n_layer * 12 * config.n_embd**2
    assert bytes_per_step(load("tiny", dtype="float64")) == 8 * count
    expected = kernel_for("float16", 256)
    assert bytes_per_step(load("tiny", dtype="float16")) == (4 if expected is None else 2) * count


def test_bench_wants_to_know_what(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 2
    assert "choose what to measure: --kernels" in capsys.readouterr().err
    assert main(["bench", "--kernels", "--threads", "0"]) == 2
    assert "--threads must be a positive integer, got 0" in capsys.readouterr().err


def test_bench_prints_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def measured(_: GPT2Config) -> list[list[Timing]]:
        return [[Timing("float32", "plain", True, 10.0, 50.0), Timing("float32", "onednn", False, None, None)]]

    monkeypatch.setattr("dialogpt.model.precision.measure.measure_kernels", measured)
    assert main(["bench", "--kernels"]) == 0
    printed = capsys.readouterr().out
    assert "10.00 ms     50.0 ms  used" in printed
    assert "onednn                does not run here" in printed
    assert "No kernel is clearly faster" in printed
    assert main(["bench", "--kernels", "--json"]) == 0
    assert '"one_row_ms": 10.0' in capsys.readouterr().out.splitlines()[1]
