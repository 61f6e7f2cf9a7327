"""GGUF files in llama.cpp itself, which the `xllamacpp` package carries built: the same ids, tokens and replies."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel, GPT2Tokenizer

from dialogpt import Chat, GenerationConfig, Tokenizer, generate
from dialogpt.cli.verify import TEXTS
from dialogpt.weights import export_gguf, load, open_checkpoint
from tests.helpers import write_published

xllamacpp = pytest.importorskip("xllamacpp", reason="xllamacpp, which carries llama.cpp, is not installed")
pytest.importorskip("gguf", reason="gguf is not installed")
SAID = ("Hi! How are you?", "What is your name?", "I am sad today.")
GREEDY = GenerationConfig(max_new_tokens=32)


@contextmanager
def llama(folder: Path, positions: int) -> Iterator[Any]:
    """llama.cpp's server on a file; called with an address and a body, it answers."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(folder / "model.gguf")
    parameters.n_ctx, parameters.n_parallel, parameters.n_gpu_layers = positions, 1, 0
    parameters.warmup, parameters.fit_params, parameters.verbosity = False, False, -1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)

    def ask(path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.loads(answer.read())

    yield ask


def greedy_tokens(ask: Any, prompt: list[int], new: int = 32, **more: Any) -> list[int]:
    body = {"prompt": prompt, "n_predict": new, "temperature": 0, "top_k": 1, "return_tokens": True, **more}
    found: list[int] = ask("/completion", {**body, "cache_prompt": False})["tokens"]
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16", "q8_0"])
def test_llama_cpp_replies_as_we_do(tmp_path: Path, dtype: str) -> None:
    """The checkpoint of the package: replies to the end token, by ids and by messages."""
    export_gguf("tiny", tmp_path / "out", dtype=dtype)
    tokenizer, network = Tokenizer.load("tiny"), load("tiny")
    with llama(tmp_path / "out", 512) as ask:
        for text in SAID:
            prompt = [*tokenizer.encode(text), tokenizer.eos_id]
            expected = [step.id for step in generate(network, prompt, GREEDY)]
            found = greedy_tokens(ask, prompt)
            assert [n for n in found if n != tokenizer.eos_id] == expected
            answer = ask(
                "/v1/chat/completions",
                {"messages": [{"role": "user", "content": text}], "max_tokens": 32, "temperature": 0, "top_k": 1},
            )
            assert answer["choices"][0]["message"]["content"] == tokenizer.decode(expected)
            assert answer["usage"]["prompt_tokens"] == len(prompt)
        for text in TEXTS:
            tokens = ask("/tokenize", {"content": text, "add_special": False, "parse_special": False})["tokens"]
            assert tokens == tokenizer.encode(text), text


def test_a_random_network_with_a_head_of_its_own(tmp_path: Path) -> None:
    """Every parameter random, and tokens that go on: one turned matrix or lost bias would change them."""
    theirs = write_published(tmp_path / "base", n_embd=64, n_head=2, n_positions=128, tie_word_embeddings=False)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if ".ln_" in name:
                parameter.add_(1) if name.endswith("weight") else parameter.mul_(0.1)
    theirs.save_pretrained(tmp_path / "base")
    export_gguf(tmp_path / "base", tmp_path / "out", dtype="float32")
    network, end = load(tmp_path / "base"), 556
    with llama(tmp_path / "out", 128) as ask:
        for start in range(3):
            prompt = [(start * 71 + n * 37) % 556 for n in range(20)]
            config = GenerationConfig(max_new_tokens=40, suppress_tokens=(end,), eos_token_id=557)
            expected = [step.id for step in generate(network, prompt, config)]
            assert greedy_tokens(ask, prompt, 40, logit_bias=[[end, False]]) == expected
            assert len(set(expected)) > 5


def test_speaker_tokens_and_templates_come_along(tmp_path: Path) -> None:
    folder = tmp_path / "speakers"
    network = write_published(folder, n_embd=64, n_head=2, n_positions=96)
    theirs = GPT2Tokenizer.from_pretrained(folder)
    theirs.add_special_tokens({"additional_special_tokens": ["<speaker1>", "<speaker2>"]})
    network.resize_token_embeddings(len(theirs), mean_resizing=False)
    network.save_pretrained(folder)
    theirs.save_pretrained(folder)
    checkpoint = open_checkpoint(folder, turn_prefix=("<speaker1> ", "<speaker2> "))
    export_gguf(checkpoint, tmp_path / "out", dtype="float32")
    chat = Chat.load(checkpoint, generation=GREEDY)
    chat.reply("Hi, you!")
    shown = chat.last_prompt
    assert shown is not None
    with llama(tmp_path / "out", 96) as ask:
        prompt = ask("/apply-template", {"messages": [{"role": "user", "content": "Hi, you!"}]})["prompt"]
        tokens = ask("/tokenize", {"content": prompt, "add_special": False, "parse_special": True})["tokens"]
    assert tokens == shown.ids
    assert GPT2LMHeadModel.from_pretrained(folder).config.vocab_size == 559
