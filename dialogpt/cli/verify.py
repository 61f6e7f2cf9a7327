"""Proof that a checkpoint is right: the same numbers as transformers or, where that is not installed, what shows alone.

`compare` goes the data's way: token ids, layers, logits, the cache, greedy and sampled tokens. What transformers reads
is the published folder itself where it can (`readable`), so that our reading of the file is judged as well.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from dialogpt.cli.verify_replies import compare_replies
from dialogpt.generation import generate
from dialogpt.generation_config import GenerationConfig
from dialogpt.model import GPT2, KVCache
from dialogpt.tokenizer import Tokenizer
from dialogpt.weights import Checkpoint, export, load, load_ranking_head
from dialogpt.weights.formats import container, count_non_finite, equal_values
from dialogpt.weights.formats.states import find_state
from dialogpt.weights.names import EMBEDDING, OUTPUT_HEAD, PREFIX, RANKING_HEAD
from dialogpt.weights.published import bare_name
from dialogpt.weights.vocabulary import TOKENIZER_FILES
from dialogpt.weights.wrapped import unwrapped

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
NEW_TOKENS = 32
SENTENCE = "I was at home all day because it was raining. What did you do? I went to see my friends and we had dinner."
FAR_FROM_CHANCE = (
    0.6  # of the loss of guessing, ln(vocabulary); tiny and the reference have 0.33, with random weights 1
)
SAMPLED = GenerationConfig(do_sample=True, temperature=0.8, top_k=40, top_p=0.9)
GREEDY = GenerationConfig()


@dataclass(frozen=True)
class Result:
    """One line of the table: what was compared, how it came out, and whether that is equal (None: not compared)."""

    name: str
    outcome: str
    equal: bool | None


def installed() -> bool:
    """Whether transformers is there to compare with."""
    return find_spec("transformers") is not None


def table(results: list[Result]) -> str:
    """The results for people, a line each."""
    width = max(len(result.name) for result in results)
    return "\n".join(f"{result.name:<{width}}  {VERDICTS[result.equal]}  {result.outcome}" for result in results)


def passed(results: list[Result]) -> bool:
    """Whether nothing that was compared differs."""
    return all(result.equal is not False for result in results)


@contextmanager
def readable(checkpoint: Checkpoint) -> Iterator[Path]:
    """A folder that transformers reads, as little as possible of it through our own hands.

    It is the published folder itself or, where transformers does not read its form, one that torch and safetensors have
    read (after our reader has seen that it is harmless); of a checkpoint in our format, an export.
    """
    folder = checkpoint.path
    named = all(file.name.startswith(("model", "pytorch_model")) for file in checkpoint.files)
    vocabulary = any((folder / name).exists() for name in ("vocab.json", "tokenizer.json"))
    if checkpoint.usual and named and vocabulary and (folder / "config.json").exists():
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        exported = Path(temporary) / "exported"
        export(checkpoint, exported)
        own = checkpoint.ours or checkpoint.merged_from is not None  # no file holds what an adapter was merged into
        state = {} if own else _read_independently(checkpoint)
        if state:
            kept = {name: tensor for name, tensor in state.items() if name not in checkpoint.ignored}
            as_published = {_as_transformers(name): tensor.contiguous() for name, tensor in kept.items()}
            (exported / "model.safetensors").unlink()
            save_file(as_published, exported / "model.safetensors", {"format": "pt"})
        yield exported


@contextmanager
def merged_by_peft(base: Checkpoint, adapter: str) -> Iterator[Path]:
    """A folder that transformers reads: the base as in `readable`, with an adapter that peft itself has merged."""
    import peft
    from transformers import GPT2LMHeadModel

    with readable(base) as folder, tempfile.TemporaryDirectory() as temporary:
        for name in ("vocab.json", "merges.txt", "generation_config.json", *TOKENIZER_FILES):
            if (folder / name).is_file():
                shutil.copy(folder / name, temporary)
        with warnings.catch_warnings():  # each version of peft has others
            warnings.simplefilter("ignore")
            network = GPT2LMHeadModel.from_pretrained(folder)
            peft.PeftModel.from_pretrained(network, adapter).merge_and_unload().save_pretrained(temporary)
        yield Path(temporary)


def _read_independently(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors of a published checkpoint as torch and safetensors read them, after ours found the files harmless.

    Empty where they do not read it (a training state that names classes) or its matrices are nanoGPT's.
    """
    if checkpoint.linear:
        return {}
    state: dict[str, Tensor] = {}
    for file in checkpoint.files:
        if file.suffix == ".safetensors" or container(file) == "safetensors":
            state |= load_file(file)
            continue
        try:  # from torch 2.10 on its reader is safe, which is why this package asks for it
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # it names classes, which only our reader passes over
            return {}
        state |= find_state(file, content, Tensor).tensors
    return unwrapped(state)[0]


def _as_transformers(name: str) -> str:
    """A name with the one prefix that transformers gives it."""
    bare = bare_name(name)
    return bare if bare in (RANKING_HEAD.published, OUTPUT_HEAD.published) else PREFIX + bare


def compare(
    checkpoint: Checkpoint, folder: Path, dtype: str, seed: int, *, layers: bool, rounded: torch.dtype | None = None
) -> list[Result]:
    """All comparisons of one checkpoint, in the order of the data's way through it.

    Args:
        checkpoint: ours to judge.
        folder: the same as transformers reads it.
        dtype: a name in `TOLERANCE`, to compute in.
        seed: of the random ids that both are given.
        layers: whether to list every layer, and not only the first that differs.
        rounded: the dtype that the weights were converted to on the way, so that theirs are rounded as well.
    """
    ours, theirs = load(checkpoint, dtype=dtype), reference(folder, dtype)
    if rounded is not None:
        theirs = theirs.to(rounded).to(getattr(torch, dtype))
    results = [compare_tokens(checkpoint, folder)]
    config = ours.config
    generator = torch.Generator().manual_seed(seed)
    length = min(64, config.n_positions)
    ids = torch.randint(0, config.vocab_size, (2, length), generator=generator)  # (B, T)
    with torch.inference_mode():
        differences = layer_differences(ours, theirs, ids)
        first = next((name for name, difference in differences if difference > TOLERANCE[dtype]), None)
        for name, difference in differences:
            if layers or name in (first, "logits"):
                note = " <- the first that differs" if name == first else ""
                same = difference <= TOLERANCE[dtype]
                results.append(Result(name, f"{difference:.1e} of the largest value{note}", same))
        results.append(compare_cached(ours, ids, TOLERANCE[dtype]))
        if checkpoint.ranking_head is not None and rounded is None:
            results.append(compare_ranking(checkpoint, ours, folder, dtype, ids))
    prompt = ids[0, : length // 2].tolist()  # empty where the network has one position, which leaves none to say
    new = min(NEW_TOKENS, config.n_positions - len(prompt))
    for name, settings in (("greedy tokens", GREEDY), ("sampled tokens", SAMPLED)):
        if prompt:
            results.append(compare_generation(name, ours, theirs, prompt, settings, new, seed))
    results.append(Result("whole replies", *compare_replies(checkpoint, ours, theirs, folder)))
    return results


def check_alone(checkpoint: Checkpoint, source: Checkpoint) -> list[Result]:
    """What shows without transformers whether a checkpoint was read rightly.

    Weights that are scrambled show in the loss on an English sentence; one matrix turned the wrong way need not (tiny:
    4.6 rather than 3.0, and 9.0 is guessing), which takes transformers to see.

    Args:
        checkpoint: what was written.
        source: what it was made from.
    """
    with torch.device("meta"):
        expected = {name: tuple(parameter.shape) for name, parameter in GPT2(checkpoint.config).named_parameters()}
    right = {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == expected
    embedding = source.tensors[EMBEDDING].read()
    tied = all(equal_values(head.read(), embedding) for head in source.heads)
    count = sum(count_non_finite(tensor.read()) for tensor in checkpoint.stored.values())
    copies = f"the token embedding, and {len(source.heads)} copies in the source equal it"
    results = [
        Result("shapes", f"{len(expected)} tensors as the network has them", right),
        Result("output head", copies if source.heads else "the token embedding", tied),
        Result("values", "all finite" if not count else f"{count:,} are NaN or infinite", not count),
    ]
    if checkpoint.vocabulary is None:
        return [*results, Result("loss", "not computed: the checkpoint has no vocabulary", None)]
    ids = Tokenizer.load(checkpoint).encode(SENTENCE)[: checkpoint.config.n_positions]
    with torch.inference_mode():
        logits = load(checkpoint)(torch.tensor([ids]))[0]  # (T, V)
        loss = float(F.cross_entropy(logits[:-1], torch.tensor(ids[1:])))
    chance = math.log(checkpoint.config.vocab_size)
    outcome = f"{loss:.2f} a token of a sentence; guessing has {chance:.2f}"
    return [*results, Result("loss", outcome, loss < FAR_FROM_CHANCE * chance)]


def compare_ranking(checkpoint: Checkpoint, ours: GPT2, folder: Path, dtype: str, ids: Tensor) -> Result:
    """The score that a DialogRPT gives to each row of ids."""
    from transformers import GPT2ForSequenceClassification

    theirs = GPT2ForSequenceClassification.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    scores = ours.hidden(ids)[:, -1] @ load_ranking_head(checkpoint, dtype=dtype).T  # (B, 1)
    expected = torch.cat([theirs(row[None]).logits for row in ids])
    difference = relative_difference(scores, expected)
    return Result("ranking head", f"{difference:.1e} of the largest score", difference <= TOLERANCE[dtype])


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
    wrong = [text for text in TEXTS if ours.encode(text) != _their_ids(theirs, text)]
    return Result("token ids", f"{len(TEXTS)} texts" if not wrong else f"differ for {wrong[0]!r}", not wrong)


def _their_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text in transformers, without the tokens that a tokenizer puts around texts of its own."""
    ids: list[int] = tokenizer(text, split_special_tokens=True, add_special_tokens=False).input_ids
    return ids


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
