"""A screened output head: exact logits for the tokens that can be chosen, at half the memory traffic.

The head is the largest weight, and of its 50,257 logits greedy decoding needs the highest, and top-k sampling the k
highest. Here each is computed with the weight rounded to float16, and a bound on the error decides for which tokens it
is computed in float32, too. How many can matter is left to `dialogpt.decoding.screened`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dialogpt.model.precision.kernels import CHUNK, Float16, packing_threads

MIN_SIZE = 2**23  # weights; a smaller head is read faster than the additional operators run, which take 0.3 ms
SCREEN_AFTER = 100  # tokens: preparing takes as long as screening saves in so many, 0.3 s with small's head
PART = 8192  # rows that are prepared at a time, in about twice the time of a token
MIN_PART = 32  # a larger part of all tokens is not screened
ROUNDING = 2.0**-23  # of sums in float32: 2^-24 a term, in each of the two products


class ScreenedHead:
    """The logits of one hidden state, exact where they can be among the highest.

    For a weight W, W16 its values rounded to float16, and a hidden state x, ``|W x - W16 x| <= |W - W16| |x|`` with
    Euclidean norms, row by row (Cauchy-Schwarz). Both products are sums of C float32 numbers, in any order, which adds
    at most ``(C + 8) ROUNDING |W| |x|``, with what adding the bound itself is rounded by.
    """

    def __init__(self, weight: Tensor) -> None:
        """Take a weight (V, C), which stays where it is: some of its rows are read at each step."""
        self.weight = weight
        self.parts: dict[int, tuple[list[Float16], Tensor]] = {}  # by the first row: rounded rows, and their errors
        self.usable = True

    @torch.inference_mode(False)
    @torch.no_grad()
    def prepare(self) -> bool:
        """Round the next part of the weight, and return whether all parts are; threads may each round the same part."""
        start = PART * len(self.parts)
        if self.usable and start < len(self.weight):
            part = self.weight[start : start + PART].float()
            error = torch.cat(
                [
                    (rows - rows.half().float()).norm(dim=1) + (rows.size(1) + 8) * ROUNDING * rows.norm(dim=1)
                    for rows in torch.split(part, CHUNK)
                ]
            )
            # A number beyond float16's is an infinite error; packing it would replace it in the weight itself, too.
            self.usable = math.isfinite(float(error.sum()))
            if self.usable:
                with packing_threads() as pool:
                    halves = [*pool.map(lambda rows: Float16(rows, None, gelu=False), torch.split(part, PART // 2))]
                self.parts[start] = halves, error
        return self.usable and PART * len(self.parts) >= len(self.weight)

    def __call__(self, hidden: Tensor, count: int) -> Tensor | None:
        """Return logits (1, V): those that can be among the `count` highest, and minus infinity for others.

        All parts are to be prepared before.

        Args:
            hidden: (1, C).
            count: at least 1; ties with the last of them are kept.

        Returns:
            None where the logits are not finite, or where screening saves nothing.
        """
        if count > len(self.weight) // MIN_PART:
            return None
        halves, errors = zip(*self.parts.values(), strict=True)
        rough = torch.cat([half(hidden) for pair in halves for half in pair], dim=-1)[0]  # (V,)
        error = torch.cat(errors) * hidden.norm()  # (V,)
        highest = rough + error
        if not math.isfinite(float(highest.sum())):
            return None
        contenders = (highest >= (rough - error).topk(count).values[-1]).nonzero()[:, 0]
        logits = torch.full_like(rough, -torch.inf)
        logits[contenders] = F.linear(hidden, self.weight[contenders].float())[0]
        return logits[None]  # (1, V)

    def __deepcopy__(self, _: object) -> ScreenedHead:
        return self
