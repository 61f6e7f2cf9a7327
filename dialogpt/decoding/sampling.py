"""The next tokens of a batch: process logits by each sequence's settings, and choose or sample a token for each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dialogpt.decoding.noise import exponential_noise
from dialogpt.decoding.sequence import GenerationError, NotFinite, TokenSequence
from dialogpt.sampler import next_token_scores

NOTHING_LEFT = (
    "the settings leave no token to choose: what bans tokens (no_repeat_ngram_size, min_new_tokens, bad words, ...) "
    "bans all of them, or the temperature is too close to 0; loosen them"
)
NOT_A_NUMBER = "the settings make scores that are not numbers, as infinity minus infinity is; loosen sequence_bias"


def process_logits(logits: Tensor, sequences: Sequence[TokenSequence]) -> Tensor:
    """Process the logits of sequences, those with equal settings together: (B, V) -> (B, V).

    Raises:
        GenerationError: a score is NaN.
    """
    configs = list({id(sequence.config): sequence.config for sequence in sequences}.values())
    if len(configs) == 1:  # without a copy of all scores
        scores = next_token_scores(logits, configs[0], [sequence.seen for sequence in sequences])
    else:
        scores = torch.empty_like(logits)
        for config in configs:
            rows = [row for row, sequence in enumerate(sequences) if sequence.config is config]
            scores[rows] = next_token_scores(logits[rows], config, [sequences[row].seen for row in rows])
    if scores is not logits and _has_nan(scores):  # unprocessed ones were checked when computed
        raise GenerationError(NOT_A_NUMBER, _marked(sequences, scores.isnan().any(dim=-1)))
    return scores


def choose_tokens(scores: Tensor, active: Sequence[TokenSequence], sharing_noise: Sequence[TokenSequence]) -> list[int]:
    """Choose the next token of each sequence: the highest score, or a sample.

    Args:
        scores: (B, V), processed.
        active: the sequence of each row.
        sharing_noise: these, and finished ones that the decoder still holds, for which transformers draws noise, too.

    Raises:
        GenerationError: every token of a sampled sequence is banned.
    """
    by_generator: dict[torch.Generator, list[TokenSequence]] = {}
    for sequence in sharing_noise:
        if sequence.config.do_sample and sequence.generator is not None:
            by_generator.setdefault(sequence.generator, []).append(sequence)
    # Example: a, b and c share the generator g, and b is finished. The group is (g, 3, [0, 2]): 3 rows of noise, and
    # those of a and c are used. `rows` is [0, 1]: where a and c are in `scores`.
    groups, rows, row_of = [], [], {sequence: row for row, sequence in enumerate(active)}
    for generator, sharing in by_generator.items():
        if used := [index for index, sequence in enumerate(sharing) if sequence.finish_reason is None]:
            groups.append((generator, len(sharing), used))
            rows += [row_of[sharing[index]] for index in used]
    all_sampled = len(rows) == len(active)
    chosen: list[int] = [0] * len(active) if all_sampled else scores.argmax(dim=-1).tolist()  # lowest id of a tie
    if rows:
        probabilities = torch.softmax(take_rows(scores, rows), dim=-1)  # (sampled rows, V)
        if _has_nan(probabilities):
            raise GenerationError(NOTHING_LEFT, _marked([active[row] for row in rows], probabilities.isnan().any(-1)))
        samples = probabilities.div_(exponential_noise(groups, probabilities)).argmax(dim=-1).tolist()
        for row, token in zip(rows, samples, strict=True):
            chosen[row] = token
    return chosen


def require_finite(logits: Tensor, sequences: Sequence[TokenSequence]) -> None:
    """Refuse logits, (B, V), with NaN or infinity, except of sequences with `remove_invalid_values`.

    Raises:
        NotFinite: there are some.
    """
    if math.isfinite(float(logits.sum())):
        return
    damaged = _marked(sequences, ~torch.isfinite(logits).all(dim=-1))
    if strict := [sequence for sequence in damaged if not sequence.config.remove_invalid_values]:
        raise NotFinite("the logits contain NaN or infinity: the weights are damaged; convert them again", strict)


def _has_nan(tensor: Tensor) -> bool:
    """Sum first: a sum with NaN is NaN. It takes 0.1 ms for 64 rows of 50,257, and looking at each score 2 ms."""
    return math.isnan(float(tensor.sum())) and bool(torch.isnan(tensor).any())


def take_rows(tensor: Tensor, rows: list[int]) -> Tensor:
    """Return rows of a tensor, without a copy if they are all of them in order."""
    return tensor if rows == list(range(len(tensor))) else tensor[rows]


def _marked(sequences: Sequence[TokenSequence], marks: Tensor) -> list[TokenSequence]:
    return [sequence for sequence, mark in zip(sequences, marks.tolist(), strict=True) if mark]
