"""LoRA: gradients and results equal PEFT's in float64, files that both read, and runs that resume to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dialogpt.cli.main import main
from dialogpt.model import GPT2
from dialogpt.train.lora import PUBLISHED, adapters, attach, merged_parameters, write_adapter
from dialogpt.train.objective import Objective
from dialogpt.train.run_folder import Run
from dialogpt.weights import CheckpointError, load, open_checkpoint
from tests.helpers import write_published
from tests.train.runs import a_request, after, measured, train, weights_of, write_dialogues

TARGETS = "c_attn,c_proj,c_fc"
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "model"
    write_published(folder, n_positions=64, dtype=torch.float64)  # an adapter is merged in the dtype of its base
    return folder


def adapted(published: Path, targets: str = TARGETS) -> GPT2:
    """A network in float64 with adapters that do something."""
    model = load(published, dtype="float64", trainable=True)
    attach(model, 3, 5.0, targets)
    torch.manual_seed(1)
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.3)
    return model.eval()


def ids_of(model: GPT2) -> torch.Tensor:
    return torch.arange(24).remainder(model.config.vocab_size).view(2, 12) * 7 % model.config.vocab_size


@pytest.mark.parametrize("targets", ["c_attn", TARGETS])
def test_logits_and_gradients_are_pefts(published: Path, tmp_path: Path, targets: str) -> None:
    """Written here, loaded by peft onto transformers' network; every gradient of every adapter."""
    peft = pytest.importorskip("peft")
    from transformers import GPT2LMHeadModel

    model = adapted(published, targets)
    write_adapter(tmp_path, model, str(published))
    base = GPT2LMHeadModel.from_pretrained(published, dtype=torch.float64)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path, is_trainable=True, autocast_adapter_dtype=False).eval()
    ids = ids_of(model)
    assert torch.allclose(model(ids), theirs(ids).logits, atol=1e-9, rtol=0)
    Objective(model)(ids, ids).backward()
    logits = theirs(ids).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
    expected = {name: value.grad for name, value in theirs.named_parameters() if value.requires_grad}
    assert len(expected) == 2 * len(adapters(model))
    for name, layer in adapters(model).items():
        _, block, ours = name.split(".", 2)
        for part in ("lora_A", "lora_B"):
            grad = expected[f"base_model.model.transformer.h.{block}.{PUBLISHED[ours]}.{part}.default.weight"]
            found = getattr(layer, part).grad
            assert grad is not None
            assert torch.allclose(found, grad, atol=1e-9, rtol=1e-9), name
    assert all(value.grad is None for name, value in model.named_parameters() if "lora" not in name)


def test_an_adapter_of_peft_is_merged(published: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import GPT2LMHeadModel

    base = GPT2LMHeadModel.from_pretrained(published, dtype=torch.float64)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    theirs = peft.get_peft_model(base, config, autocast_adapter_dtype=False).eval()
    theirs.save_pretrained(tmp_path)
    model = load(open_checkpoint(published, adapter=tmp_path), dtype="float64", trainable=True)
    ids = ids_of(model)
    assert torch.allclose(model(ids), theirs(ids).logits, atol=1e-9, rtol=0)


def test_what_is_merged_equals_what_was_trained(published: Path, tmp_path: Path) -> None:
    model = adapted(published)
    write_adapter(tmp_path, model, "base")
    plain = load(open_checkpoint(published, adapter=tmp_path), dtype="float64", trainable=True)
    merged = load(published, dtype="float64", trainable=True)
    merged.load_state_dict(dict(merged_parameters(model)))
    ids = ids_of(model)
    assert torch.allclose(plain(ids), model(ids), atol=1e-9, rtol=0)
    assert torch.allclose(merged(ids), model(ids), atol=1e-9, rtol=0)


def test_an_adapter_of_another_base_is_a_sentence(published: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path, adapted(published), "base")
    write_published(tmp_path / "smaller", n_layer=1, n_embd=24)
    with pytest.raises(CheckpointError, match=r"does not fit .*Check that it was trained on this base \(base\)"):
        open_checkpoint(tmp_path / "smaller", adapter=tmp_path)


def test_a_run_with_adapters_resumes_to_the_bit_and_leaves_the_base_alone(tmp_path: Path) -> None:
    request = a_request(tmp_path, lora=2, lora_target="c_attn,c_fc", samples=0)
    train(tmp_path / "whole", request)
    train(tmp_path / "parts", request, stop=after(5))
    train(tmp_path / "parts", None)
    assert measured(tmp_path / "parts") == measured(tmp_path / "whole")
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    base = load(tmp_path / "model", dtype="float64").state_dict()
    changed = {name.split(".", 2)[2] for name in base if not torch.allclose(base[name], whole[name], atol=1e-6)}
    assert changed == {"attention.qkv.weight", "mlp.up.weight"}
    last = Run(tmp_path / "whole").checkpoints()[-1]
    assert {path.name for path in (last / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_training_goes_on_from_a_base_with_an_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--adapter` was on every command but train; a resumed run must begin with the same weights."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    theirs = write_published(tmp_path / "base", n_positions=64)
    lora = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    peft.get_peft_model(theirs, lora).save_pretrained(tmp_path / "adapter")
    write_dialogues(tmp_path / "train.jsonl", 40)
    out, adapter = tmp_path / "run", str(tmp_path / "adapter")
    words = ["train", str(tmp_path / "train.jsonl"), "--model", str(tmp_path / "base"), "--adapter", adapter]
    settings = ["--steps", "1", "--lr", "1e-20", "--dropout", "0", "--dtype", "float32"]
    assert main([*words, "--out", str(out), *settings]) == 0
    merged = load(open_checkpoint(tmp_path / "base", adapter=adapter), trainable=True).state_dict()
    trained, base = (load(folder, trainable=True).state_dict() for folder in (out, tmp_path / "base"))
    assert all(torch.allclose(trained[name], merged[name], atol=1e-6) for name in merged)
    changed = "blocks.0.attention.qkv.weight"
    assert not torch.allclose(merged[changed], base[changed])
    assert json.loads((out / "run.json").read_text())["adapter"] == adapter
    assert main(["train", "--resume", "--out", str(out), "--adapter", str(tmp_path / "another")]) == 1
    assert "was begun with --adapter" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "lora"), "--lora", "2"]) == 2
    assert "--adapter does not go with --lora" in capsys.readouterr().err
    assert main(["info", str(tmp_path / "base"), "--adapter", adapter]) == 0
    assert "base + adapter, sha256" in capsys.readouterr().out
