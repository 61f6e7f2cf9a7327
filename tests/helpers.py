"""What several test files build: random networks in transformers and here, checkpoints on the disk, programs.

Every parameter is random, norms and biases too: with transformers' fresh weights (unit norms, zero biases, deviation
0.02) swapped norms, lost biases and the wrong GELU would pass.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config as TheirConfig
from transformers import GPT2LMHeadModel

from dialogpt.model import GPT2, GPT2Config
from dialogpt.model.precision import kernels
from dialogpt.weights import Vocabulary, load
from dialogpt.weights.vocabulary import END_OF_TEXT, byte_letters, gpt2_merges

ROOT = Path(__file__).parents[1]
PLAYED = os.environ.get("DIALOGPT_PLAY", "")  # the system that is played, see `tests/played_systems.py`
WINDOWS, LINUX = sys.platform == "win32" or PLAYED == "windows", sys.platform == "linux" and not PLAYED
needs_posix = pytest.mark.skipif(WINDOWS, reason="Windows has no such signals, shells, modes, pipes or terminals")
needs_links = pytest.mark.skipif(WINDOWS, reason="on Windows links need a right")
needs_fork = pytest.mark.skipif(WINDOWS or not hasattr(os, "fork"), reason="this system has no fork")
needs_proc = pytest.mark.skipif(not LINUX, reason="only Linux has /proc, /dev/full and malloc_trim")
WAIT_SECONDS = 300  # how long a test waits for what takes a second: these machines are shared

# What a kernel promises is tested where it runs; the probes are the code's own.
needs_float16 = pytest.mark.skipif(not kernels.Float16.runs_here(), reason="fbgemm's float16 does not run here")
needs_int8 = pytest.mark.skipif(not kernels.Int8.runs_here(), reason="8 bits overflow without VNNI")

REFERENCE = Path(__file__).parents[2] / "shared" / "checkpoints" / "chitchat-reference"
NO_REFERENCE = "the trained reference checkpoint is not beside this checkout"


def their_model(seed: int = 0, dtype: torch.dtype = torch.float64, deviation: float = 0.3, **sizes: Any) -> Any:
    """A `GPT2LMHeadModel` with random parameters; its end token is the last id."""
    vocab_size = sizes.setdefault("vocab_size", 97)
    for name, value in {"n_positions": 48, "n_embd": 24, "n_layer": 2, "n_head": 3}.items():
        sizes.setdefault(name, value)
    sizes.setdefault("eos_token_id", vocab_size - 1)
    config = TheirConfig(bos_token_id=vocab_size - 1, **sizes)
    model = GPT2LMHeadModel(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, deviation, generator=generator)
    return model


def pair(folder: Path, dtype: str = "float64", **sizes: Any) -> tuple[GPT2, Any]:
    """The same random network here and in transformers, carried over by a checkpoint in `folder`."""
    theirs = their_model(dtype=getattr(torch, dtype), **sizes)
    theirs.save_pretrained(folder)
    return load(folder, dtype=dtype), theirs


def small_vocabulary(merges: int = 300) -> Vocabulary:
    """GPT-2's bytes, its first merges and the end token: an ordinary vocabulary of 257 + `merges` ids."""
    pairs = gpt2_merges()[:merges]
    tokens = [*byte_letters().values(), *(merge.replace(" ", "") for merge in pairs), END_OF_TEXT]
    return Vocabulary({token: n for n, token in enumerate(tokens)}, pairs, origin="a test")


def write_published(folder: Path, merges: int = 300, dtype: torch.dtype = torch.float32, **sizes: Any) -> Any:
    """Write a checkpoint as transformers does, with a vocabulary; returns transformers' network."""
    vocabulary = small_vocabulary(merges)
    theirs = their_model(vocab_size=vocabulary.size, dtype=dtype, **sizes)
    theirs.save_pretrained(folder)
    vocabulary.write(folder)
    return theirs


def random_model(seed: int = 0, **sizes: Any) -> GPT2:
    """One of our networks with random parameters, in float64."""
    sizes = {"vocab_size": 97, "n_positions": 48, "n_embd": 24, "n_layer": 2, "n_head": 3, "eos_token_id": 96} | sizes
    model = GPT2(GPT2Config(**sizes)).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model


class FavoursLong:
    """A reranker for which the longest reply is the best."""

    def scores(self, turns: Any, replies: Any, stop: Any = None) -> list[float]:
        return [float(len(reply)) for reply in replies]


def counted_reads(network: GPT2, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each forward pass from now on computes, padding included."""
    reads: list[int] = []
    honest = network.hidden

    def counted(ids: torch.Tensor, *arguments: object) -> torch.Tensor:
        reads.append(ids.numel())
        return honest(ids, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(network, "hidden", counted)
    return reads


def weights_of(source: Any, dtype: str = "float32") -> dict[str, torch.Tensor]:
    """All weights of a checkpoint: for training they are parameters, none is packed."""
    return load(source, dtype=dtype, trainable=True).state_dict()


def same_weights(left: Any, right: Any, dtype: str = "float32") -> bool:
    """Whether two checkpoints hold the same values, to the bit."""
    ours, theirs = weights_of(left, dtype), weights_of(right, dtype)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def seeded(seed: int = 0) -> torch.Generator:
    """A generator that starts at `seed`."""
    return torch.Generator().manual_seed(seed)


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A program, which is killed when the test is done with it: one that fails in the middle waits for nothing."""
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def deadline(seconds: int = 30) -> Iterator[None]:
    """Fail a test that waits for ever, such as for a pipe's other end, rather than wait with it (POSIX)."""

    def fail(*_: object) -> None:
        pytest.fail(f"this took more than {seconds} s; what is it waiting for?")  # no Exception, so none catches it

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def environment(**changes: str) -> dict[str, str]:
    """The environment for a program that imports this checkout from any folder, and plays the system that is played."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **changes}


def await_torch(process: subprocess.Popen[Any]) -> None:
    """Wait until a program has torch's library mapped, which is inside `main`; see `needs_proc`."""
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        time.sleep(0.005)


AXE = os.environ.get("DIALOGPT_AXE")  # a file axe.min.js, of the npm package axe-core
with_axe = pytest.mark.skipif(AXE is None, reason="DIALOGPT_AXE names no axe.min.js (npm install axe-core)")


def axe_violations(page: Any) -> list[Any]:
    """What axe-core finds in a page of a browser as it is shown now; the page must not forbid its script."""
    page.evaluate(Path(AXE or "").read_text(encoding="utf-8"))
    found: list[Any] = page.evaluate("axe.run().then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html)]))")
    return found
