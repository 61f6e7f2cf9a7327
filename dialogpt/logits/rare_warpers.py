"""Rarely used logits warpers: top_h, min_p, typical_p and the two cutoffs, as transformers computes them.

All take scores, (B, V), which they may change in place. Their order is in `dialogpt.sampler`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dialogpt.generation_config import GenerationConfig
from dialogpt.logits.sorting import nth_largest

TOP_H_TOKENS = 100  # transformers considers no more tokens for top_h


def top_h(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Keep the top tokens whose summed surprise is within a share of the entropy (Potraghloo et al., 2025)."""
    top, index = scores.topk(min(TOP_H_TOKENS, scores.size(1)))  # (B, 100)
    distribution = torch.distributions.Categorical(logits=top, validate_args=False)
    surprise = -distribution.probs * distribution.probs.log()  # (B, 100)
    kept = surprise.cumsum(dim=-1) <= distribution.entropy()[:, None] * config.top_h  # type: ignore[no-untyped-call]
    kept[:, 0] = True
    return scores.masked_fill_(~torch.zeros_like(scores, dtype=torch.bool).scatter(1, index, kept), -torch.inf)


def min_p(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Keep tokens at least so many times as probable as the most probable one (Nguyen et al., 2024)."""
    assert config.min_p is not None
    probabilities = scores.softmax(dim=-1)  # (B, V)
    cut = probabilities < config.min_p * probabilities.amax(dim=-1, keepdim=True)
    most_probable = probabilities.topk(min(config.tokens_to_keep, scores.size(1))).indices
    return scores.masked_fill_(cut.scatter(1, most_probable, False), -torch.inf)


def typical_p(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Keep the tokens whose surprise is nearest to the entropy and that together hold p (Meister et al., 2022)."""
    log_probabilities = scores.log_softmax(dim=-1)  # (B, V)
    entropy = -(log_probabilities * log_probabilities.exp()).nansum(dim=-1, keepdim=True)  # (B, 1)
    distance, order = (-log_probabilities - entropy).abs().sort(dim=-1)  # (B, V)
    total = scores.gather(1, order).softmax(dim=-1).cumsum(dim=-1)
    last = (total < config.typical_p).sum(dim=1, keepdim=True).clamp(max=scores.size(1) - 1)  # (B, 1)
    cut = distance > distance.gather(1, last)
    cut[:, : config.tokens_to_keep] = False
    return scores.masked_fill_(cut.scatter(1, order, cut), -torch.inf)


def epsilon_cutoff(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Keep tokens of at least this probability (Hewitt et al., 2022, epsilon sampling)."""
    return _cut_below(scores, scores.softmax(dim=-1), torch.tensor(config.epsilon_cutoff), config)


def eta_cutoff(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Keep tokens of at least a probability that falls with the entropy (Hewitt et al., 2022, eta sampling)."""
    epsilon = torch.tensor(config.eta_cutoff, device=scores.device)
    entropy = torch.distributions.Categorical(logits=scores, validate_args=False).entropy()  # type: ignore[no-untyped-call]  # (B,)
    eta = torch.minimum(epsilon, epsilon.sqrt() * torch.exp(-entropy))[:, None]  # (B, 1)
    return _cut_below(scores, scores.softmax(dim=-1), eta, config)


def _cut_below(scores: Tensor, probabilities: Tensor, minimum: Tensor, config: GenerationConfig) -> Tensor:
    """Remove tokens below a probability, except the most probable ones."""
    cut = (probabilities < minimum.to(scores.device)) & (scores < nth_largest(scores, config.tokens_to_keep))
    return scores.masked_fill_(cut, -torch.inf)
