"""The scripts, called as functions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dialogpt.cli import verify
from dialogpt.errors import DialogueError
from dialogpt.model import GPT2
from dialogpt.weights import convert, load
from scripts import benchmark, compare_decoders, parity, peers
from scripts.exported import ExportedStep
from tests.helpers import ROOT


@pytest.mark.parametrize("form", ["published", "converted", "without vocabulary", "with generation settings"])
def test_parity_says_that_equal_is_equal(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """Settings in the folder must not leak into the comparison: they made equal networks differ."""
    folder = Path(shutil.copytree(published, tmp_path / "copy"))
    if form == "converted":
        convert(published, tmp_path / "ours")
        folder = tmp_path / "ours"
    elif form == "without vocabulary":
        (folder / "vocab.json").unlink()
        (folder / "merges.txt").unlink()
    elif form == "with generation settings":
        settings = {"do_sample": True, "repetition_penalty": 2.0, "top_k": 3, "eos_token_id": 4}
        (folder / "generation_config.json").write_text(json.dumps(settings))
    assert parity.main([str(folder)]) == 0
    *table, last = capsys.readouterr().out.strip().split("\n")
    assert json.loads(last)["equal"] is True
    assert not [line for line in table if "DIFFER" in line]
    names = ("embeddings", "block 0 attention", "block 1", "final norm", "logits", "cached", "greedy", "sampled")
    assert all(any(line.startswith(name) for line in table) for name in names)
    assert json.loads(last)["skipped"] == (["token ids", "whole replies"] if form == "without vocabulary" else [])


def test_parity_names_the_first_layer_that_differs(
    published: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = verify.load

    def faulty(*arguments: Any, **options: Any) -> GPT2:
        network = honest(*arguments, **options)
        with torch.no_grad():
            network.blocks[1].attention.output.bias[0] += 1e-3
        return network

    monkeypatch.setattr(verify, "load", faulty)
    assert parity.main([str(published)]) == 1
    lines = capsys.readouterr().out.split("\n")
    marked = [line for line in lines if "the first that differs" in line]
    assert len(marked) == 1
    assert marked[0].startswith("block 1 attention")
    assert any(line.startswith("block 0 ") and "equal" in line for line in lines)


def test_parity_of_nothing_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main(["gone"]) == 1
    assert capsys.readouterr().err.startswith("parity: error: there is no folder or file 'gone'")


def test_rivals_are_measured_in_turn(capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []

    def rival(name: str, seconds: list[float]) -> Any:
        return lambda: (order.append(name), seconds.pop(0))[1]

    result = benchmark.alternate({"a": rival("a", [9, 1, 3, 2]), "b": rival("b", [9, 4, 4, 4])}, 3)
    assert order == ["a", "b"] * 4
    assert result["median_s"] == {"a": 2, "b": 4}  # the first run of each is not counted
    assert "2.00 x" in capsys.readouterr().out


PEERS = [("ours", "float32+int8"), ("ours", peers.STORED_SMALLER), ("transformers", "float32"), ("CTranslate2", "int8")]


@pytest.mark.parametrize("name", PEERS, ids=str)
def test_a_peer_is_timed_in_a_process_of_its_own(published: Path, tmp_path: Path, name: tuple[str, str]) -> None:
    assert name in peers.installed()
    convert(published, tmp_path / "ours")
    shutil.copytree(published, tmp_path / "published")
    with peers.served(*name, tmp_path / "published", tmp_path / "ours") as run:
        for new, (first, rest, ids) in ((4, run([1, 2, 3], 4)), (2, run([5], 2))):
            assert len(ids) == new + 1
            assert 0 < first < 60
            assert abs(rest) < 60  # of two whole replies the difference, which may be below 0 where both are short


EXACT_PEERS = [  # by the package that it needs
    ("ours", "float32", "dialogpt"), ("CTranslate2", "float32", "ctranslate2"), ("llama.cpp", "f32", "llama_cpp"),
    ("ONNX Runtime", "float32", "onnxscript"), ("OpenVINO", "f32", "nncf"),
    ("MLX", "float32", "mlx_lm"),
]  # fmt: skip


@pytest.mark.integration
@pytest.mark.parametrize(("name", "precision", "package"), EXACT_PEERS)
def test_peers_in_float32_generate_the_tokens_of_transformers(
    trained: Path, tmp_path: Path, name: str, precision: str, package: str
) -> None:
    """With trained weights, as fresh ones repeat a token. A second prompt follows, for caches that are not emptied.

    Neither reply ends within eight tokens: two of the peers are kept from ending, and the others are not.
    """
    pytest.importorskip(package)
    expected = peers.LOADERS["transformers"](trained, "float32")
    published = Path(shutil.copytree(trained, tmp_path / "published"))
    convert(published, tmp_path / "ours")
    with peers.served(name, precision, published, tmp_path / "ours") as run:
        for prompt in ([31, 99, 7, 250, 12, 5], [8, 400]):
            ids = run(prompt, 7).ids
            assert len(set(ids)) > 2
            assert ids == expected(prompt, 7).ids


def test_the_cache_of_an_exported_step_gives_the_logits_of_the_network(published: Path) -> None:
    network = load(published, trainable=True)
    step = ExportedStep(network)
    ids = torch.randint(0, network.config.vocab_size, (1, 9), generator=torch.Generator().manual_seed(0))
    past = [torch.zeros(1, network.config.n_head, 0, network.config.head_dim)] * (2 * network.config.n_layer)
    with torch.no_grad():
        expected = network(ids)
        for start, end in ((0, 4), (4, 5), (5, 9)):
            logits, *past = step(ids[:, start:end], torch.zeros(1, dtype=torch.int32), *past)
            assert torch.allclose(logits, expected[:, end - 1], atol=1e-5)


def test_peers_are_chosen_by_name_or_with_a_precision() -> None:
    ours = [each for each in peers.installed() if each[0] == "ours"]
    assert benchmark.chosen_peers("") == peers.installed()
    assert benchmark.chosen_peers("ours") == ours
    assert benchmark.chosen_peers("transformers float32, ours int8") == [("ours", "int8"), ("transformers", "float32")]
    with pytest.raises(
        DialogueError, match="^float16, theirs is no peer that is installed here; there are CTranslate2"
    ):
        benchmark.chosen_peers("theirs,float16,ours")
    with pytest.raises(SystemExit):
        benchmark.main(["start", "--peers", "ours"])


def test_figures_of_other_tokens_are_refused() -> None:
    same = {("transformers", "float32"): [1, 2], ("llama.cpp", "f32"): [1, 2]}
    benchmark.require_equal(same)
    benchmark.require_equal({("ours", "float32"): [3]})  # alone
    benchmark.require_equal({})
    with pytest.raises(DialogueError, match=r"^llama\.cpp generated other tokens in float32 than ours"):
        benchmark.require_equal({("ours", "float32"): [1], ("llama.cpp", "f32"): [2]})
    with pytest.raises(DialogueError, match="^ONNX Runtime generated other tokens in float32 than transformers"):
        benchmark.require_equal(same | {("ONNX Runtime", "float32"): [1, 3]})


def test_a_peer_that_fails_says_how_to_see_why(tmp_path: Path) -> None:
    with (
        peers.served("ours", "int8", tmp_path, tmp_path) as run,
        pytest.raises(RuntimeError, match=r"ours int8 ended; run it by hand: .*-m scripts.peers ours int8"),
    ):
        run([1], 1)


def test_decoders_are_compared_in_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the training, which takes minutes: tiny, marked as one, stands for the reverse model."""
    folder = tmp_path / "a folder's {name}"
    trained: list[int] = []

    def stage(run: Path, train: list[Any], valid: list[Any], flags: list[str]) -> int:
        assert "--reverse" in flags
        trained.extend((len(train), len(valid)))
        shutil.copytree(ROOT / "weights" / "tiny", run / "best")
        config = json.loads((run / "best" / "config.json").read_text())
        (run / "best" / "config.json").write_text(json.dumps(config | {"reverse": True}))
        return 0

    monkeypatch.setattr(compare_decoders, "stage", stage)
    assert compare_decoders.main([str(folder), "--dialogues", "2"]) == 0
    learned, held_out = trained
    assert learned > 10 * held_out > 0
    shown = capsys.readouterr().out
    assert "2 dialogues" in shown
    heads = [cell.strip() for cell in next(line for line in shown.splitlines() if "greedy" in line).split("|")]
    assert heads[2:7] == list(compare_decoders.SYSTEMS)
    assert (folder / "table" / "report.html").exists()
    monkeypatch.setattr(compare_decoders, "stage", lambda *arguments: 130)
    assert compare_decoders.main([str(folder)]) == 130  # interrupted while it trains
