"""Modules with packed weights, which replace a network's linear layers and its token embedding.

They are for inference only, in float32, on a CPU: packed weights are not parameters. `choice.py` chooses the kernel.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dialogpt.model.cache import KVCache
from dialogpt.model.gpt2 import GPT2, Block, TokenEmbedding
from dialogpt.model.precision.choice import FLOAT32_OF_FLOAT16, kernel_for
from dialogpt.model.precision.kernels import Float16, Kernel, Plain, packing_threads, quantized
from dialogpt.model.precision.screen import MIN_SIZE, SCREEN_AFTER, ScreenedHead

FLOAT16_MAX = 65504  # below 2^-14 float16's numbers are 2^-24 apart, so bfloat16's move by up to 2^-25
INFERENCE_ONLY = "a network with packed weights cannot be trained and gives no gradients; load it with trainable=True"
NOT_PICKLED = (
    "a network with packed weights cannot be pickled; keep the name of its checkpoint and load that again, or load it "
    "with trainable=True, which packs nothing"
)
Read = Callable[[], Tensor]
Norm = tuple[tuple[int, ...], Tensor, Tensor, float]  # what torch.layer_norm takes after its input
logger = logging.getLogger(__name__)


class _Reader:
    """What reads a weight: shared by copies of a module, and refused by pickle, which would fail inside of it."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def __call__(self) -> Tensor:
        return self._read()

    def __deepcopy__(self, _: object) -> _Reader:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(NOT_PICKLED)


class PackedLinear(nn.Module):
    """A linear layer of float32 activations, (..., in) -> (..., out), for inference only.

    Its weight is packed lazily: packing 500 MB takes up to a second, and opening a checkpoint stays fast.
    """

    def __init__(
        self, read: Read, read_bias: Read | None, precision: str, gelu: bool, *, is_head: bool = False
    ) -> None:
        """Create the layer with an unpacked weight.

        Args:
            read: reads its weight (out, in), also for `state_dict`, which thereby is complete.
            read_bias: reads its bias (out,); None where it has none.
            precision: one of `CPU_PRECISIONS`.
            gelu: whether a GELU follows, which is then applied here: in float32 in the same pass.
            is_head: whether results are logits.
        """
        super().__init__()
        self.read = _Reader(read)
        self.bias: Tensor | None
        self.register_buffer("bias", None if read_bias is None else read_bias().to(torch.float32, copy=True))
        self.precision, self.gelu, self.is_head = precision, gelu, is_head
        self.weight: Tensor | None = read()  # until it is packed
        self.kernel: Kernel | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.training or (x.requires_grad and torch.is_grad_enabled()):
            raise RuntimeError(INFERENCE_ONLY)
        return (self.kernel or self.packed())(x)

    def packed(self) -> Kernel:
        """Pack the weight; concurrent threads may each pack it, and one result is kept."""
        weight, bias = self.weight, self.bias
        if weight is not None:  # else another thread was faster
            self.kernel = pack(weight, bias, self.precision, self.gelu, is_head=self.is_head)
            self.weight = None
        assert self.kernel is not None
        return self.kernel

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.read().float()

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLinear:
        _refuse_conversion(fn)
        return self


class PackedEmbedding(TokenEmbedding):
    """The token embedding: mapped from its file for looking tokens up, and packed for the head.

    The first look-up packs it and all layers, in several threads. It begins with the head, which takes longest.
    """

    def __init__(
        self, read: Read, precision: str, layers: Sequence[PackedLinear] = (), *, is_head: bool = True
    ) -> None:
        """Take a weight (V, C).

        Args:
            read: reads it; raises ValueError once it cannot be read any more.
            precision: one of `CPU_PRECISIONS`.
            layers: what else is packed at the first look-up.
            is_head: whether it is the output head too; else it is only mapped.
        """
        weight = read()
        super().__init__(weight.size(0), weight.size(1), _weight=weight)
        self.read, self.precision, self.is_head = _Reader(read), precision, is_head
        self.layers: tuple[PackedLinear, ...] | None = tuple(layers)  # until they are packed
        self.kernel: Kernel | None = None
        self.screened: ScreenedHead | None = None
        self.decoded = 0  # tokens for which it could have been screened

    @property
    def activation_dtype(self) -> torch.dtype:
        """What the network computes in."""
        return torch.float32

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, C), in float32."""
        if self.layers is not None:
            self._pack_all(self.layers)
        return F.embedding(ids, self.weight).float()

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V)."""
        if self.training or (hidden.requires_grad and torch.is_grad_enabled()):
            raise RuntimeError(INFERENCE_ONLY)
        return (self.kernel or self.packed())(hidden)

    @property
    def screens(self) -> bool:
        """Whether it is a head for which a `ScreenedHead` pays."""
        in_float32 = self.precision == "float32" and self.weight.dtype == torch.float32
        return self.is_head and in_float32 and self.weight.numel() >= MIN_SIZE

    def screened_logits(self, hidden: Tensor, count: int) -> Tensor | None:
        """See the function of this name."""
        if not self.screens or isinstance(self.kernel or self.packed(), Plain):
            return None
        self.decoded += 1
        if self.decoded <= SCREEN_AFTER or not Float16.runs_here():
            return None
        self.screened = self.screened or ScreenedHead(self.weight)
        return self.screened(hidden, count) if self.screened.prepare() else None

    def _pack_all(self, layers: Sequence[PackedLinear]) -> None:
        """Pack head and layers; concurrent threads may each do so."""
        jobs = [self.packed] * self.is_head + [layer.packed for layer in layers]
        with packing_threads() as pool:
            for job in [pool.submit(job) for job in jobs]:
                job.result()
        self.layers = None

    def packed(self) -> Kernel:
        """Pack the weight and map it again; concurrent threads each do so, and one result is kept."""
        self.kernel = kernel = pack(self.weight, None, self.precision, gelu=False, is_head=True)
        with suppress(ValueError):  # where the file is gone, what was read of it stays in memory
            self.weight = nn.Parameter(self.read(), requires_grad=False)
        return kernel

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.read().float()

    def _apply(self, fn: Any, recurse: bool = True) -> PackedEmbedding:
        _refuse_conversion(fn)
        return self


class OneRow(NamedTuple):
    """What a block needs for one row: looked up once, as a lookup in a module takes 0.4 us, and a step makes 200."""

    attention_norm: Norm
    qkv: Kernel
    n_head: int
    scale: float
    output: Kernel
    mlp_norm: Norm
    up: Kernel
    activation: Callable[[Tensor], Tensor] | None
    down: Kernel


class PackedBlock(Block):
    """A block that decodes one token of one dialogue by a shorter way; all else is `Block`'s way.

    Both compute the same, to the bit. Here no module is called as one, one token needs no permutation of its heads, and
    the residual stream is added to in place. Of a step of small in int8 this saves 0.6 ms of 9.
    """

    @classmethod
    def of(cls, block: nn.Module) -> PackedBlock:
        """Return one with the modules of a block, which it replaces; constructing it anew takes 5 ms a block."""
        packed = cls.__new__(cls)
        packed.__dict__.update(block.__dict__)
        return packed

    def forward(self, x: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        C = x.size(-1)
        if x.numel() != C or mask is not None or cache is None or self.training or torch.is_grad_enabled():
            return super().forward(x, mask, cache, layer)
        attention_norm, qkv, n_head, scale, output, mlp_norm, up, activation, down = self.one_row
        new = qkv(_normed(x, attention_norm)).view(3, 1, n_head, 1, C // n_head)  # (3, B, H, T, D), as B = T = 1
        keys, values = cache.append(layer, new[1:])  # each (B, H, S, D)
        heads = F.scaled_dot_product_attention(new[0], keys, values, scale=scale)  # (B, H, T, D)
        x = output(heads.view(1, 1, C)).add_(x)
        inner = up(_normed(x, mlp_norm))
        return down(inner if activation is None else activation(inner)).add_(x)

    @functools.cached_property
    def one_row(self) -> OneRow:
        """Pack the block's weights where they are not yet."""
        attention, mlp = self.attention, self.mlp
        qkv, output, up, down = map(_kernel_of, (attention.qkv, attention.output, mlp.up, mlp.down))
        activation = None if isinstance(mlp.activation, nn.Identity) else mlp.activation
        norms = [
            (norm.normalized_shape, norm.weight, norm.bias, norm.eps) for norm in (self.attention_norm, self.mlp_norm)
        ]
        return OneRow(norms[0], qkv, attention.n_head, attention.scale, output, norms[1], up, activation, down)


def _kernel_of(layer: nn.Module) -> Kernel:
    assert isinstance(layer, PackedLinear)
    return layer.kernel or layer.packed()


def _normed(x: Tensor, norm: Norm) -> Tensor:
    return torch.layer_norm(x, *norm)


class DirectLayerNorm(nn.LayerNorm):
    """A norm that calls torch's operator at once: 2.4 us where `nn.LayerNorm` takes 5.4, 25 times a step of small."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return torch.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


def _refuse_conversion(convert: Callable[[Tensor], Tensor]) -> None:
    """Refuse to move packed weights, or to convert them; `model.cpu()` and the like change nothing."""
    probe = torch.empty(0)
    if convert(probe).dtype != probe.dtype or convert(probe).device != probe.device:
        raise RuntimeError("packed weights keep their dtype, on the CPU; load the network again as it should be")


def bytes_per_step(model: GPT2) -> float:
    """How many bytes of weights a decoding step reads, on which its time depends; packed or not."""
    config, head = model.config, model.token_embedding
    count = (
        config.vocab_size * config.n_embd + config.n_layer * (4 * config.n_embd + 2 * config.inner_dim) * config.n_embd
    )
    if not isinstance(head, PackedEmbedding):
        return float(count * head.weight.element_size())
    stored_in_float16 = head.precision == "float32" and head.weight.dtype == torch.float16
    kernel = kernel_for(FLOAT32_OF_FLOAT16 if stored_in_float16 else head.precision, config.n_embd)
    return count * (32 if kernel is None else kernel.bits) / 8


def screens(model: GPT2) -> bool:
    """Whether a network's head is one for which `screened_logits` pays: large, tied, and stored in float32."""
    head = model.token_embedding
    return isinstance(head, PackedEmbedding) and head.screens


def screened_logits(model: GPT2, hidden: Tensor, count: int) -> Tensor | None:
    """Compute the logits of one hidden state that can be among the `count` highest: (1, C) -> (1, V).

    Others are minus infinity. None where this is not faster than all of them.
    """
    head = model.token_embedding
    return head.screened_logits(hidden, count) if isinstance(head, PackedEmbedding) else None


@torch.inference_mode(False)
@torch.no_grad()
def pack(weight: Tensor, bias: Tensor | None, precision: str, gelu: bool, *, is_head: bool = False) -> Kernel:
    """Pack a weight for a precision: rounded to it, in the kernel that this machine has for it."""
    if precision == "float32" and weight.dtype == torch.float16:
        precision = FLOAT32_OF_FLOAT16  # the same numbers in half the bytes
    elif precision == "bfloat16":
        weight = weight.bfloat16()
    kernel = kernel_for(precision, weight.size(1), for_logits=is_head)
    becomes_float16 = weight.dtype != torch.float16 and (precision == "float16" or kernel is Float16)
    if becomes_float16 and float(torch.stack(weight.aminmax()).abs().max()) > FLOAT16_MAX:
        warn_once(f"a weight is beyond float16, whose largest number is {FLOAT16_MAX:,}: its layer is kept in float32")
        precision, kernel = "float32", kernel_for("float32", weight.size(1), for_logits=is_head)
    if kernel is None:
        weight, kernel = rounded(weight, precision), kernel_for("float32", weight.size(1), for_logits=is_head)
    assert kernel is not None  # float32 has one everywhere
    return kernel(weight, bias, gelu)


def rounded(weight: Tensor, precision: str) -> Tensor:
    """Round a weight to float16, or to the 8 bits that take the place of int8 and int4, for a product in float32."""
    if precision == "float16":
        return weight.half()
    levels, scales = quantized(weight)
    return levels * scales[:, None]


@functools.cache
def warn_once(text: str) -> None:
    """Log a warning, unless it was logged before."""
    logger.warning("%s", text)
