"""The forms in which people keep fine-tunes: each loads to the bit, or is refused in the sentence that helps."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2LMHeadModel, GPT2Tokenizer

from dialogpt import Chat, Tokenizer
from dialogpt.cli.main import main
from dialogpt.errors import DialogueError
from dialogpt.networks import require_same_vocabulary
from dialogpt.weights import CheckpointError, convert, export, export_gguf, load, load_ranking_head, open_checkpoint
from tests.helpers import same_weights, their_model, weights_of, write_published

State = dict[str, Tensor]
IDS = torch.arange(40).view(2, 20) * 13 % 557


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in float64, as transformers writes it."""
    folder = tmp_path_factory.mktemp("base") / "base"
    write_published(folder, n_embd=128, n_head=2, n_positions=64, dtype=torch.float64)
    return folder


@pytest.fixture(scope="module")
def state(base: Path) -> State:
    return load_file(base / "model.safetensors")


def beside(base: Path, folder: Path, *without: str) -> Path:
    """A copy of a checkpoint without its weights."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("model.safetensors", *without))
    return folder


def logits(source: Any) -> Tensor:
    with torch.inference_mode():
        return load(source, dtype="float64")(IDS)


def same_as_theirs(folder: Path) -> None:
    """See that a folder computes what transformers computes from it, to 1e-9 of the largest logit."""
    theirs = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.inference_mode():
        expected = theirs(IDS).logits
    assert float((logits(folder) - expected).abs().max() / expected.abs().max()) < 1e-9


# ---- names and containers ----


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "_orig_mod.module.",
        "module._orig_mod.",
        "_module.",
        "model.",
        "module.module.",
        "model._orig_mod.",
    ],
)
def test_the_prefixes_that_training_leaves_are_stripped(base: Path, state: State, tmp_path: Path, prefix: str) -> None:
    folder = beside(base, tmp_path / "copy")
    save_file({prefix + name: tensor for name, tensor in state.items()}, folder / "model.safetensors")
    assert same_weights(folder, base, "float64")


@pytest.mark.parametrize("prefix", ["network.", "chatbot.gpt2.", "model.lm."])
def test_a_network_inside_a_module_of_any_name_is_found(base: Path, state: State, tmp_path: Path, prefix: str) -> None:
    """A LightningModule holds its network under any name, next to its own metrics and losses."""
    folder = beside(base, tmp_path / "copy")
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    torch.save({"state_dict": {**wrapped, "accuracy.total": torch.ones(1)}}, folder / "last.ckpt")
    assert same_weights(folder, base, "float64")
    assert "outside the network" in open_checkpoint(folder).ignored["accuracy.total"]
    (folder / "config.json").unlink()
    assert open_checkpoint(folder).config.n_embd == 128
    two = {**wrapped, **{f"teacher.{name}": tensor for name, tensor in state.items()}}
    torch.save({"state_dict": two}, folder / "last.ckpt")
    with pytest.raises(CheckpointError, match="not those of a GPT-2"):
        open_checkpoint(folder)


def test_torch_compile_writes_a_prefix_of_its_own(base: Path, tmp_path: Path) -> None:
    folder = beside(base, tmp_path / "copy")
    compiled = torch.compile(GPT2LMHeadModel.from_pretrained(base))
    torch.save(compiled.state_dict(), folder / "pytorch_model.bin")
    assert same_weights(folder, base, "float64")


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3)}, 1: {"exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 1e-4}]}
STATES: dict[str, tuple[str, Callable[[State], dict[str, Any]]]] = {
    "Lightning": (
        "epoch=1-step=500.ckpt",
        lambda state: {
            "epoch": 1,
            "state_dict": {f"model.{name}": tensor for name, tensor in state.items()},
            "hyper_parameters": argparse.Namespace(lr=1e-4),
            "callbacks": {("a", "tuple"): {"best": 0.5}},
            "optimizer_states": [OPTIMIZER],
        },
    ),
    "a script's": ("checkpoint.pt", lambda state: {"model": state, "optimizer": OPTIMIZER, "step": 3}),
    "DeepSpeed's": (
        "mp_rank_00_model_states.pt",
        lambda state: {"module": state, "optimizer": None, "dp_world_size": 2},
    ),
    "two levels down": (
        "last.pt",
        lambda state: {"state": {"model_state_dict": state}, "rng": {"cuda": torch.ones(2)}},
    ),
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("form", STATES)
def test_a_training_state_loads_its_weights(base: Path, state: State, tmp_path: Path, form: str, old: bool) -> None:
    """Classes in hyper-parameters are never built, and an optimizer's integer keys change nothing."""
    folder = beside(base, tmp_path / "copy")
    name, make = STATES[form]
    torch.save(make(state), folder / name, _use_new_zipfile_serialization=not old)
    torch.save({"x": 1}, folder / "random_states_0.pkl")
    assert same_weights(folder, base, "float64")
    ignored = open_checkpoint(folder).ignored
    assert ignored
    assert set(ignored.values()) == {"not weights, but other state of the training run"}


def test_lightning_itself_writes_such_a_file(base: Path, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

    class Bot(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, options: argparse.Namespace) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = GPT2LMHeadModel.from_pretrained(base)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters())

    folder = beside(base, tmp_path / "copy")
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", barebones=False)
    trainer.strategy.connect(Bot(argparse.Namespace(lr=1.0)))
    trainer.save_checkpoint(folder / "last.ckpt")
    assert same_weights(folder, base, "float64")


def test_code_among_the_weights_is_refused(base: Path, state: State, tmp_path: Path) -> None:
    folder = beside(base, tmp_path / "copy")
    torch.save({"x": argparse.Namespace(), **state}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"would run code when loaded \(argparse.Namespace\)"):
        open_checkpoint(folder)


@pytest.mark.parametrize("form", ["model.safetensors", "archive", "old"])
def test_weights_in_float8_are_named(base: Path, state: State, tmp_path: Path, form: str) -> None:
    """A pickle of them was reported to run code, and safetensors not to fit its config."""
    folder = beside(base, tmp_path / "copy")
    rounded = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in state.items()}
    if form == "model.safetensors":
        save_file({**state, "wte.weight_scale": torch.ones(1), **rounded}, folder / form)
    else:
        torch.save(rounded, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form == "archive")
    with pytest.raises(CheckpointError, match=r"holds tensors of (F8_E4M3|float8_e4m3fn); expected float64.*rounded"):
        open_checkpoint(folder)


def test_an_optimizer_in_float8_is_no_obstacle(base: Path, state: State, tmp_path: Path) -> None:
    folder = beside(base, tmp_path / "copy")
    moments = {0: {"exp_avg": torch.ones(3).to(torch.float8_e5m2)}}
    torch.save({"state_dict": dict(state), "optimizer_states": [{"state": moments}]}, folder / "last.ckpt")
    assert same_weights(folder, base, "float64")


def test_several_sets_of_weights_are_named(base: Path, state: State, tmp_path: Path) -> None:
    folder = beside(base, tmp_path / "copy")
    torch.save({"teacher": dict(state), "student": dict(state)}, folder / "both.pt")
    with pytest.raises(CheckpointError, match="several dictionaries of tensors .'teacher', 'student'.; save the one"):
        open_checkpoint(folder)


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt_keeps_its_matrices_the_other_way_round(tmp_path: Path, bias: bool) -> None:
    """(out, in), with the exact GELU, and without a config.json; `bias=False` becomes zeros.

    The best loss is a tensor in what train.py saves; the whole file was taken for a state_dict, and refused.
    """
    theirs = their_model(vocab_size=50304, n_embd=64, n_head=1, n_layer=1, activation_function="gelu")
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.mul_(0 if name.endswith("bias") and not bias else 1)
    rows = {"attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"}
    state = {
        f"_orig_mod.{name}": (tensor.t() if any(name.endswith(row) for row in rows) else tensor).contiguous()
        for name, tensor in theirs.state_dict().items()
        if bias or not name.endswith(".bias")
    }
    settings = {"n_layer": 1, "n_head": 1, "n_embd": 64, "block_size": 48, "bias": bias, "vocab_size": 50304}
    beside = {"optimizer": OPTIMIZER, "model_args": settings, "iter_num": 5, "best_val_loss": torch.tensor(3.1)}
    torch.save({"model": state, **beside, "config": {}}, tmp_path / "ckpt.pt")
    ids = torch.arange(20)[None] * 97
    with torch.inference_mode():
        expected = theirs(ids).logits
        found = load(tmp_path / "ckpt.pt", dtype="float64")(ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    checkpoint = open_checkpoint(tmp_path / "ckpt.pt")
    assert checkpoint.vocabulary is not None  # GPT-2's, although there are more rows
    assert not checkpoint.heads_assumed


@pytest.mark.parametrize("old", [False, True])
def test_a_gpt2_under_litgpts_names_loads(base: Path, state: State, tmp_path: Path, old: bool) -> None:
    """Older versions keep query, key and value of each head together, which their name tells."""
    names = {
        "ln_1": "norm_1",
        "ln_2": "norm_2",
        "attn.c_attn": "attn.attn" if old else "attn.qkv",
        "attn.c_proj": "attn.proj",
        "mlp.c_fc": "mlp.fc",
        "mlp.c_proj": "mlp.proj",
    }
    written: State = {"lm_head.weight": state["transformer.wte.weight"].clone()}
    for name, tensor in state.items():
        matrix = tensor.t() if any(part in name for part in list(names)[2:]) and tensor.dim() == 2 else tensor
        if old and "c_attn" in name:
            matrix = matrix.reshape(3, 2, 64, *matrix.shape[1:]).transpose(0, 1).reshape(matrix.shape)
        for published, theirs in names.items():
            name = name.replace(f".{published}.", f".{theirs}.")
        written[name] = matrix.contiguous()
    folder = beside(base, tmp_path / "copy")
    torch.save({"model": written}, folder / "lit_model.pth")
    assert same_weights(folder, base, "float64")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="do not say which activation"):
        open_checkpoint(folder)
    del written["transformer.wpe.weight"]
    torch.save(written, folder / "lit_model.pth")
    with pytest.raises(CheckpointError, match="rotary positions and are no GPT-2"):
        open_checkpoint(folder)


def test_a_lost_bias_of_another_form_is_still_damage(base: Path, state: State, tmp_path: Path) -> None:
    folder = beside(base, tmp_path / "copy")
    save_file({name: t for name, t in state.items() if not name.endswith(".bias")}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing tensors: transformer.h.0"):
        open_checkpoint(folder)


def test_a_trainers_folder_says_which_checkpoints_it_holds(base: Path, tmp_path: Path) -> None:
    for steps in ("checkpoint-500", "checkpoint-1000"), ("global_step500", "global_step1000"):  # DeepSpeed's
        out = tmp_path / "runs" / steps[0]
        for step in steps:
            shutil.copytree(base, out / step)
        with pytest.raises(CheckpointError, match=f"{', '.join(steps)}; pass one of them, such as .*{steps[1]}"):
            open_checkpoint(out)
        open_checkpoint(out / steps[0])


# ---- heads ----


@pytest.mark.parametrize(
    "name",
    ["v_head.summary.weight", "multiple_choice_head.summary.bias", "lm_head.bias", "score.bias", "classifier.weight"],
)
def test_heads_that_no_reply_needs_are_ignored_with_a_reason(
    base: Path, state: State, tmp_path: Path, name: str
) -> None:
    folder = beside(base, tmp_path / "copy")
    save_file({**state, name: torch.ones(1)}, folder / "model.safetensors")
    assert list(open_checkpoint(folder).ignored) == [name]
    assert same_weights(folder, base, "float64")


def test_a_classifier_of_two_labels_is_ignored(base: Path, state: State, tmp_path: Path) -> None:
    folder = beside(base, tmp_path / "copy")
    save_file({**state, "score.weight": torch.ones(2, 128)}, folder / "model.safetensors")
    assert "several labels" in open_checkpoint(folder).ignored["score.weight"]
    with pytest.raises(CheckpointError, match="its score.weight is a classifier of several labels"):
        load_ranking_head(folder)  # "no score.weight" was the answer


@pytest.mark.parametrize("declared", [True, False])
def test_an_untied_head_is_kept_and_used(base: Path, state: State, tmp_path: Path, declared: bool) -> None:
    """Transformers 5 does not tie copies that differ, whatever the config declares."""
    folder = beside(base, tmp_path / "copy")
    content = json.loads((base / "config.json").read_text()) | {"tie_word_embeddings": not declared}
    (folder / "config.json").write_text(json.dumps(content))
    head = state["transformer.wte.weight"].flip(0).contiguous()
    save_file({**state, "lm_head.weight": head}, folder / "model.safetensors")
    same_as_theirs(folder)
    assert not torch.equal(logits(folder), logits(base))  # the fault: the head forgotten
    convert(folder, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back")
    for source in (tmp_path / "ours", tmp_path / "back"):
        assert torch.equal(logits(source), logits(folder))
    with torch.inference_mode():
        for dtype in ("float32", "int8"):
            fast = load(tmp_path / "ours", dtype=dtype)(IDS).double()
            assert float((fast - logits(folder)).abs().max() / logits(folder).abs().max()) < (
                0.1 if dtype == "int8" else 1e-4
            )


def test_a_tied_tensor_may_have_either_name(base: Path, state: State, tmp_path: Path) -> None:
    for name, config in (("lm_head.weight", "config.json"), ("lm_head.weight", "")):
        folder = beside(base, tmp_path / f"copy{config}", "config.json" if not config else "x")
        renamed = {name if old == "transformer.wte.weight" else old: tensor for old, tensor in state.items()}
        save_file(renamed, folder / "model.safetensors")
        assert same_weights(folder, base, "float64")


# ---- what the network computes ----


@pytest.mark.parametrize(
    "settings",
    [
        {"activation_function": "gelu"},
        {"activation_function": "relu"},
        {"activation_function": "silu"},
        {"activation_function": "gelu_fast"},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"reorder_and_upcast_attn": True},
    ],
)
def test_published_settings_of_the_network_are_computed(tmp_path: Path, settings: dict[str, Any]) -> None:
    their_model(vocab_size=557, n_positions=64, **settings).save_pretrained(tmp_path)
    same_as_theirs(tmp_path)
    convert(tmp_path, tmp_path / "ours")
    assert torch.equal(logits(tmp_path / "ours"), logits(tmp_path))
    with torch.inference_mode():  # also where the activation is packed with the product before it
        fast = load(tmp_path / "ours")(IDS).double()
    assert float((fast - logits(tmp_path)).abs().max() / logits(tmp_path).abs().max()) < 1e-4
    computed = {"reorder_and_upcast_attn", "gelu_fast"}.isdisjoint(map(str, [*settings, *settings.values()]))
    content = json.loads((tmp_path / "config.json").read_text())
    defaults = {"activation_function": "gelu_new", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
    (tmp_path / "config.json").write_text(json.dumps(content | defaults))  # the fault: the setting ignored
    if computed:
        with pytest.raises(AssertionError):
            torch.testing.assert_close(logits(tmp_path), logits(tmp_path / "ours"), rtol=0, atol=1e-6)


def test_n_ctx_is_n_positions(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "copy"))
    content = json.loads((folder / "config.json").read_text())
    content["n_ctx"] = content.pop("n_positions")
    (folder / "config.json").write_text(json.dumps(content))
    assert open_checkpoint(folder).config.n_positions == 64


# ---- tokens ----


def test_a_pad_token_without_a_row_is_dropped(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The commonest fine-tune: `add_special_tokens` without `resize_token_embeddings`."""
    tokenizer = GPT2Tokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(["<usr>"])
    folder = Path(shutil.copytree(base, tmp_path / "copy", ignore=shutil.ignore_patterns("vocab.json", "merges.txt")))
    tokenizer.save_pretrained(folder)
    ours = Tokenizer.load(folder)
    assert "tokens without an embedding row are dropped, as nothing was trained for them: <usr>, [PAD]" in caplog.text
    assert ours.encode("a [PAD] b") == tokenizer("a [PAD] b", split_special_tokens=True).input_ids
    with pytest.raises(DialogueError, match="the token '<usr>' has no embedding row"):
        ours.encode("hi <usr>")
    convert(folder, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()
    assert Tokenizer.load(tmp_path / "ours").vocabulary.ids == ours.vocabulary.ids
    assert GPT2Tokenizer.from_pretrained(tmp_path / "back").pad_token == "[PAD]"
    Chat.load(tmp_path / "ours", seed=1).reply("Hi!")


@pytest.mark.parametrize(
    "flags", [{"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"lstrip": True, "rstrip": True}]
)
def test_added_words_take_in_what_their_flags_say(base: Path, tmp_path: Path, flags: dict[str, bool]) -> None:
    from transformers import AddedToken

    tokenizer = GPT2Tokenizer.from_pretrained(base)
    tokenizer.add_tokens([AddedToken("<m>", normalized=False, **flags), AddedToken("you", normalized=False, **flags)])
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").unlink(missing_ok=True)
    from dialogpt.weights.vocabulary import read_vocabulary

    vocabulary = read_vocabulary(tmp_path)
    assert vocabulary is not None
    for text in ("a <m> b", "a<m>b", "  <m>  you your", "thank you", "<m><m> \t<m>", "you\n you you"):
        assert Tokenizer(vocabulary).encode(text) == tokenizer(text, split_special_tokens=True).input_ids, text


@pytest.mark.parametrize("form", ["sequence", "split", "prefix"])
def test_the_splitters_that_transformers_writes_are_read(base: Path, tmp_path: Path, form: str) -> None:
    from tokenizers import Regex, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from dialogpt.weights.vocabulary import SPLIT_PATTERN, read_vocabulary

    level = pre_tokenizers.ByteLevel(add_prefix_space=form == "prefix", use_regex=form != "split")
    parts = [pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated")] if form == "split" else []
    backend = GPT2Tokenizer.from_pretrained(base).backend_tokenizer
    backend.pre_tokenizer = level if form == "prefix" else pre_tokenizers.Sequence([*parts, level])
    backend.save(str(tmp_path / "tokenizer.json"))
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    vocabulary = read_vocabulary(tmp_path)
    assert vocabulary is not None
    for text in ("Hello, how are you?", " a  b", "", "x\n\ny 's 123"):
        assert Tokenizer(vocabulary).encode(text) == theirs(text, add_special_tokens=False).input_ids, text


def test_tokens_around_a_text_are_not_part_of_a_turn(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """RoBERTa's `<s>` and `</s>`, and templates: transformers' ids without the tokens that it adds, and a notice."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    from dialogpt.weights.vocabulary import read_vocabulary

    end = ("<|endoftext|>", 556)
    template = processors.TemplateProcessing(single="<|endoftext|> $A", pair=None, special_tokens=[end])
    forms = {
        "roberta": processors.RobertaProcessing(end, end, add_prefix_space=True),
        "bert": processors.BertProcessing(end, end),
        "template": template,
        "sequence": processors.Sequence([processors.ByteLevel(), template]),
    }
    for name, processor in forms.items():
        backend = GPT2Tokenizer.from_pretrained(base).backend_tokenizer
        backend.post_processor = processor
        (tmp_path / name).mkdir()
        backend.save(str(tmp_path / name / "tokenizer.json"))
        theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / name / "tokenizer.json"))
        caplog.clear()
        vocabulary = read_vocabulary(tmp_path / name)
        assert vocabulary is not None
        assert "puts <|endoftext|>" in caplog.text
        for text in ("Hello, how are you?", " a  b", ""):
            assert Tokenizer(vocabulary).encode(text) == theirs(text, add_special_tokens=False).input_ids, text
    path = tmp_path / "roberta" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["post_processor"] = {"type": "Reversing"}
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="it sets post_processor Reversing$"):
        read_vocabulary(tmp_path / "roberta")


def test_special_tokens_of_a_reply_are_not_shown(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "copy"))
    (folder / "special_tokens_map.json").write_text('{"additional_special_tokens": ["a"]}')
    tokenizer = Tokenizer.load(folder)
    ids = [*tokenizer.encode("ba"), tokenizer.vocabulary.ids["a"], 9999]
    assert tokenizer.reply_text(ids) == tokenizer.decode(ids[:1])
    tokenizer.skip_special_tokens = False
    assert tokenizer.reply_text(ids) == "baa\N{REPLACEMENT CHARACTER}"


def test_one_vocabulary_may_extend_the_other(base: Path, tmp_path: Path) -> None:
    theirs = GPT2LMHeadModel.from_pretrained(base)
    theirs.resize_token_embeddings(558)
    theirs.save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(base / name, tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 557}')
    require_same_vocabulary(Tokenizer.load(tmp_path), open_checkpoint(base))
    require_same_vocabulary(Tokenizer.load(base), open_checkpoint(tmp_path))
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<pad>"}')
    with pytest.raises(DialogueError, match="another vocabulary"):
        require_same_vocabulary(Tokenizer.load(base), open_checkpoint(tmp_path))


def test_merges_that_double_are_refused_at_once(base: Path, tmp_path: Path) -> None:
    """16 merges made a token of 65,536 bytes, whose check took minutes."""
    folder = Path(shutil.copytree(base, tmp_path / "copy"))
    ids = {token: n for token, n in json.loads((base / "vocab.json").read_text()).items() if n < 256}
    merges = []
    for power in range(16):
        half = "a" * 2**power
        merges.append(f"{half} {half}")
        ids[half * 2] = 256 + power
    ids["<|endoftext|>"] = 272
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("\n".join(merges))
    with pytest.raises(CheckpointError, match="tokens of up to 65,536 bytes, too long to be checked"):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    "name", ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
)
def test_a_dangling_link_is_no_absent_file(base: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "copy"))
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("gone")
    with pytest.raises(CheckpointError, match=f"{name} cannot be read: No such file"):
        open_checkpoint(folder)


def test_sentences_that_help(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is an address; name the checkpoint alone: microsoft/DialoGPT-small"):
        open_checkpoint("https://huggingface.co/microsoft/DialoGPT-small/tree/main")
    folder = Path(shutil.copytree(base, tmp_path / "copy", ignore=shutil.ignore_patterns("vocab.json", "merges.txt")))
    (folder / "vocab.txt").write_text("[PAD]")
    with pytest.raises(CheckpointError, match="vocab.txt, which is BERT's vocabulary"):
        open_checkpoint(folder)


# ---- adapters ----

ADAPTERS: dict[str, dict[str, Any]] = {
    "all matrices": {"target_modules": ["c_attn", "c_proj", "c_fc"]},
    "rslora and a pattern": {"target_modules": ["c_attn"], "use_rslora": True, "alpha_pattern": {"h.0.attn.c_attn": 3}},
    "saved modules": {"target_modules": ["c_attn"], "modules_to_save": ["wte", "ln_f"]},
    "an embedding": {"target_modules": ["wte", "c_attn"]},
    "a saved head": {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]},
    "patterns that are regular expressions, the first of which counts": {
        "target_modules": ["c_attn", "c_fc"],
        "alpha_pattern": {r"h\.[0]\.attn\.c_attn": 5, ".*c_fc": 9, "c_attn": 3, "h.1.attn.c_attn": 11},
    },
    "a pattern that is the end of a module's name, but no module": {
        "target_modules": ["c_attn", "c_fc"],
        "alpha_pattern": {"attn": 5, "fc": 9, "mlp.c_fc": 3},
    },
    "positions": {"target_modules": ["wpe", "wte"]},
    "a tied head, of which peft keeps the base's own too": {"target_modules": ["lm_head", "c_attn"]},
}


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_merges_as_in_peft(base: Path, tmp_path: Path, kind: str) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(r=4, lora_alpha=7, init_lora_weights=False, fan_in_fan_out=True, **ADAPTERS[kind])
    trained = peft.get_peft_model(GPT2LMHeadModel.from_pretrained(base, dtype=torch.float64), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.1)
    trained.save_pretrained(tmp_path / "adapter")
    network = GPT2LMHeadModel.from_pretrained(base, dtype=torch.float64)
    merged = peft.PeftModel.from_pretrained(network, tmp_path / "adapter").merge_and_unload().eval()
    checkpoint = open_checkpoint(base, adapter=tmp_path / "adapter")
    with torch.inference_mode():
        expected = merged(IDS).logits
    assert float((logits(checkpoint) - expected).abs().max() / expected.abs().max()) < 1e-12
    assert not torch.allclose(logits(base), expected)  # the fault: the adapter forgotten
    assert main(["convert", str(base), str(tmp_path / "ours"), "--adapter", str(tmp_path / "adapter")]) == 0
    assert torch.equal(logits(tmp_path / "ours"), logits(checkpoint))


def test_an_adapter_is_no_model_and_other_kinds_are_named(base: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(CheckpointError, match="is a PEFT adapter.*--adapter"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="of the kind IA3, and only LORA"):
        open_checkpoint(base, adapter=tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "use_dora": true, "r": 4, "lora_alpha": 4}')
    with pytest.raises(CheckpointError, match="sets use_dora, which is not implemented"):
        open_checkpoint(base, adapter=tmp_path)
    pissa = '{"peft_type": "LORA", "init_lora_weights": "pissa_niter_4", "r": 4, "lora_alpha": 4}'
    (tmp_path / "adapter_config.json").write_text(pissa)  # once merged without a word, into weights that it is not for
    with pytest.raises(CheckpointError, match="began with pissa_niter_4.*changes the base's own weights"):
        open_checkpoint(base, adapter=tmp_path)
    with pytest.raises(CheckpointError, match="is no PEFT adapter"):
        open_checkpoint(base, adapter=base)


@pytest.mark.parametrize("pattern", ["(", r"(\w*)*X", "a{99999999999}"])
def test_a_pattern_of_an_adapter_is_untrusted(base: Path, tmp_path: Path, pattern: str) -> None:
    pair = {"A": torch.ones(4, 128), "B": torch.ones(384, 4)}
    prefix = "base_model.model.transformer.h.0.attn.c_attn"
    save_file({f"{prefix}.lora_{half}.weight": pair[half] for half in pair}, tmp_path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "alpha_pattern": {f"{pattern}": 2}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    if pattern.endswith("X"):  # `re` takes minutes; here it matches, does not, or ends in a sentence
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"alpha_pattern": {pattern * 9: 2}}))
        with contextlib.suppress(CheckpointError):
            open_checkpoint(base, adapter=tmp_path)
        return
    with pytest.raises(CheckpointError, match="expected a regular expression"):
        open_checkpoint(base, adapter=tmp_path)


# ---- what leaves here ----


def test_an_export_has_a_chat_template_and_a_card(base: Path, tmp_path: Path) -> None:
    export(base, tmp_path / "out")
    theirs = GPT2Tokenizer.from_pretrained(tmp_path / "out")
    messages = [
        {"role": "user", "content": "Hi!"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "So?"},
    ]
    ids = theirs.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
    ours = Tokenizer.load(base)
    assert ids == [n for message in messages for n in (*ours.encode(message["content"]), ours.eos_id)]
    card = (tmp_path / "out" / "README.md").read_text()
    assert open_checkpoint(base).sha256() in card
    assert "Licence:** not known" in card


def test_a_gguf_holds_tokens_template_and_weights(base: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    export_gguf(base, tmp_path / "out", dtype="float32")
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    ours = weights_of(base)
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    assert torch.equal(tensors["blk.1.ffn_up.weight"].view(512, 128), ours["blocks.1.mlp.up.weight"])
    assert torch.equal(tensors["output.weight"].view(557, 128), ours["token_embedding.weight"])
    assert reader.get_field("tokenizer.chat_template") is not None
    assert len(reader.get_field("tokenizer.ggml.tokens").data) == 557
    for dtype in ("float16", "q8_0"):
        assert main(["convert", str(base), str(tmp_path / dtype), "--to", "gguf", "--dtype", dtype]) == 0


def test_llama_cpp_generates_the_same_tokens(base: Path, tmp_path: Path) -> None:
    llama = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    pytest.importorskip("gguf", reason="gguf is not installed")
    from dialogpt import GenerationConfig, generate

    export_gguf(base, tmp_path / "out", dtype="float32")
    theirs = llama.Llama(str(tmp_path / "out" / "model.gguf"), n_ctx=64, n_threads=1, verbose=False)
    ours = Tokenizer.load(base)
    text = "Hello, how are you?"
    prompt = [*ours.encode(text), ours.eos_id]
    assert theirs.tokenize(text.encode(), add_bos=False) == ours.encode(text)
    config = GenerationConfig(max_new_tokens=16, eos_token_id=557)
    expected = [step.id for step in generate(load(base), prompt, config)]
    theirs.eval(prompt)
    found = []
    for _ in expected:
        found.append(theirs.sample(temp=0.0))
        theirs.eval(found[-1:])
    assert found == expected


def test_llama_cpp_has_no_other_activations(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed")
    write_published(tmp_path / "relu", activation_function="relu")
    with pytest.raises(CheckpointError, match="does not compute activation_function relu"):
        export_gguf(tmp_path / "relu", tmp_path / "out")


# ---- the hub and devices ----


def test_a_device_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dialogpt.weights import device_check

    device = torch.device("cpu")  # stands for another one
    device_check.check_device(device, torch.float32, tmp_path)
    assert (tmp_path / "devices.json").exists()
    monkeypatch.setattr(device_check, "measured_difference", lambda *_: float("nan"))
    device_check.check_device(device, torch.float32, tmp_path)  # known
    with pytest.raises(CheckpointError, match="computes something else than the CPU in torch.bfloat16"):
        device_check.check_device(device, torch.bfloat16, tmp_path)
    monkeypatch.undo()
    for dtype in device_check.TOLERANCE:
        assert device_check.measured_difference(device, dtype) < device_check.TOLERANCE[dtype]


def test_a_new_driver_is_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key named the CUDA that torch was built for, which stays when the driver is updated."""
    from dialogpt.weights import device_check

    checked = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.setattr(device_check, "_NVIDIA", tmp_path / "version")
    monkeypatch.setattr(device_check, "measured_difference", lambda *_: checked.append(1) or 0.0)
    for driver in ("535.104", "535.104", "550.54"):
        (tmp_path / "version").write_text(f"NVRM version: {driver}\nGCC version\n")
        device_check.check_device(torch.device("cuda"), torch.float32, tmp_path)
    assert len(checked) == 2


def test_json_from_outside_is_bounded() -> None:
    from dialogpt.files import json_input

    for text, problem in (
        ("[" * 700_000, "more than 600,000"),
        ('{"x": 1e999}', "too large"),
        ("NaN", "no JSON number"),
    ):
        with pytest.raises(ValueError, match=problem):
            json_input.parse(text)
