"""Measure what users wait for (replies, tokens, start-up, conversion, training steps, data preparation) and memory.

    python scripts/benchmark.py decode [--size small] [--runs 5] [--prompt 64] [--peers ours,llama.cpp] [--picture FILE]
    python scripts/benchmark.py quality [--model tiny] [--held-out small-talk] [--precision int8]
    python scripts/benchmark.py start  [--size small] [--runs 5]
    python scripts/benchmark.py turn   [--size small] [--runs 5]
    python scripts/benchmark.py memory [--size small]
    python scripts/benchmark.py draft | batch | ends | candidates | beams [--size small] [--runs 5]
    python scripts/benchmark.py convert [--size large] [--runs 5]
    python scripts/benchmark.py train  [--size tiny]  [--runs 5]
    python scripts/benchmark.py lora   [--size small] [--runs 5]
    python scripts/benchmark.py prepare
    python scripts/benchmark.py all    [--runs 5] [--picture FILE]    all of them, one after the other: an hour

Weights are random. The contenders alternate within a run, as machines are shared and noisy: quote medians, their ratio,
and the processor, which the last line (JSON) names. transformers takes part if it is installed. On a processor with
AVX-512, ``ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 FBGEMM_ENABLE_INSTRUCTIONS=AVX2`` runs the kernels of one
with AVX2 alone, for tests: which of them is fastest differs there (docs/benchmarks.md).
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from dialogpt import Chat, Draft, GenerationConfig, Tokenizer, generate_batch
from dialogpt.cli.commands.bench import processor
from dialogpt.cli.main import guarded
from dialogpt.decoding.noise import fresh_generator
from dialogpt.errors import DialogueError
from dialogpt.model import GPT2, PRESETS, GPT2Config
from dialogpt.model.precision import CPU_PRECISIONS
from dialogpt.model.precision.choice import VARIABLE, candidates
from dialogpt.ranking.scoring import score
from dialogpt.train.data.batches import Batches
from dialogpt.train.data.dialogues import Format
from dialogpt.train.data.prepare import prepare
from dialogpt.train.distributed import Processes
from dialogpt.train.lora import attach
from dialogpt.train.settings import LORA_TARGETS, TrainConfig
from dialogpt.train.trainer import Trainer, multiply_dtype
from dialogpt.weights import convert, load, open_checkpoint
from dialogpt.weights.convert import published_config
from dialogpt.weights.formats import StoredTensor, dtype_name, write_json, write_safetensors
from dialogpt.weights.names import to_published
from dialogpt.weights.vocabulary import gpt2_vocabulary
from scripts import small_talk
from scripts.peers import EXACT, Generated, installed, served, weight_bytes

ROOT = Path(__file__).parents[1]
NEW_TOKENS = 20
BATCH_TOKENS = 40
HISTORY, TURN = 900, 8  # tokens
PROMPT, DECODED = 64, 64
PAUSE = 0.5  # seconds before each measurement, as the threads of the last peer may spin for a while after theirs

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
from dialogpt.weights import load
with torch.inference_mode():
    load(sys.argv[1])(torch.arange(16)[None])
print(peak() - before)
"""
CONVERT = """
import sys, time, torch
from scripts.benchmark import _peak
before = _peak()
from dialogpt.weights import convert, load
start = time.perf_counter()
convert(sys.argv[1], sys.argv[2], dtype=sys.argv[3])
print(time.perf_counter() - start, _peak() - before)
"""
READY = """
import sys, time
start = time.perf_counter()
import torch
imported = time.perf_counter()
from dialogpt.weights import load
load(sys.argv[1])
print(imported - start, time.perf_counter() - imported)
"""
PREPARE = """
import resource, sys, time
from pathlib import Path
from scripts.benchmark import _peak
from dialogpt.train.data.dialogues import Format
from dialogpt.train.data.prepare import prepare
from dialogpt.weights.vocabulary import gpt2_vocabulary
if __name__ == "__main__":
    start = time.perf_counter()
    source, folder = map(Path, sys.argv[1:3])
    data = prepare([source], folder, gpt2_vocabulary(), Format(window=1024), workers=int(sys.argv[3]))
    seconds = time.perf_counter() - start
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(seconds, len(data.tokens), _peak(), workers)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one measurement; returns 0."""
    parser = argparse.ArgumentParser(description="Measure speed and memory.")
    parser.add_argument("what", choices=(*MEASUREMENTS, "all"))
    parser.add_argument("--size", choices=PRESETS, help="default: tiny for train, large for convert, else small")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--prompt", type=int, default=PROMPT, help=f"decode: tokens that are prefilled (default: {PROMPT})"
    )
    parser.add_argument(
        "--peers", default="", help="decode: names, or names with a precision, between commas: ours,llama.cpp f16"
    )
    parser.add_argument("--model", default="tiny", help="quality: a trained checkpoint (default: tiny)")
    parser.add_argument("--held-out", choices=HELD_OUT, default="small-talk", help="quality: what is read")
    parser.add_argument("--precision", choices=CPU_PRECISIONS, help="quality: its kernels alone (default: all)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="decode: draw its table, too")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # train, lora: this rival alone, for its memory
    options = parser.parse_args(argv)
    if options.peers and options.what not in ("decode", "all"):
        parser.error(f"--peers is for decode; {options.what} has none to choose")
    contenders = chosen_peers(options.peers)
    chosen = MEASUREMENTS if options.what == "all" else (options.what,)
    if {"memory", "convert", "train", "lora", "prepare"} & {*chosen}:
        require_proc()
    for what in chosen:
        size = options.size or {"train": "tiny", "convert": "large"}.get(what, "small")
        about = {"what": what, "processor": processor(), "threads": torch.get_num_threads()}
        if len(chosen) > 1:
            print(f"---- {what}")
        if what == "quality":
            about |= {"model": options.model, "held_out": options.held_out}
            precisions = CPU_PRECISIONS if options.precision is None else (options.precision,)
            found = measure_quality(options.model, HELD_OUT[options.held_out](), precisions)
            print(json.dumps({**about, **found}), flush=True)
            continue
        with tempfile.TemporaryDirectory() as temporary:
            result = measure(what, size, options, Path(temporary), contenders)
        if options.picture is not None and what == "decode":
            draw_decoding(result, f"{size}'s shape", options.picture)
        print(json.dumps({**about, "size": size, **result}), flush=True)
    return 0


def measure(
    what: str, size: str, options: argparse.Namespace, folder: Path, contenders: Sequence[tuple[str, str]]
) -> dict[str, object]:
    """Take one measurement in an empty folder; `contenders` are the peers of `decode`."""
    runs, only = options.runs, options.only
    if what == "train":
        return measure_training(what, training_rivals(size, folder), size, runs, only)
    if what == "lora":
        return measure_training(what, lora_rivals(size, folder), size, runs, only)
    if what == "prepare":
        return measure_preparing(folder)
    if what == "convert":
        return measure_converting(size, runs, folder)
    published, ours = folder / "published", folder / "ours"
    write_random(published, size)
    convert(published, ours)
    if what == "decode":
        return measure_decoding(published, ours, runs, options.prompt, contenders)
    if what == "memory":
        return measure_memory(published, ours)
    return alternate(RIVALS[what](published, ours), runs)


def chosen_peers(names: str) -> list[tuple[str, str]]:
    """Return the installed peers that are named, each as its name or as name and precision; all for no name.

    Raises:
        DialogueError: a name is none of them.
    """
    here = installed()
    wanted = {name.strip() for name in names.split(",")} - {""}
    known = {each[0] for each in here} | {" ".join(each) for each in here}
    if unknown := sorted(wanted - known):
        raise DialogueError(
            f"{', '.join(unknown)} is no peer that is installed here; there are {', '.join(sorted(known))}"
        )
    return [each for each in here if not wanted or {each[0], " ".join(each)} & wanted]


def measure_decoding(
    published: Path, ours: Path, runs: int, prompt_tokens: int, contenders: Sequence[tuple[str, str]]
) -> dict[str, object]:
    """Prefill a prompt and generate 64 tokens, greedily, in every precision; peers alternate, medians are reported.

    A decoding step reads every weight once. The bytes per second of that, divided by those of a plain sum in the same
    run, show how close a peer is to the roofline. With a draft one step yields several tokens, so a share can exceed 1.
    """
    prompt = torch.randint(0, 50256, (prompt_tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    config = open_checkpoint(ours).config
    times: dict[tuple[str, str], list[Generated]] = {}
    rooflines = []
    numbers = torch.ones(1 << 26)
    with ExitStack() as stack:
        loaded = {each: stack.enter_context(served(*each, published, ours)) for each in contenders}
        for run in range(runs + 1):
            for each, peer in loaded.items():
                time.sleep(PAUSE)
                timing = peer(prompt, DECODED)
                if run:
                    times.setdefault(each, []).append(timing)
            for _ in range(10):
                start = time.perf_counter()
                numbers.sum()
                rooflines.append(4 * len(numbers) / (time.perf_counter() - start))
    roofline = statistics.median(rooflines)
    rows = []
    for (name, precision), timings in times.items():
        first, rest = (statistics.median(part) for part in zip(*(each[:2] for each in timings), strict=True))
        read = weight_bytes(config, precision) * DECODED / rest
        rows.append(
            {"peer": name, "precision": precision, "prefill_ms": round(first * 1e3, 1),
             "tokens_per_s": round(DECODED / rest, 1), "GB_per_s": round(read / 1e9, 1)}
        )  # fmt: skip
        print(
            f"{name:<13} {precision:<18} {first * 1e3:6.0f} ms for {prompt_tokens} tokens, then {DECODED / rest:6.1f} "
            f"tokens/s: {read / 1e9:5.1f} GB/s, {read / roofline:4.0%} of the roofline"
        )
    print(f"roofline {roofline / 1e9:.1f} GB/s (a sum over {4 * len(numbers) >> 20} MiB, median)")
    require_equal({each: timings[-1].ids for each, timings in times.items() if each[1] in EXACT})
    return {
        "runs": runs,
        "prompt": prompt_tokens,
        "new": DECODED,
        "roofline_GB_per_s": round(roofline / 1e9, 1),
        "rows": rows,
    }


def require_equal(generated: dict[tuple[str, str], list[int]]) -> None:
    """Refuse figures of peers in float32 that generate other tokens than transformers, or without it than the first."""
    judge = ("transformers", "float32") if ("transformers", "float32") in generated else next(iter(generated), None)
    differing = [name for (name, _), ids in generated.items() if judge is not None and ids != generated[judge]]
    if judge is not None and differing:
        raise DialogueError(
            f"{', '.join(differing)} generated other tokens in float32 than {judge[0]}; expected the same greedily, "
            f"so these figures compare nothing; run its tests: python -m pytest tests/test_scripts.py"
        )


def held_out_small_talk() -> list[list[str]]:
    """The small talk written for tiny that it did not learn from."""
    return [turns for turns in small_talk.read() if small_talk.is_held_out(turns)]


def held_out_chats() -> list[list[str]]:
    """The conversations of chitchat-dataset that tiny's first stage did not learn from."""
    from scripts.train_tiny import conversations

    return list(conversations(held_out=True))


HELD_OUT: dict[str, Callable[[], list[list[str]]]] = {"small-talk": held_out_small_talk, "chats": held_out_chats}


def measure_quality(source: str, dialogues: list[list[str]], precisions: Sequence[str]) -> dict[str, float]:
    """Perplexity of a checkpoint on dialogues, with every kernel that runs here.

    A dialogue is cut to windows of the network's length; all but the first token of each count.
    """
    checkpoint = open_checkpoint(source)
    tokenizer, window = Tokenizer.load(checkpoint), checkpoint.config.n_positions
    pieces: list[list[int]] = []
    for turns in dialogues:
        ids = [token for turn in turns for token in (*tokenizer.encode(turn), tokenizer.eos_id)]
        pieces += [ids[start : start + window] for start in range(0, len(ids) - 1, window)]
    result: dict[str, float] = {}
    asked = os.environ.get(VARIABLE)
    pairs = [(dtype, kernel) for dtype in precisions for kernel in candidates(dtype) if kernel.runs_here()]
    for dtype, kernel in pairs:
        name, os.environ[VARIABLE] = f"{dtype} {kernel.name}", f"{dtype}={kernel.name}"
        found = score(load(checkpoint, dtype=dtype), pieces)
        result[name] = math.exp(-sum(each.total for each in found) / sum(len(each.ids) for each in found))
        print(
            f"{name:<28} perplexity {result[name]:8.3f}, {result[name] / next(iter(result.values())) - 1:+.3%}",
            flush=True,
        )
    os.environ.pop(VARIABLE)
    if asked is not None:
        os.environ[VARIABLE] = asked
    return result


def draw_decoding(result: dict[str, Any], title: str, file: Path) -> None:
    """Draw tokens per second as bars, the best of each precision on top, against the memory's roofline."""
    from matplotlib.figure import Figure

    rows = sorted(result["rows"], key=lambda row: row["tokens_per_s"])
    figure = Figure(figsize=(7, 0.3 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    limits = [row["tokens_per_s"] * result["roofline_GB_per_s"] / row["GB_per_s"] for row in rows]
    names = [f"{row['peer']} {row['precision']}" for row in rows]
    axes.barh(names, limits, color="0.9", label=f"if every weight were read at {result['roofline_GB_per_s']:.0f} GB/s")
    own = [row["peer"] == "ours" for row in rows]
    bars = axes.barh(names, [row["tokens_per_s"] for row in rows], color=["C0" if mine else "0.55" for mine in own])
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set_xlim(0, 1.25 * max(row["tokens_per_s"] for row in rows))
    axes.set_xlabel(f"tokens a second, {title}, greedy, after a prompt of {result['prompt']}")
    axes.legend(loc="lower right")
    figure.savefig(file, dpi=110)


def measure_converting(size: str, runs: int, folder: Path) -> dict[str, object]:
    """Measure time and peak memory of converting a float16 checkpoint, and the time to load the result.

    Memory is that above a process which has only imported torch, as a multiple of the larger of input and output.
    """
    published, ours = folder / "published", folder / "ours"
    write_random(published, size, torch.float16)
    state = load_file(published / "model.safetensors")
    result: dict[str, object] = {}
    for container in ("safetensors", "torch's archive", "torch's older format"):
        if container != "safetensors":
            (published / "model.safetensors").unlink(missing_ok=True)
            old = container == "torch's older format"
            torch.save(state, published / "pytorch_model.bin", _use_new_zipfile_serialization=not old)
        for dtype in ("float16", "float32"):
            shutil.rmtree(ours, ignore_errors=True)
            seconds, peak = _measured(CONVERT, str(published), str(ours), dtype)
            larger = max(folder_bytes(published), folder_bytes(ours))
            print(
                f"{container:<20} to {dtype}  {seconds:6.1f} s, {peak / 1e6:6,.0f} MB: {peak / larger:.2f} x the larger"
            )
            result[f"{container} to {dtype}"] = {"seconds": seconds, "peak_bytes": peak, "larger_bytes": larger}
    times = [_measured(READY, str(ours)) for _ in range(runs + 1)][1:]
    imported, loaded = (statistics.median(time) for time in zip(*times, strict=True))
    print(f"import torch {imported:.2f} s, then the converted float32 checkpoint is ready in {loaded:.2f} s")
    return result | {"import_torch_s": imported, "load_s": loaded}


def folder_bytes(folder: Path) -> int:
    """Return the size of a checkpoint's folder on disk, in bytes."""
    return sum(path.stat().st_size for path in folder.iterdir())


def _measured(program: str, *arguments: str) -> list[float]:
    """Run a program in a subprocess, and return the numbers that it prints."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [float(number) for number in done.stdout.split()]


def write_random(folder: Path, size: str, dtype: torch.dtype = torch.float32) -> None:
    """Write a checkpoint of a published size as transformers would, with random weights and GPT-2's vocabulary."""
    torch.manual_seed(0)
    network = GPT2(PRESETS[size]).to(dtype)
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
    """Time from the command to the end of a first greedy reply of 20 tokens, each contender in a subprocess."""
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
    """Time to the first token of the reply to a turn of 8 tokens, after a dialogue of 900."""
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


def draft_rivals(published: Path, ours: Path) -> dict[str, Callable[[], float]]:
    """Generate 64 tokens after a prompt of 64 in float32, greedy and sampled: plain, and with an int8 draft."""
    prompt = torch.randint(0, 50256, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()
    network, guessing = load(ours), load(ours, dtype="int8")
    greedy = GenerationConfig(max_new_tokens=DECODED, eos_token_id=50257)
    sampled = replace(greedy, do_sample=True, top_k=50, top_p=0.9, temperature=0.8)

    def say(config: GenerationConfig, guess: bool) -> None:
        draft = Draft(guessing) if guess else None
        generator = fresh_generator(seed=0)
        generate_batch(network, [prompt], config, generator=generator, draft=draft)

    return {
        f"{name}{', speculative' if guess else ''}": _timed(partial(say, config, guess))
        for name, config in (("greedy", greedy), ("sampled", sampled))
        for guess in (False, True)
    }


def batch_rivals(published: Path, ours: Path, *, ends: int = 0) -> dict[str, Callable[[], float]]:
    """Reply to 64 ragged dialogues at once with 40 sampled tokens each; transformers pads them on the left.

    Args:
        published: the checkpoint for transformers.
        ours: the same in our format.
        ends: how many tokens of the vocabulary end a reply; random weights would hardly generate a single end token.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(10, 100, (64,), generator=generator).tolist()
    prompts = [torch.randint(0, 50256, (length,), generator=generator).tolist() for length in lengths]
    end = torch.randperm(50257, generator=generator)[:ends].tolist() or [50257]
    longest = max(lengths)
    padded = torch.tensor([[50256] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    config = GenerationConfig(max_new_tokens=BATCH_TOKENS, do_sample=True, eos_token_id=tuple(end))
    return _generations(
        published, ours, prompts, config, input_ids=padded, attention_mask=mask, do_sample=True, eos_token_id=end
    )


def candidate_rivals(published: Path, ours: Path) -> dict[str, Callable[[], float]]:
    """Generate 16 replies of 40 tokens to one prompt of 100, in one call and in separate calls."""
    prompt = torch.randint(0, 50256, (100,), generator=torch.Generator().manual_seed(0))
    config = GenerationConfig(max_new_tokens=BATCH_TOKENS, do_sample=True, num_return_sequences=16, eos_token_id=50257)
    rivals = _generations(
        published, ours, [prompt.tolist()], config, input_ids=prompt[None], do_sample=True, num_return_sequences=16,
        eos_token_id=50257,
    )  # fmt: skip
    network, alone = load(ours), replace(config, num_return_sequences=1)
    rivals["16 calls"] = _timed(lambda: [generate_batch(network, [prompt.tolist()], alone) for _ in range(16)])
    return rivals


def beam_rivals(published: Path, ours: Path) -> dict[str, Callable[[], float]]:
    """Search with ten beams for 40 tokens after a prompt of 100."""
    prompt = torch.randint(0, 50256, (100,), generator=torch.Generator().manual_seed(0))
    config = GenerationConfig(max_new_tokens=BATCH_TOKENS, num_beams=10, eos_token_id=50257)
    return _generations(
        published, ours, [prompt.tolist()], config, input_ids=prompt[None], num_beams=10, eos_token_id=50257
    )


def _generations(
    published: Path, ours: Path, prompts: list[list[int]], config: GenerationConfig, **settings: Any
) -> dict[str, Callable[[], float]]:
    """Return the contenders for one generation: ours, and transformers."""
    network = load(ours)
    rivals = {"ours": _timed(lambda: generate_batch(network, prompts, config))}
    if importlib.util.find_spec("transformers"):
        from transformers import GPT2LMHeadModel

        theirs = GPT2LMHeadModel.from_pretrained(published, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]
        settings.setdefault("attention_mask", torch.ones_like(settings["input_ids"]))
        rivals["transformers"] = _timed(
            lambda: theirs.generate(max_new_tokens=BATCH_TOKENS, pad_token_id=50256, **settings)
        )
    return rivals


def _timed(work: Callable[[], object]) -> Callable[[], float]:
    def measure() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return measure


RIVALS: dict[str, Callable[[Path, Path], dict[str, Callable[[], float]]]] = {
    "start": start_rivals,
    "turn": turn_rivals,
    "draft": draft_rivals,
    "batch": batch_rivals,
    "ends": partial(batch_rivals, ends=2500),  # every twentieth token: replies of 15 tokens
    "candidates": candidate_rivals,
    "beams": beam_rivals,
}
MEASUREMENTS = ("decode", "quality", *RIVALS, "memory", "convert", "train", "lora", "prepare")


def alternate(rivals: dict[str, Callable[[], float]], runs: int) -> dict[str, object]:
    """Run the contenders in turn, after a warm-up; print medians, and ratios to the first."""
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
    """Measure the peak memory of loading and one forward pass, above that of a process that has imported torch."""
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


Step = Callable[[int], float]  # trains on the batch of this index, and returns the seconds
TrainingRivals = tuple[dict[str, Callable[[], Step]], Batches]  # builders of each contender's step, and the batches


def measure_training(what: str, compared: TrainingRivals, size: str, runs: int, only: str | None) -> dict[str, object]:
    """Measure a training step of each contender, on the batch with the most target tokens.

    Memory is the peak over an epoch, whose batches differ in shape: the allocator keeps freed blocks that do not fit
    the next shape.
    """
    rivals, batches = compared
    if only is not None:
        before = _peak()
        step = rivals[only]()
        for number in range(batches.per_epoch):
            step(number)
        return {"peak_bytes": _peak() - before}
    full = max(range(batches.per_epoch), key=lambda n: batches[n].learned)
    tokens = batches[full].learned
    result = alternate({name: partial(build(), full) for name, build in rivals.items()}, runs)
    peaks = {}
    for name in rivals:
        command = [sys.executable, str(Path(__file__)), what, "--size", size, "--only", name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        peaks[name] = json.loads(done.stdout.splitlines()[-1])["peak_bytes"]
    medians = result["median_s"]
    assert isinstance(medians, dict)
    for name, seconds in medians.items():
        print(f"{name:<26} {tokens / seconds:8,.0f} tokens/s, peak {peaks[name] / 1e6:,.0f} MB above the imports")
    return {**result, "tokens": tokens, "peak_bytes": peaks, "shapes": batches.per_epoch}


def training_rivals(size: str, folder: Path) -> TrainingRivals:
    """Return our trainer, and a plain loop around transformers' network, on batches of 8,192 slots.

    The plain loop is what people usually write: autocast to bfloat16, all logits at once, AdamW. It also runs in the
    dtype that ours chooses on this machine, if that is another one.
    """
    config = PRESETS[size]
    batches = _batches(config, folder, dialogues=250, batch_tokens=8192)
    dtype = multiply_dtype("auto", torch.device("cpu"))
    rivals: dict[str, Callable[[], Step]] = {"ours": partial(our_training, config, batches)}
    if importlib.util.find_spec("transformers"):
        import transformers.models.gpt2.modeling_gpt2  # noqa: F401 - before memory is measured

        for each in dict.fromkeys((torch.bfloat16, dtype)):
            rivals[f"plain {dtype_name(each)}"] = partial(plain_training, config, batches, each)
    return rivals, batches


def lora_rivals(size: str, folder: Path) -> TrainingRivals:
    """Return full training and LoRA of rank 8, on some or all layers, with batches of 1,024 slots."""
    config = PRESETS[size]
    batches = _batches(config, folder, dialogues=5, batch_tokens=1024)
    rivals: dict[str, Callable[[], Step]] = {"all weights": partial(our_training, config, batches)}
    for targets in ("c_attn", ",".join(LORA_TARGETS)):
        rivals[f"--lora 8 --lora-target {targets}"] = partial(our_training, config, batches, lora_target=targets)
    return rivals, batches


def _batches(config: GPT2Config, folder: Path, *, dialogues: int, batch_tokens: int) -> Batches:
    file = write_dialogues(folder / "data.jsonl", dialogues)
    data = prepare([file], folder / "data", gpt2_vocabulary(config.vocab_size), Format(window=512))
    return Batches(data, window=512, batch_tokens=batch_tokens, first_is_target=True, seed=0)


def our_training(config: GPT2Config, batches: Batches, lora_target: str | None = None) -> Step:
    """Build our training step with the plain loop's AdamW; with `lora_target`, LoRA of rank 8 on those layers."""
    torch.manual_seed(0)
    settings = TrainConfig(steps=10_000, lr=1e-4, loss_on="all")
    model = GPT2(config)
    if lora_target is not None:
        attach(model, 8, None, lora_target)
    trainer = Trainer(model, batches, None, settings, Processes(0, 1, torch.device("cpu")))

    def step(number: int) -> float:
        trainer.progress.step = number  # the next step trains on this batch
        return trainer.step().seconds

    return step


def plain_training(config: GPT2Config, batches: Batches, dtype: torch.dtype) -> Step:
    """Build a plain training step around transformers' network of the same sizes and dropout rates."""
    from transformers import GPT2Config as TheirConfig
    from transformers import GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(TheirConfig(**{**asdict(config), "bos_token_id": config.eos_token_id})).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(number: int) -> float:
        batch = batches[number]
        targets = batch.labels[:, 1:].reshape(-1)
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model.lm_head(model.transformer(batch.ids).last_hidden_state[:, :-1])
        loss = F.cross_entropy(logits.float().reshape(-1, config.vocab_size), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return time.perf_counter() - start

    return step


def write_dialogues(path: Path, number: int) -> Path:
    """Dialogues of about 800 tokens: the held-out conversations of chitchat-dataset, again and again."""
    with path.open("w", encoding="utf-8") as file:
        for _, turns in zip(range(number), itertools.cycle(held_out_chats()), strict=False):
            file.write(json.dumps({"turns": turns}, ensure_ascii=False) + "\n")
    return path


def measure_preparing(folder: Path) -> dict[str, object]:
    """Measure data preparation: tokens per second, and peak memory for a file and for one 20 times larger.

    Memory is measured in a single process; the larger file is then prepared again by all processors.
    """
    result: dict[str, object] = {}
    small, large = (write_dialogues(folder / f"{number}.jsonl", number) for number in (2_000, 40_000))
    for name, path, workers in (
        ("a file", small, 1),
        ("20 times larger", large, 1),
        ("in all processes", large, os.cpu_count() or 1),
    ):
        done = subprocess.run(
            [sys.executable, "-c", PREPARE, str(path), str(folder / name), str(workers)], cwd=ROOT,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        seconds, tokens, own, of_worker = map(float, done.stdout.split())
        megabytes = path.stat().st_size / 1e6
        print(
            f"{name:<16} {megabytes:6,.0f} MB, {tokens / 1e6:6.1f} million tokens, {tokens / seconds / 1e6:5.2f} "
            f"million a second, peak {own / 1e6:,.0f} MB"
            + (f", of each of {workers} workers {of_worker / 1e6:,.0f} MB" if of_worker else "")
        )
        result[name] = {"seconds": seconds, "tokens": tokens, "peak_bytes": own, "worker_peak_bytes": of_worker}
        shutil.rmtree(folder / name)
    return result


def require_proc() -> None:
    """Refuse to measure memory on systems without /proc."""
    if not Path("/proc/self/status").exists():
        raise DialogueError("this measures memory by /proc, which only Linux has; measure on Linux, or in WSL")


def _peak() -> int:
    """Return this process's peak memory in bytes; getrusage would include what was inherited from the parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    sys.exit(guarded(main))
