"""GPT-2, written to be read from top to bottom.

A decoder-only transformer with pre-norm blocks, learned absolute positions, a tanh GELU, and, but for a few
fine-tunes, the token embedding as its output head (Radford et al., "Language Models are Unsupervised Multitask
Learners", 2019). It equals `GPT2LMHeadModel` of transformers (models/gpt2/modeling_gpt2.py). It knows tensors only:
text, sampling and files are left to the other packages, and earlier tokens are in the cache that the caller passes in.

Shape letters, here and everywhere: B rows, T new tokens, S cached + new tokens, C width, H heads, D head width,
V vocabulary, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dialogpt.model.cache import CacheFull, KVCache
from dialogpt.model.config import GPT2Config

# All other names that `config.py` accepts mean the tanh GELU; the exact one, "gelu", differs from it by up to 4.7e-4.
OTHER_ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "swish": nn.SiLU}


class GPT2(nn.Module):
    """The network: token ids in, the next token's logits out."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config, C, V = config, config.n_embd, config.vocab_size
        # `_weight` skips an embedding's own initialization, which imports torch's compiler on the meta device: 1 s.
        self.token_embedding = TokenEmbedding(V, C, _weight=torch.empty(V, C))
        self.position_embedding = nn.Embedding(config.n_positions, C, _weight=torch.empty(config.n_positions, C))
        self.dropout = nn.Dropout(config.embd_pdrop)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.final_norm = nn.LayerNorm(C, eps=config.layer_norm_epsilon)
        self.output_head = None if config.tie_word_embeddings else nn.Linear(C, V, bias=False)
        if not self.token_embedding.weight.is_meta:  # there it has no memory, and is filled from a file
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sample fresh weights as GPT-2 does: deviation 0.02, over sqrt(2L) in the two output layers of a block."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" in name:
                nn.init.ones_(parameter)
            else:
                residual = name.endswith(("attention.output.weight", "mlp.down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in, and its caches hold."""
        return self.token_embedding.activation_dtype

    @property
    def device(self) -> torch.device:
        """Where it computes, and expects its ids."""
        return self.position_embedding.weight.device

    def forward(self, ids: Tensor, cache: KVCache | None = None, lengths: Tensor | None = None) -> Tensor:
        """Logits at every position: (B, T) -> (B, T, V). Arguments and errors are those of `hidden`."""
        return self.logits(self.hidden(ids, cache, lengths))

    def logits(self, hidden: Tensor) -> Tensor:
        """Score every token of the vocabulary: (..., C) -> (..., V)."""
        scores: Tensor = (self.output_head or self.token_embedding.logits)(hidden)
        return scores

    def hidden(self, ids: Tensor, cache: KVCache | None = None, lengths: Tensor | None = None) -> Tensor:
        """Read new tokens: (B, T) -> (B, T, C), after the final norm.

        Args:
            ids: token ids; rows shorter than T are padded on the right with any valid id.
            cache: keys and values of the rows' earlier tokens. It is extended by the new ones.
            lengths: (B,) new tokens of each row, where they differ. Results at padded positions mean nothing.

        Raises:
            CacheFull: a row would be longer than `n_positions`; nothing is changed.
            ValueError: `lengths` or the cache do not fit `ids`.
        """
        num_cached = [0] * len(ids) if cache is None else [len(row) for row in cache.ids]
        num_new = new_lengths(ids, lengths, len(num_cached), self.config.n_positions)
        if cache is not None:
            cache.reserve(num_new)
        positions = positions_of(num_cached, ids.size(1), ids.device)  # (B or 1, T)
        mask = attention_mask(num_cached, positions, S=max(map(sum, zip(num_cached, num_new, strict=True))))
        positions = positions.clamp(max=self.config.n_positions - 1)  # padding may lie beyond the last
        x = self.dropout(self.token_embedding(ids) + self.position_embedding(positions))  # (B, T, C)
        try:
            for layer, block in enumerate(self.blocks):
                x = block(x, mask, cache, layer)
        except BaseException:  # Ctrl-C, too
            if cache is not None:
                cache.clear_unread()
            raise
        if cache is not None:
            cache.advance([row[:n] for row, n in zip(ids.tolist(), num_new, strict=True)])
        normed: Tensor = self.final_norm(x)
        return normed


class TokenEmbedding(nn.Embedding):
    """What each token is, and also the output head, unless the checkpoint has another."""

    @property
    def activation_dtype(self) -> torch.dtype:
        """What the network computes in; a subclass may store its weight in fewer bits (`dialogpt.model.precision`)."""
        return self.weight.dtype

    def logits(self, hidden: Tensor) -> Tensor:
        """Score every token of the vocabulary: (..., C) -> (..., V)."""
        return F.linear(hidden, self.weight)


class Block(nn.Module):
    """Attention, then an MLP; each reads a normed copy of the residual stream and adds its answer to it."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attention = Attention(config, layer)
        self.mlp_norm = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attention(self.attention_norm(x), mask, cache, layer)
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class Attention(nn.Module):
    """Multi-head causal self-attention over what is cached and what is new."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.scale = config.head_dim**-0.5 if config.scale_attn_weights else 1.0
        self.scale /= layer + 1 if config.scale_attn_by_inverse_layer_idx else 1
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.output = nn.Linear(config.n_embd, config.n_embd)
        self.attention_dropout = config.attn_pdrop
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        """(B, T, C) -> (B, T, C). Without a mask, T > 1 is a prompt from its start, and T = 1 attends to every slot."""
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
        queries, keys_values = qkv[0], qkv[1:]  # (B, H, T, D), (2, B, H, T, D)
        keys, values = keys_values if cache is None else cache.append(layer, keys_values)  # each (B, H, S, D)
        dropout, causal = self.attention_dropout if self.training else 0.0, mask is None and T > 1
        heads = F.scaled_dot_product_attention(queries, keys, values, mask, dropout, causal, scale=self.scale)
        mixed: Tensor = self.output(heads.transpose(1, 2).reshape(B, T, C))  # (B, T, C)
        return self.dropout(mixed) if self.training else mixed  # a call that does nothing takes 1 us, twice a block


class MLP(nn.Module):
    """Two linear layers with an activation between them, applied to each position alone."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embd, config.inner_dim)
        self.activation = OTHER_ACTIVATIONS.get(config.activation_function, lambda: nn.GELU(approximate="tanh"))()
        self.down = nn.Linear(config.inner_dim, config.n_embd)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        out: Tensor = self.down(self.activation(self.up(x)))
        return self.dropout(out) if self.training else out


def new_lengths(ids: Tensor, lengths: Tensor | None, rows: int, n_positions: int) -> list[int]:
    """How many of each row's T ids are tokens and not padding."""
    B, T = ids.shape
    if B == 0 or rows != B:
        raise ValueError(f"ids have {B} rows and the cache {rows}; expected as many, and at least one")
    num_new: list[int] = [T] * B if lengths is None else lengths.tolist()
    if len(num_new) != B or not all(0 <= n <= T for n in num_new):
        raise ValueError(f"lengths are {num_new}; expected {B} numbers from 0 to {T}, one for each row of ids")
    if max(num_new) > n_positions:
        raise CacheFull(f"a row has {max(num_new)} new tokens and the network {n_positions} positions; shorten it")
    return num_new


def positions_of(num_cached: Sequence[int], T: int, device: torch.device) -> Tensor:
    """Absolute positions of T new tokens: (B, T), or (1, T) where all rows hold equally many."""
    starts = torch.tensor(num_cached[:1] if len(set(num_cached)) == 1 else num_cached, device=device)
    return starts[:, None] + torch.arange(T, device=device)  # (B or 1, T)


def attention_mask(num_cached: Sequence[int], positions: Tensor, S: int) -> Tensor | None:
    """Which of S slots each new token may see, (B or 1, 1, T, S): those up to its own position.

    Example: 2 cached tokens and 2 new ones (S = 4) give the rows 1110 and 1111.

    None where no mask is needed: a prompt read from its start (plain causal attention; padding on the right comes after
    all that counts), or one new token a row that sees all that is cached of it.
    """
    T = positions.size(1)
    if not any(num_cached) or (T == 1 and len(set(num_cached)) == 1):
        return None
    return torch.arange(S, device=positions.device) <= positions[:, None, :, None]  # (B or 1, 1, T, S)
