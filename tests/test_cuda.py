"""On a GPU: the same tokens as on the CPU and as transformers, every precision that it has, and training."""

from __future__ import annotations

import json
from pathlib import Path
from queue import Queue

import pytest
import torch

from dialogpt import Chat, Draft, GenerationConfig, Tokenizer, generate, generate_batch
from dialogpt.cli.main import main
from dialogpt.decoding.noise import fresh_generator
from dialogpt.history import Prompt
from dialogpt.model import GPT2, KVCache
from dialogpt.replies import Dialogue, Plan, Seeds
from dialogpt.serve.engine import End, Engine, Event, GenerationTask, Token
from dialogpt.weights import CheckpointError, load
from tests.helpers import WAIT_SECONDS, pair, random_model, seeded, small_vocabulary

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
CUDA = torch.device("cuda")
PROMPTS = [[5, 6, 7], [1], list(range(30)), [9, 9, 8, 2]]


@pytest.fixture(scope="module")
def networks() -> tuple[GPT2, GPT2]:
    """The same network in float64, on the CPU and on the GPU."""
    return random_model(), random_model().to(CUDA)


def test_logits_are_those_of_the_cpu(networks: tuple[GPT2, GPT2]) -> None:
    here, there = networks
    ids = torch.randint(0, 97, (3, 20), generator=seeded())
    with torch.inference_mode():
        expected = here(ids)
        torch.testing.assert_close(there(ids.to(CUDA)).cpu(), expected, rtol=1e-9, atol=1e-9)
        cache = KVCache.for_model(there, rows=3)
        lengths = torch.tensor([7, 3, 1])
        there(ids[:, :7].to(CUDA), cache, lengths)
        rest = torch.stack([row[n : n + 10] for row, n in zip(ids, lengths.tolist(), strict=True)])
        found = there(rest.to(CUDA), cache).cpu()
    for row, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(found[row], expected[row, n : n + 10], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "config",
    [
        GenerationConfig(max_new_tokens=12),
        GenerationConfig(max_new_tokens=12, num_beams=4, num_return_sequences=2),
        GenerationConfig(max_new_tokens=12, repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=3),
    ],
    ids=["greedy", "beams", "processors"],
)
def test_replies_are_those_of_the_cpu(networks: tuple[GPT2, GPT2], config: GenerationConfig) -> None:
    here, there = (generate_batch(network, PROMPTS, config) for network in networks)
    assert [[reply.ids for reply in replies] for replies in there] == [
        [reply.ids for reply in replies] for replies in here
    ]


def test_draws_are_those_of_transformers_on_the_same_gpu(tmp_path: Path) -> None:
    ours, theirs = (network.to(CUDA) for network in pair(tmp_path))
    settings = {"do_sample": True, "top_k": 20, "top_p": 0.9, "temperature": 2.0, "max_new_tokens": 15}
    prompt = torch.tensor([[5, 6, 7]], device=CUDA)
    for seed in range(10):
        torch.manual_seed(seed)
        expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), pad_token_id=96, **settings)
        for draft in (None, Draft(ours)):
            steps = generate(
                ours, [5, 6, 7], GenerationConfig(**settings), draft=draft, generator=fresh_generator(CUDA, seed)
            )
            assert [step.id for step in steps] == [token for token in expected[0, 3:].tolist() if token != 96]


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float16", 1e-2), ("bfloat16", 5e-2)])
def test_every_precision_is_near_float64(dtype: str, bound: float) -> None:
    """The largest difference, over the largest logit."""
    ids = torch.randint(0, 8000, (2, 40), generator=seeded())
    with torch.inference_mode():
        exact = load("tiny", dtype="float64")(ids)
        found = load("tiny", dtype=dtype, device=CUDA)(ids.to(CUDA))
    assert found.dtype == getattr(torch, dtype)
    assert float((found.cpu().double() - exact).abs().max() / exact.abs().max()) < bound


def test_a_conversation_on_the_gpu_is_that_of_the_cpu() -> None:
    said = []
    for device in ("cpu", "cuda"):
        chat = Chat.load("tiny", dtype="float64", device=device, generation=GenerationConfig(max_new_tokens=30))
        said.append([chat.reply("Hi! How are you?"), chat.reply("What is your name?")])
    assert said[0] == said[1]


def test_a_draft_on_the_gpu_changes_nothing() -> None:
    tokenizer, model = Tokenizer.load("tiny"), load("tiny", dtype="float64", device=CUDA)
    draft = Draft.load("tiny", tokenizer, device=CUDA)
    assert draft.model.dtype == torch.float16
    said = []
    for each in (None, draft):
        chat = Chat(model, tokenizer, GenerationConfig.chat(), seed=3, draft=each)
        said.append([chat.reply("Hi! How are you?"), chat.reply("What is your name?")])
    assert said[0] == said[1]
    assert draft.accepted > 10


def test_many_requests_at_once_are_each_as_if_alone(networks: tuple[GPT2, GPT2]) -> None:
    """The server's engine in its thread; the second turns go on from caches that were kept."""
    _, network = networks
    engine = Engine(network, Tokenizer(small_vocabulary()), max_sequences=3, prefill_budget=8)
    config = GenerationConfig(do_sample=True, top_k=20, temperature=2.0, max_new_tokens=12)
    prompts = [*PROMPTS, *([*prompt, 50, 51] for prompt in PROMPTS)]
    heard: list[Queue[Event]] = [Queue() for _ in prompts]
    for seed, (prompt, events) in enumerate(zip(prompts, heard, strict=True)):
        dialogue = Dialogue(Prompt(prompt, 0, 0), [], Seeds(CUDA, seed))
        engine.submit(GenerationTask(dialogue, Plan(config), events.put, seconds=60, alternatives=2))
    for seed, (prompt, events) in enumerate(zip(prompts, heard, strict=True)):
        alone = generate(network, prompt, config, generator=fresh_generator(CUDA, seed))
        said: list[int] = []
        while isinstance(event := events.get(timeout=WAIT_SECONDS), Token):
            said.append(event.id)
        assert isinstance(event, End)
        assert said == [step.id for step in alone]
    engine.close(0)


def test_precisions_of_the_cpu_alone_are_refused() -> None:
    with pytest.raises(CheckpointError, match="for cuda choose bfloat16 or float16"):
        load("tiny", dtype="int8", device=CUDA)


def test_the_command_line_talks_and_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for dtype in ("float32", "bfloat16"):
        assert main(["reply", "Hi!", "--device", "cuda", "--dtype", dtype, "--seed", "1"]) == 0
        assert capsys.readouterr().out.strip()
    data = tmp_path / "data.jsonl"
    data.write_text('{"turns": ["Hi!", "Hello, how are you?", "Tired.", "Then sleep."]}\n' * 40)
    flags = ["--device", "cuda", "--epochs", "20", "--batch-tokens", "512", "--lr", "1e-3"]
    assert main(["train", str(data), "--out", str(tmp_path / "run"), *flags]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
    assert losses[-1] < 0.5 < losses[0]
