"""Every form that DialoGPT was published in: container, names, dtype, output head; to the bit, or a sentence.

Each file is written by the library that wrote such files: transformers, safetensors, torch.save in both of its formats.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config as TheirConfig
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

from dialogpt import Chat
from dialogpt.cli.main import main
from dialogpt.weights import CheckpointError, convert, export, load, load_ranking_head, open_checkpoint
from dialogpt.weights.formats import ALIGNMENT
from tests.helpers import same_weights, their_model, weights_of, write_published

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose heads are 64 wide, as the published ones are."""
    folder = tmp_path_factory.mktemp("published") / "wide-bot"
    write_published(folder, n_embd=128, n_head=2, n_positions=32)
    return folder


# ---- containers ----


def save_shards(state: State, folder: Path, save: Callable[[State, Path], object], ending: str) -> None:
    names = list(state)
    halves = {
        f"{ending[0]}-1-of-2.{ending}": names[: len(names) // 2],
        f"{ending[0]}-2-of-2.{ending}": names[len(names) // 2 :],
    }
    for file, half in halves.items():
        save({name: state[name] for name in half}, folder / file)
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {name: file for file, half in halves.items() for name in half},
    }
    name = "model.safetensors.index.json" if ending == "safetensors" else "pytorch_model.bin.index.json"
    (folder / name).write_text(json.dumps(index))


def save_old(state: State, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


CONTAINERS: dict[str, Callable[[State, Path], object]] = {
    "safetensors": lambda state, folder: save_file(state, folder / "model.safetensors"),
    "safetensors in shards": lambda state, folder: save_shards(state, folder, save_file, "safetensors"),
    "bin": lambda state, folder: torch.save(state, folder / "pytorch_model.bin"),
    "old bin": lambda state, folder: save_old(state, folder / "pytorch_model.bin"),
    "bin in shards": lambda state, folder: save_shards(state, folder, torch.save, "bin"),
    "old bin in shards": lambda state, folder: save_shards(state, folder, save_old, "bin"),
    "pkl": lambda state, folder: torch.save(state, folder / "small_reverse.pkl"),
    "old pkl": lambda state, folder: save_old(state, folder / "GP2-pretrain-step-10000.pkl"),
}
NAMINGS: dict[str, Callable[[str], str]] = {
    "transformer.": lambda name: name,
    "no prefix": lambda name: name.removeprefix("transformer."),
    "module.": lambda name: f"module.{name}",
}
EMBEDDING = "transformer.wte.weight"


def nearly(tensor: Tensor) -> Tensor:
    """The same but for the last bit of one number."""
    changed = tensor.float().clone()
    changed[0, 0] = torch.nextafter(changed[0, 0], torch.tensor(torch.inf))
    return changed


HEADS: dict[str, Callable[[State], State]] = {
    "tied": lambda state: {},
    "lm_head": lambda state: {"lm_head.weight": state[EMBEDDING].clone()},
    "lm_head.decoder": lambda state: {"lm_head.decoder.weight": state[EMBEDDING].clone()},
    "untied lm_head": lambda state: {"lm_head.weight": state[EMBEDDING] + 1},
    "untied lm_head.decoder": lambda state: {"lm_head.decoder.weight": nearly(state[EMBEDDING])},
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_combination_loads_to_the_bit(
    published: Path, tmp_path: Path, container: str, naming: str, dtype: str, head: str
) -> None:
    """With the masks that older files hold; a head that differs is kept. transformers wrote `published`."""
    state = {name: tensor.to(DTYPES[dtype]) for name, tensor in load_file(published / "model.safetensors").items()}
    masks = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, 9, 9, dtype=torch.uint8).tril() for layer in range(2)}
    values = {f"transformer.h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in range(2)}
    whole = state | masks | values | HEADS[head](state)
    folder = tmp_path / "published"
    shutil.copytree(published, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    CONTAINERS[container]({NAMINGS[naming](name): tensor for name, tensor in whole.items()}, folder)
    report = convert(folder, tmp_path / "ours")
    assert report.dtype == ("float32" if head == "untied lm_head.decoder" else dtype)  # the widest of all
    own = HEADS[head](state) if head.startswith("untied") else {}
    assert len(report.ignored) == len(masks) + len(values) + (head != "tied" and not own)
    for source in (folder, tmp_path / "ours"):
        loaded = weights_of(source, dtype)
        assert ("output_head.weight" in loaded) == bool(own)
        assert {name: loaded[name] for name in weights_of(published, dtype)}.keys() <= loaded.keys()
    export(tmp_path / "ours", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    expected = state | dict.fromkeys(["lm_head.weight"] if own else [], next(iter(own.values()), None))
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[name].float(), expected[name].float()) for name in expected)


@pytest.mark.parametrize("container", ["safetensors", "bin", "old bin", "pkl", "old pkl"])
@pytest.mark.parametrize("alone", [True, False])
def test_without_a_config_the_sizes_are_the_tensors(
    wide: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, container: str, alone: bool
) -> None:
    """File names are no evidence: Microsoft's small_reverse.pkl is a medium model."""
    folder = tmp_path / "large"
    folder.mkdir()
    CONTAINERS[container](load_file(wide / "model.safetensors"), folder)
    (file,) = folder.iterdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(wide / name, folder)
    checkpoint = open_checkpoint(file if alone else folder)
    assert checkpoint.config == open_checkpoint(wide).config
    assert (
        "no config.json; its tensors' shapes say 2 layers, 128 wide, but not the heads: 2 heads of 64, as in every"
        in caplog.text
    )
    convert(file if alone else folder, tmp_path / "ours")
    assert same_weights(tmp_path / "ours", wide)
    Chat.load(tmp_path / "ours", seed=1).reply("Hi!")


def test_heads_of_another_width_must_be_said(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(shutil.copy(published / "model.safetensors", tmp_path))
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(published / name, tmp_path)
    with pytest.raises(
        CheckpointError, match=r"the width 24 is not a multiple of 64, .* pass the number of heads \(--n-head\)"
    ):
        open_checkpoint(file)
    assert open_checkpoint(file, n_head=3).config == open_checkpoint(published).config
    with pytest.raises(CheckpointError, match="n_embd must be a multiple of n_head, 5, got 24"):
        open_checkpoint(file, n_head=5)
    with pytest.raises(CheckpointError, match=r"n_head must be 3, as config.json says, got 4"):
        open_checkpoint(published, n_head=4)
    assert main(["reply", "--model", str(file), "--n-head", "3", "Hi!"]) == 0
    assert main(["convert", str(file), str(tmp_path / "ours"), "--n-head", "3", "--verify"]) == 0
    assert "DIFFER" not in capsys.readouterr().out


def test_gpt2s_vocabulary_goes_with_a_file_of_its_size(tmp_path: Path) -> None:
    network = their_model(vocab_size=50257, n_embd=64, n_head=1, n_layer=1, dtype=torch.float32)
    torch.save(network.state_dict(), tmp_path / "small_ft.pkl", _use_new_zipfile_serialization=False)
    checkpoint = open_checkpoint(tmp_path / "small_ft.pkl")
    assert checkpoint.vocabulary is not None
    assert (checkpoint.config.eos_token_id, checkpoint.vocabulary.eos_id) == (50256, 50256)


def test_a_config_that_contradicts_the_tensors_names_both(wide: Path, tmp_path: Path) -> None:
    """Microsoft's link to large's config led to that of a 1542M model."""
    folder = Path(shutil.copytree(wide, tmp_path / "copy"))
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"n_embd": 1600, "n_head": 25, "n_layer": 48}))
    with pytest.raises(
        CheckpointError, match=r"n_layer 48, the tensors have 2 layers; .* is \[557, 128\] and the config asks "
    ):
        open_checkpoint(folder)
    (folder / "config.json").unlink()
    open_checkpoint(folder)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["a.pkl", "b.pkl"], r"holds several files of weights \(a.pkl, b.pkl\); pass the one that is meant"),
        (
            ["tf_model.h5"],
            "tf_model.h5 is TensorFlow's weights, which is not read here: fetch the model.safetensors or",
        ),
        (["flax_model.msgpack"], "is Flax's weights"),
        (
            ["checkpoint", "model.ckpt.index", "model.ckpt.meta"],
            "OpenAI's original TensorFlow .* openai-community/gpt2",
        ),
        (["rust_model.ot"], "rust-bert's weights"),
        (["DialoGPT.Q8_0.gguf"], "llama.cpp's weights"),
        (["model.safetensors.gz"], "a packed file, which is not read here: unpack it first"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "shards .* without their index"),
        ([f"{n}.pkl" for n in range(6)], r"several files of weights \(0.pkl, 1.pkl, 2.pkl, 3.pkl and 2 more\)"),
        (
            ["zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_model_states.pt"],
            r"a shard of DeepSpeed's ZeRO-3, .* python zero_to_fp32.py \. MERGED",
        ),
        (["zero_pp_rank_0_mp_rank_00_model_states.pt"], "a shard of DeepSpeed's ZeRO-3"),
        (["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"], "a network that was divided among 2 GPUs"),
        (["training_args.bin", "optimizer.pt", "README.md"], "has no weights; expected one of model.safetensors"),
        ([], "has no weights"),
    ],
)
def test_what_is_not_read_is_named_with_what_helps(tmp_path: Path, files: list[str], sentence: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(CheckpointError, match=sentence):
        open_checkpoint(tmp_path)
    if len(files) == 1:
        with pytest.raises(CheckpointError, match=sentence):
            open_checkpoint(tmp_path / files[0])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "only git's pointer .* git lfs pull"),
        (b"\n<!doctype html><html>", "is a web page, not weights; fetch the file itself"),
    ],
)
def test_what_was_fetched_instead_is_recognised(wide: Path, tmp_path: Path, content: bytes, sentence: str) -> None:
    """Fetching it again in the same way would bring the same."""
    for name in ("pytorch_model.bin", "model.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=sentence):
            open_checkpoint(tmp_path / name)
        with pytest.raises(CheckpointError, match=sentence):
            open_checkpoint(tmp_path)


def test_heads_that_were_assumed_are_not_called_proved(
    wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every comparison agrees on a wrong number of heads, as both sides assume it."""
    for name in ("model.safetensors", "vocab.json", "merges.txt"):
        shutil.copy(wide / name, tmp_path)
    assert main(["convert", str(tmp_path), str(tmp_path / "ours"), "--verify"]) == 0
    assert re.search("^heads +-  +2 of 64 are assumed; no file says", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("old", [True, False])
def test_parameters_of_a_network_are_tensors_too(wide: Path, tmp_path: Path, old: bool) -> None:
    """What state_dict(keep_vars=True) gives: transformers 5 hangs notes on its parameters, which torch.save keeps."""
    state = GPT2LMHeadModel.from_pretrained(wide).state_dict(keep_vars=True)
    torch.save(state, tmp_path / "small.pkl", _use_new_zipfile_serialization=not old)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(wide / name, tmp_path)
    assert same_weights(tmp_path, wide)


def test_numbers_of_the_older_format_are_aligned_when_used(wide: Path, tmp_path: Path) -> None:
    """They lie at any byte there, and float32 products of misaligned rows differ in the last bit."""
    save_old(load_file(wide / "model.safetensors"), tmp_path / "small.pkl")
    for name, tensor in open_checkpoint(tmp_path / "small.pkl").tensors.items():
        assert tensor.read().data_ptr() % ALIGNMENT == 0, name


def test_a_header_whose_length_looks_like_text_is_no_web_page(wide: Path, tmp_path: Path) -> None:
    """A header of 15,392 bytes begins with a space and a "<", and GPT-2 small's is about as long."""
    state = load_file(wide / "model.safetensors")
    save_file(state, tmp_path / "model.safetensors", {"note": ""})
    length = int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
    save_file(state, tmp_path / "model.safetensors", {"note": "x" * (0x3C20 - length)})
    assert (tmp_path / "model.safetensors").read_bytes()[:2] == b" <"
    open_checkpoint(tmp_path / "model.safetensors")


def test_a_compiled_program_and_a_whole_network_are_refused(wide: Path, tmp_path: Path) -> None:
    """What torch.jit.save writes, as rust_model.ot is, and a pickled module."""
    module = torch.nn.Linear(2, 2)
    torch.jit.save(torch.jit.trace(module, torch.ones(1, 2)), tmp_path / "program.pt")
    with pytest.raises(CheckpointError, match=r"is a compiled program \(TorchScript, or a rust_model.ot\)"):
        open_checkpoint(tmp_path / "program.pt")
    for old in (True, False):
        torch.save(
            GPT2LMHeadModel.from_pretrained(wide), tmp_path / "whole.bin", _use_new_zipfile_serialization=not old
        )
        with pytest.raises(
            CheckpointError, match=r"run code when loaded \(transformers.*GPT2LMHeadModel\).*its state_dict"
        ):
            open_checkpoint(tmp_path / "whole.bin")


# ---- ranking heads ----


@pytest.fixture(scope="module")
def ranker(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as DialogRPT is published: a classifier of one label, its fp32 `.bin` written by torch."""
    folder = tmp_path_factory.mktemp("ranker") / "DialogRPT"
    shutil.copytree(wide, folder, ignore=shutil.ignore_patterns("model.safetensors", "config.json"))
    config = TheirConfig.from_pretrained(wide, num_labels=1)
    config.architectures = ["GPT2ForSequenceClassification"]
    network = GPT2ForSequenceClassification(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    config.save_pretrained(folder)
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def test_a_ranking_head_scores_as_in_transformers(ranker: Path, tmp_path: Path) -> None:
    network = GPT2ForSequenceClassification.from_pretrained(ranker, dtype=torch.float64).eval()
    ids = torch.randint(0, 557, (1, 20), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = network(ids).logits  # (1, 1)
    convert(ranker, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back")
    for source in (ranker, tmp_path / "ours", tmp_path / "back"):
        head = load_ranking_head(source, dtype="float64")
        with torch.inference_mode():
            score = load(source, dtype="float64").hidden(ids)[:, -1] @ head.T
        torch.testing.assert_close(score, expected, rtol=0, atol=1e-9)
    again = GPT2ForSequenceClassification.from_pretrained(tmp_path / "back", dtype=torch.float64).eval()
    with torch.inference_mode():
        assert torch.equal(again(ids).logits, expected)


def test_a_ranking_head_that_is_none_is_a_sentence(ranker: Path, wide: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no ranking head \(score.weight\); expected a DialogRPT"):
        load_ranking_head(wide)
    folder = Path(shutil.copytree(ranker, tmp_path / "copy"))
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save(state | {"score.weight": torch.ones(2, 128)}, folder / "pytorch_model.bin")
    assert "score.weight" in open_checkpoint(folder).ignored  # a classifier of two labels, whose network is used
    with pytest.raises(CheckpointError, match="has no ranking head"):
        load_ranking_head(folder)
    torch.save(state | {"score.weight": torch.full((1, 128), torch.nan)}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="score.weight holds 128 values that are NaN"):
        load(folder)
    with pytest.raises(CheckpointError, match="score.weight holds 128 values that are NaN"):
        load_ranking_head(folder)


# ---- other programs ----


def test_ctranslate2_computes_the_same_from_an_export(tmp_path: Path) -> None:
    """Its converter reads the exported folder; its greedy tokens are ours."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    from dialogpt import GenerationConfig, Tokenizer, generate

    write_published(tmp_path / "published", n_embd=128, n_head=2, n_positions=64)
    convert(tmp_path / "published", tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back")
    TransformersConverter(str(tmp_path / "back")).convert(str(tmp_path / "ct2"))
    generator = ctranslate2.Generator(str(tmp_path / "ct2"), compute_type="float32")
    tokenizer = Tokenizer.load(tmp_path / "ours")
    names = {n: token for token, n in open_checkpoint(tmp_path / "ours").vocabulary.ids.items()}  # type: ignore[union-attr]
    for text in ("Hello there", "What is it", "I am"):
        prompt = tokenizer.encode(text)
        settings = {"max_length": 16, "min_length": 16, "sampling_topk": 1, "include_prompt_in_result": False}
        (result,) = generator.generate_batch([[names[n] for n in prompt]], **settings)
        config = GenerationConfig(max_new_tokens=16, min_new_tokens=16)
        assert [step.id for step in generate(load(tmp_path / "ours"), prompt, config)] == result.sequences_ids[0]
