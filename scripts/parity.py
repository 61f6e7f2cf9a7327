"""Compare a checkpoint in this project with the same one in transformers, step by step, and print a table.

    python scripts/parity.py SOURCE [--dtype float64] [--seed 0]

Token ids, every layer, logits, cached against uncached, greedy and sampled tokens. The first layer that differs is
named. A converted checkpoint is compared with its own export. Needs transformers (the `test` extra). Exit status 0 if
all is equal, 1 if not. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dialogpt import GenerationConfig, Tokenizer, generate
from dialogpt.cli import guarded
from model import GPT2, KVCache
from weights import Checkpoint, CheckpointError, export, load, open_checkpoint

TOLERANCE = {"float64": 1e-9, "float32": 1e-4}  # of the largest value compared
VERDICTS = {True: "equal ", False: "DIFFER", None: "  -   "}
TEXTS = (
    "Hello, how are you?",
    "I'll say it's 3 o'clock, they've gone -- haven't they?",
    "  two spaces,\ttabs\n\nand lines   ",
    "naïve café, Größe, 漢字かな交じり文, русский, עברית, العربية",
    "🤖👩‍👩‍👧 flags 🇩🇪 and joiners",
    "typed <|endoftext|> is only text",
    "x" * 200 + " " * 200 + "123456789.0e-5",
)
SAMPLED = GenerationConfig(do_sample=True, temperature=0.8, top_k=40, top_p=0.9)
GREEDY = GenerationConfig()


@dataclass(frozen=True)
class Result:
    """One line of the table: what was compared, how it came out, and whether that is equal (None: not compared)."""

    name: str
    outcome: str
    equal: bool | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compare a checkpoint with transformers.")
    parser.add_argument("source")
    parser.add_argument("--dtype", choices=TOLERANCE, default="float64")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if not 0 <= options.seed < 1 << 63:
        parser.error(f"--seed is {options.seed}, expected a whole number from 0 to 2^63 - 1")
    try:
        results = compare(open_checkpoint(options.source), options.dtype, options.seed)
    except CheckpointError as error:
        print(f"parity: error: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f'parity: error: {error}; install it with: pip install -c constraints.txt -e ".[test]"', file=sys.stderr)
        return 1
    width = max(len(result.name) for result in results)
    for result in results:
        print(f"{result.name:<{width}}  {VERDICTS[result.equal]}  {result.outcome}")
    equal = all(result.equal is not False for result in results)
    skipped = [result.name for result in results if result.equal is None]
    print(json.dumps({"source": options.source, "dtype": options.dtype, "equal": equal, "skipped": skipped}))
    return 0 if equal else 1


def compare(checkpoint: Checkpoint, dtype: str, seed: int) -> list[Result]:
    """All comparisons of one checkpoint, in the order of the data's way through it."""
    ours = load(checkpoint, dtype=dtype)
    with tempfile.TemporaryDirectory() as temporary:
        folder = checkpoint.path
        if checkpoint.ours or not any((folder / name).exists() for name in ("vocab.json", "tokenizer.json")):
            folder = Path(temporary) / "exported"
            export(checkpoint, folder)
        theirs = reference(folder, dtype)
        results = [compare_tokens(checkpoint, folder)]
    config = ours.config
    generator = torch.Generator().manual_seed(seed)
    length = min(64, config.n_positions)
    ids = torch.randint(0, config.vocab_size, (2, length), generator=generator)  # (B, T)
    with torch.inference_mode():
        differences = layer_differences(ours, theirs, ids)
        first = next((name for name, difference in differences if difference > TOLERANCE[dtype]), None)
        for name, difference in differences:
            note = " <- the first that differs" if name == first else ""
            results.append(Result(name, f"{difference:.1e} of the largest value{note}", difference <= TOLERANCE[dtype]))
        results.append(compare_cached(ours, ids, TOLERANCE[dtype]))
    prompt = ids[0, : length // 2].tolist()  # empty where the network has one position, which leaves none to say
    new = min(40, config.n_positions - len(prompt))
    for name, settings in (("greedy tokens", GREEDY), ("sampled tokens", SAMPLED)):
        if prompt:
            results.append(compare_generation(name, ours, theirs, prompt, settings, new, seed))
    return results


def reference(folder: Path, dtype: str) -> Any:
    """The checkpoint in transformers."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import GenerationConfig as TheirGenerationConfig
    from transformers import GPT2LMHeadModel, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    network = GPT2LMHeadModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    network.generation_config = TheirGenerationConfig()  # the folder's own settings are not what is compared
    return network


def compare_tokens(checkpoint: Checkpoint, folder: Path) -> Result:
    """Token ids of a few texts that tokenizers stumble over."""
    if checkpoint.vocabulary is None:
        return Result("token ids", "not compared: the checkpoint has no vocabulary", None)
    from transformers import GPT2Tokenizer

    theirs = GPT2Tokenizer.from_pretrained(folder)
    ours = Tokenizer.load(checkpoint)
    wrong = [text for text in TEXTS if ours.encode(text) != theirs(text, split_special_tokens=True).input_ids]
    return Result("token ids", f"{len(TEXTS)} texts" if not wrong else f"differ for {wrong[0]!r}", not wrong)


def layer_differences(ours: GPT2, theirs: Any, ids: Tensor) -> list[tuple[str, float]]:
    """The largest difference after each layer, relative to the largest value there, in the order of computation.

    Args:
        ours: a network.
        theirs: a `GPT2LMHeadModel` of the same sizes.
        ids: (B, T).
    """
    inner = theirs.transformer
    pairs: list[tuple[str, nn.Module, nn.Module]] = [("embeddings", ours.dropout, inner.drop)]
    for layer, (block, other) in enumerate(zip(ours.blocks, inner.h, strict=True)):
        pairs.append((f"block {layer} attention", block.attention, other.attn))  # type: ignore[arg-type]
        pairs.append((f"block {layer}", block, other))
    pairs.append(("final norm", ours.final_norm, inner.ln_f))
    outputs: dict[tuple[str, str], Tensor] = {}
    hooks = [
        module.register_forward_hook(_keep(outputs, (name, side)))
        for name, left, right in pairs
        for side, module in (("ours", left), ("theirs", right))
    ]
    try:
        outputs["logits", "ours"], outputs["logits", "theirs"] = ours(ids), theirs(ids).logits
    finally:
        for hook in hooks:
            hook.remove()
    names = [*(name for name, _, _ in pairs), "logits"]
    return [(name, relative_difference(outputs[name, "ours"], outputs[name, "theirs"])) for name in names]


def _keep(outputs: dict[tuple[str, str], Tensor], key: tuple[str, str]) -> Callable[..., None]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs[key] = output[0] if isinstance(output, tuple) else output

    return hook


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a part of the largest value of the reference."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def compare_cached(ours: GPT2, ids: Tensor, tolerance: float) -> Result:
    """Reading in pieces, each after what is cached, against reading at once."""
    T = ids.size(1)
    cuts = sorted({0, T // 3, T // 3 + 1, T // 2, T - 1, T})
    cache = KVCache.for_model(ours, rows=ids.size(0))
    parts = [ours(ids[:, start:end], cache) for start, end in itertools.pairwise(cuts)]
    difference = relative_difference(torch.cat(parts, dim=1), ours(ids))
    return Result("cached", f"{difference:.1e} of the largest logit, {len(parts)} pieces", difference <= tolerance)


def compare_generation(
    name: str, ours: GPT2, theirs: Any, prompt: list[int], settings: GenerationConfig, new: int, seed: int
) -> Result:
    """The tokens that both choose after the same prompt and with the same seed."""
    end = ours.config.vocab_size  # an end token that cannot come: all tokens are compared
    config = replace(settings, max_new_tokens=new, eos_token_id=end)
    mine = [step.id for step in generate(ours, prompt, config, generator=torch.Generator().manual_seed(seed))]
    torch.manual_seed(seed)
    ids = torch.tensor([prompt])
    output = theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=config.do_sample,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        eos_token_id=end,
        pad_token_id=end,
    )[0, len(prompt) :].tolist()
    same = next((place for place, (a, b) in enumerate(zip(mine, output, strict=True)) if a != b), new)
    return Result(name, f"{new} tokens" if same == new else f"differ from token {same + 1} of {new} on", same == new)


if __name__ == "__main__":
    sys.exit(guarded(main))
