"""Checkpoints from transformers and back: what loads, to the bit, and what is refused, in a sentence."""

from __future__ import annotations

import codecs
import copy
import errno
import gc
import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2LMHeadModel, GPT2Tokenizer

from dialogpt import Chat, Tokenizer
from dialogpt.cli.main import build_parser, main
from dialogpt.cli.options import generation_from
from dialogpt.weights import CheckpointError, convert, export, load, names, open_checkpoint
from dialogpt.weights.formats import ALIGNMENT, StoredTensor, read_safetensors, write_safetensors
from dialogpt.weights.sources import TINY
from tests.helpers import deadline, needs_posix, needs_proc, random_model, same_weights, seeded, write_published


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy of the small published checkpoint that a test may damage."""
    return Path(shutil.copytree(published, tmp_path / "copy"))


def state(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = state(folder)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def set_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# ---- what loads ----


def as_safetensors(folder: Path) -> None:
    """As it is."""


def as_shards(folder: Path) -> None:
    network = copy.deepcopy(GPT2LMHeadModel.from_pretrained(folder))  # the first one has the file mapped
    gc.collect()
    (folder / "model.safetensors").unlink()
    network.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def as_pickle(folder: Path) -> None:
    torch.save(GPT2LMHeadModel.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_ordered_pickle(folder: Path) -> None:
    tensors = state(folder)
    torch.save(OrderedDict(tensors), folder / "pytorch_model.bin")
    del tensors  # which have the file mapped
    (folder / "model.safetensors").unlink()


def without_prefix(folder: Path) -> None:
    rewrite(folder, lambda t: [t.__setitem__(n.removeprefix("transformer."), t.pop(n)) for n in list(t)])


def with_masks(folder: Path) -> None:
    masks = {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 8, 8).tril() for n in range(2)}
    values = {f"transformer.h.{n}.attn.masked_bias": torch.tensor(-1e4) for n in range(2)}
    rewrite(folder, lambda t: t.update(masks | values))


def with_head(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"].clone()}))


@pytest.mark.parametrize(
    "form", [as_safetensors, as_shards, as_pickle, as_ordered_pickle, without_prefix, with_masks, with_head]
)
def test_every_form_loads_to_the_same_bits(published: Path, folder: Path, form: Callable[[Path], None]) -> None:
    form(folder)
    assert same_weights(folder, published)
    convert(folder, folder.parent / "ours")
    assert same_weights(folder.parent / "ours", published)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_there_and_back_is_equal_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    theirs = write_published(tmp_path / "published", dtype=dtype, n_inner=11, layer_norm_epsilon=1e-3)
    report = convert(tmp_path / "published", tmp_path / "ours")
    assert report.dtype == str(dtype).removeprefix("torch.")
    export(tmp_path / "ours", tmp_path / "back")
    before, after = state(tmp_path / "published"), state(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == dtype for name in before)
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "back")
    assert again.config.n_inner == 11
    assert again.config.layer_norm_epsilon == 1e-3
    assert again.config.eos_token_id == theirs.config.eos_token_id
    assert again.dtype == dtype


def test_a_converted_checkpoint_is_what_the_design_says(published: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for path in published.iterdir():
        shutil.copy(path, tmp_path / "source")
    (tmp_path / "source" / "generation_config.json").write_text('{"max_new_tokens": 7}')
    report = convert(tmp_path / "source", tmp_path / "ours")
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {
        "model.safetensors", "config.json", "generation_config.json", "vocab.json", "merges.txt",
    }  # fmt: skip
    checkpoint = open_checkpoint(tmp_path / "ours")
    assert checkpoint.ours
    assert checkpoint.generation_config == {"max_new_tokens": 7}
    header = read_header(tmp_path / "ours" / "model.safetensors")
    assert header["__metadata__"] == {
        "format": "pt", "format_version": "1", "origin": "source", "origin_sha256": report.sha256, "dtype": "float32",
    }  # fmt: skip
    assert header["blocks.0.attention.qkv.weight"]["shape"] == [72, 24]  # (out, in)
    convert(tmp_path / "ours", tmp_path / "half", dtype="float16")
    again = read_header(tmp_path / "half" / "model.safetensors")["__metadata__"]
    assert (again["origin_sha256"], again["dtype"]) == (report.sha256, "float16")  # the origin stays the first one


def read_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header


def test_mixed_dtypes_are_held_by_the_widest(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({"transformer.wte.weight": t["transformer.wte.weight"].half()}))
    assert open_checkpoint(folder).dtype == torch.float32
    convert(folder, folder.parent / "ours")
    assert same_weights(folder.parent / "ours", folder)


def test_safetensors_go_before_a_pickle_beside_them(folder: Path, published: Path) -> None:
    torch.save({"a": torch.ones(1)}, folder / "pytorch_model.bin")
    assert same_weights(folder, published)


def test_the_checksum_is_of_all_shards(folder: Path) -> None:
    as_shards(folder)
    shards = sorted(folder.glob("model-*.safetensors"))
    whole = hashlib.sha256(b"".join(shard.read_bytes() for shard in shards)).hexdigest()
    assert open_checkpoint(folder).sha256() == whole


def test_a_prefix_in_the_middle_of_a_name_is_part_of_it(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({"h.transformer.x": torch.ones(1)}))
    with pytest.raises(CheckpointError, match="unknown tensors: h.transformer.x"):
        load(folder)


def test_a_checkpoints_own_history_comes_through(folder: Path) -> None:
    set_config(folder, history_tokens=77)
    convert(folder, folder.parent / "ours")
    export(folder.parent / "ours", folder.parent / "back")
    for name in ("copy", "ours", "back"):
        assert open_checkpoint(folder.parent / name).history_tokens == 77
        assert Chat.load(folder.parent / name).history_tokens == 77


def test_a_checkpoint_says_how_it_talks_best_and_who_it_is(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its own settings change the preset everywhere; what a person gives changes them again."""
    set_config(folder, chat={"temperature": 0.3, "no_repeat_ngram_size": 0}, about="A sailor.")
    convert(folder, folder.parent / "ours")
    export(folder.parent / "ours", folder.parent / "back")
    for name in ("copy", "ours", "back"):
        settings = Chat.load(folder.parent / name).generation
        assert (settings.temperature, settings.no_repeat_ngram_size, settings.top_k) == (0.3, 0, 50)
    options = build_parser().parse_args(["chat", "--model", str(folder), "--temperature", "0.7"])
    assert generation_from(options, open_checkpoint(folder)).temperature == 0.7
    assert generation_from(options, open_checkpoint(folder)).no_repeat_ngram_size == 0
    assert main(["info", str(folder.parent / "ours")]) == 0
    shown = capfd.readouterr().out
    assert re.search(r"^about +A sailor\.$", shown, re.MULTILINE)
    assert re.search(r"^chat settings +temperature 0.3, no_repeat_ngram_size 0$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"chat": 5}, "chat is '5', expected settings and their values"),
        ({"chat": {"temprature": 1}}, "chat settings that do not exist: temprature"),
        ({"chat": {"top_k": "many"}}, "top_k must be a non-negative integer, got 'many'"),
        ({"about": ["a"]}, r"about is .*, expected a sentence"),
    ],
)
def test_what_it_says_of_itself_is_checked(folder: Path, own: dict[str, object], sentence: str) -> None:
    set_config(folder, **own)
    with pytest.raises(ValueError, match=sentence):
        Chat.load(folder)


def test_an_exported_tokenizer_is_the_same_in_transformers(folder: Path) -> None:
    """Added and special tokens too, which vocab.json alone does not tell apart."""
    rewrite(folder, lambda t: t.update({"transformer.wte.weight": torch.ones(560, 24)}))
    set_config(folder, vocab_size=560)
    (folder / "added_tokens.json").write_text('{"<usr>": 557, "[PAD]": 558}')
    (folder / "special_tokens_map.json").write_text('{"pad_token": "[PAD]"}')
    convert(folder, folder.parent / "ours")
    export(folder.parent / "ours", folder.parent / "back")
    theirs = GPT2Tokenizer.from_pretrained(folder.parent / "back")
    text = "say <usr> and [PAD]<|endoftext|>"
    ids = Tokenizer.load(folder).encode(text)
    assert 557 in ids
    assert 558 not in ids
    assert theirs(text, split_special_tokens=True).input_ids == ids
    assert theirs(text).input_ids[-1] == 556


def test_a_folder_with_a_name_that_is_no_text(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xe9"))
    shutil.copytree(published, folder)
    monkeypatch.chdir(folder)
    convert(".", tmp_path / "ours")
    assert open_checkpoint(tmp_path / "ours").origin().name == "m\ufffd"


def test_what_the_config_says_besides_is_kept(folder: Path) -> None:
    """Labels, tokens and notes that the network does not use come through both conversions."""
    extras = {"bos_token_id": 5, "pad_token_id": 7, "task_specific_params": {"conversational": {"max_length": 1000}}}
    set_config(folder, **extras, eos_token_id=[556, 3])
    convert(folder, folder.parent / "ours")
    export(folder.parent / "ours", folder.parent / "back")
    for name in ("ours", "back"):
        content = json.loads((folder.parent / name / "config.json").read_text())
        assert {key: content[key] for key in extras} == extras
        assert content["eos_token_id"] == [556, 3]
    assert GPT2LMHeadModel.from_pretrained(folder.parent / "back").config.pad_token_id == 7


def test_other_models_names_for_the_sizes_are_read(folder: Path, published: Path) -> None:
    """Transformers takes num_attention_heads for n_head; to ignore it would be 12 heads, and wrong logits."""
    content = json.loads((folder / "config.json").read_text())
    content["num_attention_heads"] = content.pop("n_head")
    content["max_position_embeddings"] = content.pop("n_positions")
    content["hidden_size"], content["num_hidden_layers"] = content.pop("n_embd"), content.pop("n_layer")
    (folder / "config.json").write_text(json.dumps(content))
    assert open_checkpoint(folder).config == open_checkpoint(published).config
    set_config(folder, n_head=4)
    with pytest.raises(CheckpointError, match="num_attention_heads must be 4 like n_head, its other name, got 3"):
        open_checkpoint(folder)


@pytest.mark.parametrize("sizes", [{}, {"n_inner": 11}, {"n_layer": 3, "n_head": 1}])
def test_the_rules_shapes_are_the_networks(sizes: dict[str, int]) -> None:
    network = random_model(**sizes)
    letters = names.sizes(network.config)
    expected = {
        rule.ours.format(layer): tuple(letters[letter] for letter in rule.shape.split())
        for rule in names.RULES
        for layer in range(network.config.n_layer if "{" in rule.ours else 1)
    }
    assert expected == {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}


def test_a_file_loads_like_its_folder(published: Path) -> None:
    assert same_weights(published / "model.safetensors", published)


@needs_proc
def test_weights_are_mapped_and_held_once(published: Path, tmp_path: Path) -> None:
    """Each parameter is the file's mapped memory: nothing is copied, and no random weights were created before."""
    convert(published, tmp_path / "ours")
    network = load(tmp_path / "ours")
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "ours/model" in line]
    ranges = [tuple(int(end, 16) for end in entry[0].split("-")) for entry in maps]
    for name, parameter in network.named_parameters():
        assert any(low <= parameter.data_ptr() < high for low, high in ranges), name
        if parameter.numel() * 4 % ALIGNMENT == 0:
            assert parameter.data_ptr() % ALIGNMENT == 0, name
    assert not network.training


def test_a_network_of_ours_loads_without_reading_the_vocabulary(published: Path, tmp_path: Path) -> None:
    """Reading 50,000 tokens takes 20 MB that a network does not need; the tokenizer still sees the damage."""
    convert(published, tmp_path / "ours")
    (tmp_path / "ours" / "merges.txt").write_text("damaged")
    load(tmp_path / "ours")
    with pytest.raises(CheckpointError, match="merge 1 is 'damaged'"):
        Tokenizer.load(tmp_path / "ours")


def test_dtypes_and_devices_are_names(published: Path) -> None:
    assert load(published, dtype="bfloat16", trainable=True).final_norm.weight.dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match="no dtype 'int3'; expected one of float64"):
        load(published, dtype="int3")
    with pytest.raises(CheckpointError, match="device 'gpu' cannot be used here"):
        load(published, device="gpu")


def test_a_vocabulary_that_is_smaller_than_the_network_is_a_notice(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewrite(folder, lambda t: t.update({"transformer.wte.weight": torch.randn(600, 24)}))
    set_config(folder, vocab_size=600, rope_theta=1e4)
    open_checkpoint(folder)
    assert "43 embedding rows" in caplog.text
    assert "rope_theta" in caplog.text


def test_a_network_without_a_vocabulary_loads_with_a_notice(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    load(folder)
    assert "cannot read or write text" in caplog.text


def test_gpt2s_own_vocabulary_is_used_where_its_size_fits(folder: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    rewrite(folder, lambda t: t.update({"transformer.wte.weight": torch.randn(50257, 24)}))
    set_config(folder, vocab_size=50257)
    vocabulary = open_checkpoint(folder).vocabulary
    assert vocabulary is not None
    assert vocabulary.eos_id == 50256


# ---- what is refused ----


class Sneaky:
    """A pickle that runs a command when it is loaded by a plain unpickler."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/dialogpt-was-here",)


def run_code(folder: Path) -> None:
    torch.save({"transformer.wte.weight": Sneaky()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def compress(folder: Path) -> None:
    as_pickle(folder)
    plain, packed = folder / "pytorch_model.bin", folder / "packed"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    packed.replace(plain)


def changed_pickle(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """An archive as torch.save writes it, with the pickle in it changed."""

    def damage(folder: Path) -> None:
        as_pickle(folder)
        plain, changed = folder / "pytorch_model.bin", folder / "changed"
        with zipfile.ZipFile(plain) as source, zipfile.ZipFile(changed, "w") as target:
            for name in source.namelist():
                data = source.read(name)
                target.writestr(name, change(data) if name.endswith("data.pkl") else data)
        changed.replace(plain)

    return damage


def claim_more(data: bytes) -> bytes:
    """Let the pickle say that a storage of 24 numbers (K, 24, t: the end of its description) has 25."""
    assert b"K\x18t" in data
    return data.replace(b"K\x18t", b"K\x19t", 1)


def another_pickle(name: str) -> Callable[[Path], None]:
    """One more record, which torch would take for the one that was checked."""

    def damage(folder: Path) -> None:
        torch.save(state(folder), folder / "archive")  # the archive's folder is named for the file
        (folder / "archive").replace(folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        with warnings.catch_warnings(), zipfile.ZipFile(folder / "pytorch_model.bin", "a") as archive:
            warnings.simplefilter("ignore")
            archive.writestr(name, b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x10\x85R.")

    return damage


def two_directories(folder: Path) -> None:
    """Point the end of the archive at a directory other than the one before it."""
    as_pickle(folder)
    data = bytearray((folder / "pytorch_model.bin").read_bytes())
    data[-6:-2] = (int.from_bytes(data[-6:-2], "little") - 1).to_bytes(4, "little")
    (folder / "pytorch_model.bin").write_bytes(bytes(data))


def twice_in_shards(folder: Path) -> None:
    as_shards(folder)
    first, second, *_ = sorted(folder.glob("model-*.safetensors"))
    save_file(load_file(second) | dict([next(iter(load_file(first).items()))]), second)


def bare_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    (folder / "model.safetensors").unlink()


def pickled_list(folder: Path) -> None:
    torch.save([torch.zeros(2)], folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut(name: str, part: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        if name == "pytorch_model.bin":
            as_pickle(folder)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * part)])

    return damage


def index_to(target: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": target}}))

    return damage


def poison(value: float) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda t: t["transformer.h.1.mlp.c_fc.bias"].__setitem__(3, value))


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda folder: shutil.rmtree(folder), "there is no folder or file"),
    "empty folder": (lambda folder: [path.unlink() for path in folder.iterdir()], "has no weights; expected one of"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no weights; expected one of"),
    "empty config": (lambda folder: (folder / "config.json").write_text(""), "config.json is not valid JSON"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[1]"), "holds a JSON list"),
    "config is latin-1": (lambda folder: (folder / "config.json").write_bytes(b'{"a": "\xe9"}'), "is not UTF-8 text"),
    "wrong type": (lambda folder: set_config(folder, n_head="3", n_layer=[2]), "n_layer must.*n_head must.*'3'"),
    "other network": (lambda folder: set_config(folder, activation_function="tanh"), "activation_function must be"),
    "other format": (lambda folder: set_config(folder, format_version=99), "format version 99, this program reads 1"),
    "empty weights": (cut("model.safetensors", 0), r"\(0 bytes\) is not a whole safetensors file"),
    "cut header": (cut("model.safetensors", 0.01), "not a whole safetensors file"),
    "cut weights": (cut("model.safetensors", 0.7), "not a whole safetensors file.*fetch it again"),
    "cut pickle": (cut("pytorch_model.bin", 0.7), "is cut short or damaged"),
    "empty pickle": (
        lambda folder: ((folder / "model.safetensors").unlink(), (folder / "pytorch_model.bin").touch()),
        "empty, cut short",
    ),
    "bare pickle": (bare_pickle, "empty, cut short, or no file of tensors"),
    "a second pickle by another case": (another_pickle("archive/DATA.PKL"), "compressed or repeated records"),
    "a record twice": (another_pickle("archive/data/0"), "compressed or repeated records"),
    "a storage beyond its record": (changed_pickle(claim_more), "declares other sizes than its records have"),
    "two directories": (two_directories, "its end contradicts itself"),
    "a huge header": (
        lambda folder: (folder / "model.safetensors").write_bytes((5 << 20).to_bytes(8, "little") + b"{" * (6 << 20)),
        "declares a header of 5,242,880 bytes",
    ),
    "a huge config": (lambda folder: (folder / "config.json").write_bytes(b" " * (9 << 20)), "larger than 8 MiB"),
    "a tensor in two shards": (twice_in_shards, "holds tensors that another shard holds too"),
    "pickle that runs code": (run_code, r"would run code when loaded \(\w+\.system\); it was not loaded"),
    "compressed pickle": (compress, "compressed or repeated records"),
    "pickled list": (pickled_list, "does not hold a dictionary from names to tensors"),
    "missing tensor": (
        lambda folder: rewrite(folder, lambda t: (t.pop("transformer.h.0.ln_2.bias"), t.pop("transformer.ln_f.bias"))),
        "missing tensors: transformer.h.0.ln_2.bias, transformer.ln_f.bias",
    ),
    "missing layer": (
        lambda folder: rewrite(folder, lambda t: [t.pop(name) for name in list(t) if ".h.1." in name]),
        "the config says n_layer 2, the tensors have 1 layers",
    ),
    "huge declared network": (lambda folder: set_config(folder, n_layer=10**9), "says n_layer 1000000000, the tensors"),
    "extra tensor": (
        lambda folder: rewrite(folder, lambda t: t.update({"transformer.h.0.rotary.inv_freq": torch.ones(4)})),
        "unknown tensors: transformer.h.0.rotary.inv_freq",
    ),
    "twice": (
        lambda folder: rewrite(folder, lambda t: t.update({"wpe.weight": t["transformer.wpe.weight"].clone()})),
        "duplicate tensors",
    ),
    "wrong shape": (
        lambda folder: rewrite(folder, lambda t: t.update({"transformer.h.0.mlp.c_fc.weight": torch.ones(96, 24)})),
        r"transformer.h.0.mlp.c_fc.weight is \[96, 24\] and the config asks for \[24, 96\]",
    ),
    "wrong dtype": (
        lambda folder: rewrite(folder, lambda t: t.update({"transformer.ln_f.bias": torch.ones(24, dtype=torch.int8)})),
        "not float64, float32, bfloat16 or float16: transformer.ln_f.bias",
    ),
    "several problems": (
        lambda folder: rewrite(
            folder, lambda t: (t.pop("transformer.ln_f.bias"), t.update({"x": torch.ones(1), "y": torch.ones(1)}))
        ),
        "unknown tensors: x, y; missing tensors: transformer.ln_f.bias",
    ),
    "NaN": (poison(float("nan")), "transformer.h.1.mlp.c_fc.bias holds 1 values that are NaN or infinite"),
    "two NaNs": (
        lambda folder: rewrite(
            folder, lambda t: [t[f"transformer.{name}"].fill_(torch.nan) for name in ("ln_f.bias", "wpe.weight")]
        ),
        "transformer.ln_f.bias holds 24 values .*transformer.wpe.weight holds 3,072",
    ),
    "a layer and the embedding are missing": (
        lambda folder: rewrite(
            folder, lambda t: [t.pop(name) for name in list(t) if ".h.1." in name or name == "transformer.wte.weight"]
        ),
        "tensors have 1 layers; missing tensors: transformer.wte.weight",
    ),
    "a head of another dtype": (
        lambda folder: rewrite(folder, lambda t: t.update({"lm_head.weight": torch.ones(3, dtype=torch.int8)})),
        r"lm_head.weight is \[3\], and an output head is \[557, 24\]",
    ),
    "a name that is a template": (
        lambda folder: rewrite(folder, lambda t: t.update({"h.{}.ln_1.bias": t.pop("transformer.h.0.ln_1.bias")})),
        r"unknown tensors: h.\{\}.ln_1.bias; missing tensors: transformer.h.0.ln_1.bias",
    ),
    "a million layers of one tensor": (
        lambda folder: (
            set_config(folder, n_layer=1_000_000),
            rewrite(folder, lambda t: t.update({"h.999999.ln_1.bias": torch.ones(24)})),
        ),
        "says n_layer 1000000, the tensors have 3 layers",
    ),
    "huge widths": (lambda folder: set_config(folder, n_embd=3 << 40, vocab_size=10**30), "vocab_size must.*n_embd"),
    "widths whose product is huge": (
        lambda folder: set_config(folder, n_embd=3 << 28, n_inner=(1 << 31) - 1),
        "wrong shapes: transformer.wte.weight",
    ),
    "a number beyond floats": (lambda folder: set_config(folder, layer_norm_epsilon=10**400), "epsilon must be"),
    "a pipe as config": (
        lambda folder: ((folder / "config.json").unlink(), os.mkfifo(folder / "config.json")), "is not a plain file",
    ),
    "an endless device as config": (
        lambda folder: ((folder / "config.json").unlink(), (folder / "config.json").symlink_to("/dev/zero")),
        "is not a plain file",
    ),
    "ours as a pickle": (
        lambda folder: (as_pickle(folder), set_config(folder, format_version=1)),
        "is in our format, which is model.safetensors, and has pytorch_model.bin instead",
    ),
    "a file that is no checkpoint": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "is not a whole safetensors file",
    ),
    "infinity": (poison(float("-inf")), "holds 1 values that are NaN or infinite"),
    "two heads that differ": (
        lambda folder: rewrite(
            folder,
            lambda t: t.update({
                "lm_head.weight": t["transformer.wte.weight"] + 1,
                "lm_head.decoder.weight": t["transformer.wte.weight"] + 2,
            }),
        ),
        "duplicate tensors: lm_head",
    ),
    "large vocabulary": (
        lambda folder: [
            rewrite(folder, lambda t: t.update({"transformer.wte.weight": t["transformer.wte.weight"][:500]})),
            set_config(folder, vocab_size=500),
        ],
        "needs 557 embedding rows and the network has 500",
    ),
    "index outside": (index_to("../copy/model.safetensors"), "points outside its folder"),
    "index to nothing": (index_to("gone.safetensors"), "lacks files of weights: gone.safetensors"),
    "index to itself": (index_to(".."), "points outside its folder"),
    "empty index": (
        lambda folder: (folder / "model.safetensors").rename(folder / "model.safetensors.index.json").write_text("{}"),
        "no weight_map",
    ),
    "history of no tokens": (lambda folder: set_config(folder, history_tokens=0), "history_tokens is 0"),
}  # fmt: skip


POSIX_ONLY = ("a pipe as config", "an endless device as config")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=needs_posix) if case in POSIX_ONLY else case for case in REFUSED]
)
def test_what_cannot_be_used_is_one_sentence_and_leaves_nothing(folder: Path, case: str) -> None:
    damage, sentence = REFUSED[case]
    damage(folder)
    destination = folder.parent / "ours"
    guard = deadline() if case == "a pipe as config" else nullcontext()
    with guard, pytest.raises(CheckpointError, match=sentence) as raised:
        convert(folder, destination)
    assert "weights_only" not in str(raised.value)  # torch's advice is to load unsafely
    assert raised.value.__cause__ is None
    with pytest.raises(CheckpointError, match=sentence):
        load(folder)
    assert [path for path in folder.parent.iterdir() if path != folder] == []
    assert "\n" not in str(raised.value)
    assert not Path("/tmp/dialogpt-was-here").exists()


def test_a_sneaky_pickle_would_have_run(tmp_path: Path) -> None:
    """The test of the test: a plain unpickler does run the code that the loader above refuses."""
    mark = tmp_path / "ran"

    class Marks:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (mark,)

    pickle.loads(pickle.dumps(Marks()))
    assert mark.exists()


def test_a_hub_name_is_a_sentence_with_advice() -> None:
    with pytest.raises(CheckpointError, match="download config.json, the weights, vocab.json and merges.txt"):
        open_checkpoint("microsoft/DialoGPT-small")
    with pytest.raises(CheckpointError, match="there is no folder or file"):
        open_checkpoint("x" * 5000)


def test_float16_that_cannot_hold_a_weight_is_refused(folder: Path) -> None:
    poison(1e6)(folder)
    with pytest.raises(CheckpointError, match="has 1 values too large for float16; keep torch.float32"):
        convert(folder, folder.parent / "half", dtype="float16")
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("destination", "sentence"),
    [("a\0b", "null"), ("x" * 300, "cannot be written"), ("file/ours", "cannot be written")],
)
def test_a_destination_that_cannot_be_is_a_sentence(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, destination: str, sentence: str
) -> None:
    """Each system has its own words for why."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(CheckpointError, match=sentence):
        convert(published, destination)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_that_a_windows_editor_saved_are_read(folder: Path) -> None:
    """It begins them with a byte order mark; "not valid JSON" was the answer. Transformers takes no config with one."""
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes(codecs.BOM_UTF8 + (folder / name).read_bytes())
    assert open_checkpoint(folder).config.n_embd == 24
    (folder / "config.json").write_bytes(codecs.BOM_UTF8 + (folder / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="begins with a byte order mark.*save it as UTF-8 without one"):
        open_checkpoint(folder)


def test_parents_are_made_and_taken_away_again(folder: Path, tmp_path: Path) -> None:
    poison(float("nan"))(folder)
    with pytest.raises(CheckpointError, match="NaN"):
        convert(folder, tmp_path / "new" / "deep" / "ours")
    assert not (tmp_path / "new").exists()


def test_a_parent_that_was_made_and_filled_by_somebody_else_stays(published: Path, tmp_path: Path) -> None:
    """Two conversions into one new folder: the one that failed removed the result of the other."""

    def fill_the_disk(*_: object) -> None:
        (tmp_path / "new" / "theirs").mkdir()
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left on device"):
        convert(published, tmp_path / "new" / "ours", progress=fill_the_disk)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["theirs"]


@pytest.mark.parametrize("content", ["a file", "a full folder", "itself"])
def test_nothing_is_ever_written_over(published: Path, tmp_path: Path, content: str) -> None:
    destination = published if content == "itself" else tmp_path / "there"
    if content == "a file":
        destination.write_text("mine")
    elif content == "a full folder":
        destination.mkdir()
        (destination / "mine").touch()
    before = sorted(destination.iterdir()) if destination.is_dir() else destination.read_text()
    for write in (convert, export):
        with pytest.raises(CheckpointError, match="exists already; name a new folder"):
            write(published, destination)
    assert (sorted(destination.iterdir()) if destination.is_dir() else destination.read_text()) == before


def test_an_interrupted_conversion_leaves_nothing(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dialogpt.weights.formats.writer.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(published, tmp_path / "ours")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tensors", [1, 20, 75])
def test_a_killed_conversion_leaves_no_destination(tmp_path: Path, tensors: int) -> None:
    """Not even a kill, which nothing can catch, leaves a folder under the final name."""
    program = (
        "import sys; from dialogpt import weights; "
        "weights.convert('tiny', sys.argv[1], progress=lambda *_: print(flush=True))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "ours")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(tensors):
            process.stdout.readline()
        process.kill()
    assert not (tmp_path / "ours").exists()
    convert("tiny", tmp_path / "ours")  # what the kill left under another name is not in the way
    assert same_weights(tmp_path / "ours", TINY)


shapes = st.lists(st.integers(1, 7), max_size=3).map(tuple)
kinds = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])


@given(tensors=st.dictionaries(st.text(min_size=1, max_size=8), st.tuples(shapes, kinds), max_size=6))
def test_safetensors_reads_what_we_write(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Any]) -> None:
    """The safetensors library reads what our streaming writer writes, for any names, shapes and dtypes."""
    tensors = {name: entry for name, entry in tensors.items() if name != "__metadata__" and name.isprintable()}
    path = tmp_path_factory.mktemp("written") / "file.safetensors"
    values = {name: torch.randn(shape, generator=seeded()).to(kind) for name, (shape, kind) in tensors.items()}
    stored = [StoredTensor(name, tuple(v.shape), v.dtype, lambda v=v: v) for name, v in values.items()]
    write_safetensors(path, stored, {"note": "ü"})
    read = load_file(path)
    assert read.keys() == values.keys()
    assert all(torch.equal(read[name], values[name]) for name in values)
    assert {n: entry.shape for n, entry in read_safetensors(path).items()} == {s.name: s.shape for s in stored}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("tinny", "tiny"),
        ("./tinny", "tiny"),
        ("small-bto", "small-bot"),
        ("microsoft-DialoGPT-small", "microsoft/DialoGPT-small"),
        ("dialogpt-medium", "microsoft/DialoGPT-medium"),
        ("microsfot/DialoGPT-small", "microsoft/DialoGPT-small"),
        ("Microsoft/dialogpt-smal@main", "microsoft/DialoGPT-small"),
        ("microsoft/dialogpt-small", "microsoft/DialoGPT-small"),
        ("openai-comunity/gpt2-medium", "openai-community/gpt2-medium"),
        ("rnus/mine", "runs/mine"),
        ("runs/mien", "runs/mine"),
        ("rnus/deep/step-1", "runs/deep/step-1"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(
    name: str, meant: str, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the network: a name with an owner was only looked for on the hub, which could not be reached."""
    monkeypatch.chdir(published.parent)
    for folder in ("runs/mine", "runs/deep/step-1"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    with pytest.raises(CheckpointError, match=re.escape(f"(did you mean {meant}?)")) as error:
        open_checkpoint(name)
    assert str(error.value).startswith(f"there is no folder or file '{name.partition('@')[0]}")


@pytest.mark.parametrize("name", ["microsoft/DialoGPT-small", "somebody/something", "x" * 5000, "a/b/c\0", "/"])
def test_nothing_is_guessed_where_nothing_is_near(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r".+") as error:
        open_checkpoint(name)
    assert "did you mean" not in str(error.value)


def test_a_slip_in_a_path_is_answered_with_a_path(published: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"did you mean {published}?")):
        open_checkpoint(f"{published}s")
