"""Random generators, and the noise that tokens are sampled with, as `torch.multinomial` does.

To sample from probabilities p, torch draws noise e from an exponential distribution and takes the token with the
largest p / e: e / p is the waiting time for an event of rate p, and the first event is that of token i with
probability p_i. Drawing that noise here lets sequences of one batch have generators of their own.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

DEVICES_WITH_RARE_ZEROS = ("cpu",)  # of `exponential_`: one in 2^53; MPS draws them often


def fresh_generator(device: torch.device | str = "cpu", seed: int | None = None) -> torch.Generator:
    """Return a random generator; without a seed it is a different one each time."""
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()  # a new Generator always starts at the same number
    else:
        generator.manual_seed(seed)
    return generator


def exponential_noise(groups: Sequence[tuple[torch.Generator, int, list[int]]], like: Tensor) -> Tensor:
    """Draw exponential noise for the rows of a batch: (B, V), with no zeros, or rare ones (`DEVICES_WITH_RARE_ZEROS`).

    Args:
        groups: of each generator, how many rows share it, and the indices among them whose noise is used. Noise is
            drawn for all of them, in one matrix, as transformers draws for finished sequences too.
        like: (B, V), the dtype and device; B is the number of used rows.
    """
    on_cpu = like.device.type == "cpu"
    from_uniform = on_cpu and _uniform_gives_exponential()  # as -log(1 - u), and faster
    draw = Tensor.uniform_ if from_uniform else Tensor.exponential_
    noise = torch.empty_like(like, dtype=torch.float64 if from_uniform else None)

    @torch.inference_mode()  # each thread has a mode of its own
    def fill(group: tuple[torch.Generator, int, list[int]], into: Tensor) -> None:
        generator, count, used = group
        if len(used) == count:
            draw(into, generator=generator)
        else:
            into.copy_(draw(into.new_empty(count, into.size(1)), generator=generator)[used])

    slices = noise.split([len(used) for _, _, used in groups])  # type: ignore[no-untyped-call]
    run = _threads().map if len(groups) > 1 and on_cpu else map  # a GPU has threads of its own
    deque(run(fill, groups, slices), maxlen=0)  # waits for all, and raises what one raised
    return noise.neg_().log1p_().neg_().to(like.dtype) if from_uniform else without_zeros(noise)


def without_zeros(noise: Tensor) -> Tensor:
    """Replace exact zeros in exponential noise, in place, but on `DEVICES_WITH_RARE_ZEROS`.

    MPS draws exact zeros (pytorch#192577), and a banned token's 0 / 0 is NaN, which argmax takes for the largest: about
    every 600th token was a banned one.
    """
    return noise if noise.device.type in DEVICES_WITH_RARE_ZEROS else noise.clamp_(min=torch.finfo(noise.dtype).tiny)


def sample_without_replacement(probabilities: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Sample indices as `torch.multinomial` does: (B, N) -> (B, count)."""
    if probabilities.device.type in DEVICES_WITH_RARE_ZEROS:
        return torch.multinomial(probabilities, count, generator=generator)
    noise = without_zeros(torch.empty_like(probabilities).exponential_(generator=generator))  # (B, N)
    return probabilities.div(noise).topk(count).indices


@functools.cache
def _uniform_gives_exponential() -> bool:
    """Whether a CPU's `exponential_` equals -log(1 - u), to the bit, of the numbers u that `uniform_` draws in float64.

    Then these two steps replace it: the logarithm is vectorized and threaded, so that a number takes 6 ns and not 19.
    Where torch uses MKL's generator, on Intel's processors, the numbers differ.
    """
    drawn = torch.empty(1000).exponential_(generator=fresh_generator(seed=0))
    uniform = torch.empty(1000, dtype=torch.float64).uniform_(generator=fresh_generator(seed=0))
    return torch.equal(drawn, uniform.neg_().log1p_().neg_().float())


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Threads for several generators: each draws on one processor."""
    return ThreadPoolExecutor(torch.get_num_threads())


if hasattr(os, "register_at_fork"):  # a forked process has none of its parent's threads
    os.register_at_fork(after_in_child=_threads.cache_clear)
