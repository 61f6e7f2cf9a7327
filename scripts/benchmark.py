"""Measure what a user waits for: the first reply after a cold start, a turn late in a dialogue, and memory.

    python scripts/benchmark.py start  [--size small] [--runs 5]
    python scripts/benchmark.py turn   [--size small] [--runs 5]
    python scripts/benchmark.py memory [--size small]

Weights are random, of a published size. Comparisons alternate in one run, as machines are shared and noisy: quote the
medians and their ratio. The last line is JSON. `start` and `turn` compare with transformers where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dialogpt import Chat, GenerationConfig
from dialogpt.cli import guarded
from model import GPT2, PRESETS
from weights import convert
from weights.convert import published_config
from weights.files import StoredTensor, write_json, write_safetensors
from weights.names import to_published
from weights.vocabulary import gpt2_vocabulary

ROOT = Path(__file__).parents[1]
NEW_TOKENS = 20
HISTORY, TURN = 900, 8  # tokens

THEIR_START = f"""
import sys, os
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel, logging
logging.set_verbosity_error(); logging.disable_progress_bar()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = GPT2LMHeadModel.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
ids = tokenizer(sys.stdin.readline().strip() + tokenizer.eos_token, return_tensors="pt")
out = model.generate(**ids, max_new_tokens={NEW_TOKENS}, min_new_tokens={NEW_TOKENS}, pad_token_id=50256)
print(tokenizer.decode(out[0, ids.input_ids.size(1):]))
"""
MEMORY = """
import sys, torch
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
before = peak()
from weights import load
with torch.inference_mode():
    load(sys.argv[1])(torch.arange(16)[None])
print(peak() - before)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one measurement; returns 0."""
    parser = argparse.ArgumentParser(description="Measure what a user waits for.")
    parser.add_argument("what", choices=("start", "turn", "memory"))
    parser.add_argument("--size", choices=PRESETS, default="small")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        published, ours = Path(temporary) / "published", Path(temporary) / "ours"
        write_random(published, options.size)
        convert(published, ours)
        if options.what == "memory":
            result = measure_memory(published, ours)
        else:
            rivals = start_rivals(published, ours) if options.what == "start" else turn_rivals(published, ours)
            result = alternate(rivals, options.runs)
    print(json.dumps({"what": options.what, "size": options.size, "threads": torch.get_num_threads(), **result}))
    return 0


def write_random(folder: Path, size: str) -> None:
    """Write a checkpoint of a published size as transformers would, with random weights and GPT-2's vocabulary."""
    torch.manual_seed(0)
    network = GPT2(PRESETS[size])
    folder.mkdir()
    tensors = {
        name: StoredTensor(name, tuple(p.shape), p.dtype, partial(_data, p)) for name, p in network.named_parameters()
    }
    write_safetensors(folder / "model.safetensors", to_published(tensors), {"format": "pt"})
    write_json(folder / "config.json", published_config(PRESETS[size]) | {"bos_token_id": 50256})
    gpt2_vocabulary().write(folder)


def _data(parameter: Tensor) -> Tensor:
    return parameter.detach()


def start_rivals(published: Path, ours: Path) -> dict[str, Callable[[], float]]:
    """From the command to the end of a first reply of 20 tokens, greedy, each in a process of its own."""
    flags = ["--greedy", "--max-new-tokens", str(NEW_TOKENS), "--min-new-tokens", str(NEW_TOKENS)]
    rivals: dict[str, Callable[[], float]] = {
        "ours": partial(_run, [sys.executable, "-m", "dialogpt", "chat", "--model", str(ours), *flags])
    }
    if importlib.util.find_spec("transformers"):
        rivals["transformers"] = partial(_run, [sys.executable, "-c", THEIR_START, str(published)])
    return rivals


def _run(command: list[str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, input=b"Hi\n", cwd=ROOT, capture_output=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(done.stderr.decode())
    return seconds


def turn_rivals(published: Path, ours: Path) -> dict[str, Callable[[], float]]:
    """A turn of 8 tokens after a dialogue of 900: the time to the first token of the reply."""
    chat = Chat.load(ours, generation=GenerationConfig(max_new_tokens=2, eos_token_id=50257), history_tokens=1000)
    history = torch.randint(0, 50256, (HISTORY,), generator=torch.Generator().manual_seed(0)).tolist()
    turns = [history[: HISTORY // 2 - 1], history[HISTORY // 2 + 1 :]]
    text = " hello" * (TURN - 1)

    def cached() -> float:
        chat.restore(turns)
        list(chat.stream(text))
        return chat.statistics.first_seconds

    def anew() -> float:
        chat.reset()
        chat.reply("something else")
        return cached()

    cached()
    rivals: dict[str, Callable[[], float]] = {"cached": cached, "ours, read anew": anew}
    if importlib.util.find_spec("transformers"):
        from transformers import GPT2LMHeadModel

        theirs = GPT2LMHeadModel.from_pretrained(published, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]
        prompt = torch.tensor([[token for turn in turns for token in (*turn, 50256)] + [23748] * (TURN - 1) + [50256]])

        def re_encoded() -> float:
            start = time.perf_counter()
            theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=1, pad_token_id=50256)
            return time.perf_counter() - start

        rivals["transformers, re-encoding"] = re_encoded
    return rivals


def alternate(rivals: dict[str, Callable[[], float]], runs: int) -> dict[str, object]:
    """Run the rivals in turn, after a run that does not count; print medians and ratios to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for run in range(runs + 1):
        for name, measure in rivals.items():
            spent = measure()
            if run:
                seconds[name].append(spent)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        low, high = min(seconds[name]), max(seconds[name])
        print(f"{name:<26} {median:8.3f} s  (from {low:.3f} to {high:.3f})  {median / first:6.2f} x")
    return {"runs": runs, "median_s": {name: round(median, 4) for name, median in medians.items()}}


def measure_memory(published: Path, ours: Path) -> dict[str, object]:
    """Peak memory of loading and one forward pass, above a process that has imported torch."""
    size = (ours / "model.safetensors").stat().st_size
    file = (published / "model.safetensors").stat().st_size
    result: dict[str, object] = {"weights_bytes": size}
    for name, folder, allowed in (("ours", ours, size), ("published", published, size + file)):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(folder)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        peak = int(done.stdout)
        print(f"{name:<10} {peak / 1e6:8.0f} MB above import torch, {peak / size:.2f} x the weights "
              f"({peak / allowed:.2f} x what is allowed for)")  # fmt: skip
        result[f"{name}_peak_bytes"] = peak
    return result


if __name__ == "__main__":
    sys.exit(guarded(main))
