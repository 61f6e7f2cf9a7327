"""`convert --verify` of every form of a fine-tune: whole replies by each side's own recipe; and faults that it sees."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2LMHeadModel, GPT2Tokenizer

from dialogpt.cli import verify_replies
from dialogpt.cli.main import main
from dialogpt.weights import export
from tests.helpers import write_published

State = dict[str, Tensor]
MATRICES = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network whose replies differ from prompt to prompt: norms near one, a head of its own."""
    folder = tmp_path_factory.mktemp("base") / "base"
    network = write_published(folder, n_embd=64, n_head=1, n_positions=160, tie_word_embeddings=False)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".ln_" in name:
                parameter.add_(1) if name.endswith("weight") else parameter.mul_(0.1)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of the package, whose replies end."""
    folder = tmp_path_factory.mktemp("talker") / "talker"
    export("tiny", folder)
    (folder / "chat_template.jinja").unlink()
    return folder


def reply_row(text: str) -> str:
    """The table's row about whole replies."""
    found = re.search(r"^whole replies +(.*)$", text, re.MULTILINE)
    assert found is not None, text
    return found[1]


def prefixed(folder: Path, state: State) -> list[str]:
    names = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    save_file(names, folder / "model.safetensors")
    return []


def training_state(folder: Path, state: State) -> list[str]:
    (folder / "model.safetensors").unlink()
    torch.save({"epoch": 1, "state_dict": {f"model.{n}": t for n, t in state.items()}}, folder / "last.ckpt")
    return []


def nanogpt(folder: Path, state: State) -> list[str]:
    (folder / "model.safetensors").unlink()
    turned = {name: t.t().contiguous() if name.endswith(MATRICES) else t for name, t in state.items()}
    torch.save({"model": turned, "model_args": {"n_head": 1}}, folder / "ckpt.pt")
    return []


def litgpt(folder: Path, state: State) -> list[str]:
    (folder / "model.safetensors").unlink()
    names = {"ln_1": "norm_1", "ln_2": "norm_2", "attn.c_attn": "attn.qkv", "c_proj": "proj", "mlp.c_fc": "mlp.fc"}
    written = {}
    for name, tensor in state.items():
        turned = tensor.t().contiguous() if name.endswith(MATRICES) else tensor
        for published, theirs in names.items():
            name = name.replace(f"{published}.", f"{theirs}.")
        written[name] = turned
    torch.save(written, folder / "lit_model.pth")
    return []


def heads(folder: Path, state: State) -> list[str]:
    more = {"v_head.summary.weight": torch.ones(1, 64), "lm_head.bias": torch.ones(557)}
    save_file({**state, **more}, folder / "model.safetensors")
    return []


def activation(folder: Path, state: State) -> list[str]:
    edit_json(folder / "config.json", activation_function="gelu", scale_attn_by_inverse_layer_idx=True)
    return []


def pad_without_row(folder: Path, state: State) -> list[str]:
    tokenizer = GPT2Tokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    return []


def tokens_around(folder: Path, state: State) -> list[str]:
    from tokenizers import processors

    backend = GPT2Tokenizer.from_pretrained(folder).backend_tokenizer
    backend.post_processor = processors.RobertaProcessing(("<|endoftext|>", 556), ("<|endoftext|>", 556))
    backend.save(str(folder / "tokenizer.json"))
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    return []


def own_end(folder: Path, state: State) -> list[str]:
    add_tokens(folder, {"eos_token": "<eos>"})
    edit_json(folder / "config.json", eos_token_id=557)
    edit_json(folder / "generation_config.json", eos_token_id=557)
    return []


def speakers(folder: Path, state: State) -> list[str]:
    add_tokens(folder, {"additional_special_tokens": ["<speaker1>", "<speaker2>"]})
    return ["--turn-prefix", "<speaker1> ", "<speaker2> "]


def adapter(folder: Path, state: State) -> list[str]:
    """As peft writes it."""
    (folder / "adapter").mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "fan_in_fan_out": True, "target_modules": ["c_fc"]}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.transformer.h.0.mlp.c_fc.lora_{}.weight"
    pair = {name.format("A"): torch.ones(2, 64) * 0.1, name.format("B"): torch.ones(256, 2) * 0.1}
    save_file(pair, folder / "adapter" / "adapter_model.safetensors")
    return ["--adapter", str(folder / "adapter")]


FORMS: dict[str, Callable[[Path, State], list[str]]] = {
    form.__name__: form
    for form in (
        prefixed,
        training_state,
        nanogpt,
        litgpt,
        heads,
        activation,
        pad_without_row,
        tokens_around,
        own_end,
        speakers,
        adapter,
    )
}


def add_tokens(folder: Path, tokens: dict[str, Any]) -> None:
    """What a fine-tune does: tokens for the tokenizer, and rows for the network."""
    network, tokenizer = GPT2LMHeadModel.from_pretrained(folder), GPT2Tokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens(tokens)
    network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


@pytest.mark.parametrize("form", FORMS)
def test_replies_of_every_form_are_the_same(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "source"))
    flags = FORMS[form](folder, load_file(base / "model.safetensors"))
    assert main(["convert", str(folder), str(tmp_path / "ours"), "--verify", *flags]) == 0
    assert reply_row(capsys.readouterr().out) == "equal   32 and 32 tokens, each side by its own recipe"
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "hf", "--verify"]) == 0
    assert reply_row(capsys.readouterr().out) == "equal   32 and 32 tokens, each side by its own recipe"


def test_the_replies_of_the_tests_are_not_all_the_same(base: Path) -> None:
    """Else the comparison above could not fail."""
    network, tokenizer = GPT2LMHeadModel.from_pretrained(base), GPT2Tokenizer.from_pretrained(base)
    replies = [
        verify_replies._their_reply(network, base, tokenizer, tokenizer(text).input_ids, 12)
        for text in ("Hello.", "Hi", "What is it?")
    ]
    assert len({tuple(reply) for reply in replies}) == 3


def swap_end(folder: Path, *, in_network: bool = True) -> None:
    """An end token of its own, at the place of `<|endoftext|>` in the embedding."""
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    network, tokenizer = GPT2LMHeadModel.from_pretrained(folder), GPT2Tokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": "<eos>"})
    network.resize_token_embeddings(rows + 1, mean_resizing=False)
    with torch.no_grad():
        embedding = network.transformer.wte.weight
        embedding[rows] = embedding[rows - 1]
        embedding[rows - 1] = 0
    network.config.eos_token_id = rows if in_network else rows - 1
    network.generation_config.eos_token_id = rows if in_network else rows - 1
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_its_own_end_token_ends_replies_on_both_sides(
    talker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(talker, tmp_path / "source"))
    swap_end(folder)
    assert main(["convert", str(folder), str(tmp_path / "ours"), "--verify"]) == 0
    row = reply_row(capsys.readouterr().out)
    assert row.startswith("equal")
    assert not row.startswith("equal   32 and 32")  # they end


def test_an_end_that_the_settings_do_not_name_is_told(
    talker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """People change the tokenizer's and forget the config's: transformers then goes on to the limit."""
    folder = Path(shutil.copytree(talker, tmp_path / "source"))
    swap_end(folder, in_network=False)
    assert main(["convert", str(folder), str(tmp_path / "ours"), "--verify"]) == 0
    assert "transformers goes on behind the end of a turn" in reply_row(capsys.readouterr().out)


def test_a_lost_end_token_is_seen(
    talker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault of the issue: the separator was `<|endoftext|>`, whatever the tokenizer's end was, and all was well."""
    folder = Path(shutil.copytree(talker, tmp_path / "source"))
    swap_end(folder)
    from dialogpt.weights import vocabulary

    honest = vocabulary._read_added

    def forgetful(*arguments: Any) -> Any:
        added = honest(*arguments)
        added.eos_token = "<|endoftext|>"
        return added

    monkeypatch.setattr(vocabulary, "_read_added", forgetful)
    assert main(["convert", str(folder), str(tmp_path / "ours"), "--verify"]) == 1
    out, err = capsys.readouterr()
    assert reply_row(out).startswith("DIFFER  with its own recipe transformers replies")
    assert "do not use it" in err


def test_settings_of_the_folder_count_on_both_sides(
    talker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(talker, tmp_path / "source"))
    edit_json(folder / "generation_config.json", repetition_penalty=3.0, do_sample=True, temperature=0.3)
    assert main(["convert", str(folder), str(tmp_path / "ours"), "--verify"]) == 0
    assert reply_row(capsys.readouterr().out).startswith("equal")
    edit_json(folder / "generation_config.json", guidance_scale=2.0)
    assert main(["convert", str(folder), str(tmp_path / "again"), "--verify"]) == 0
    assert "not compared: guidance_scale must be omitted" in reply_row(capsys.readouterr().out)


def test_a_chat_template_of_its_own_is_told(talker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(talker, tmp_path / "source"))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    assert main(["convert", str(folder), str(tmp_path / "ours"), "--verify"]) == 0
    assert "its chat template makes another prompt" in reply_row(capsys.readouterr().out)
