"""From the network's logits to the probabilities of the next token, exactly as transformers computes them.

Processors change scores in transformers' order (`_get_logits_processor` in generation/utils.py); each one follows its
class in generation/logits_process.py. Pure functions: drawing, and what happens then, is left to
`dialogpt.decoding.loop`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from dialogpt.errors import DialogueError
from dialogpt.generation_config import NEUTRAL, GenerationConfig

FEW = 1024  # tokens that are left, up to which top_p sorts them alone
TOP_H_TOKENS = 100  # transformers looks at no more tokens than these for top_h


@dataclass(frozen=True)
class Seen:
    """What one row has read and said so far.

    Attributes:
        ids: all of it, prompt included.
        prompt_length: how many of them are the prompt.
        own_turns: what the bot said in the prompt, turn by turn, without end tokens.
    """

    ids: Sequence[int]
    prompt_length: int
    own_turns: Sequence[Sequence[int]] = ()

    @property
    def said(self) -> Sequence[int]:
        """The reply so far."""
        return self.ids[self.prompt_length :]

    def counted(self, scope: str) -> list[Sequence[int]]:
        """The runs of tokens in which repetition counts; the last of them goes on."""
        if scope == "all":
            return [self.ids]
        return [*(self.own_turns if scope == "own" else ()), self.said]


Processor = Callable[[Tensor, GenerationConfig, Sequence[Seen]], Tensor]
Warper = Callable[[Tensor, GenerationConfig], Tensor]


def next_token_probabilities(logits: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """The distribution that the next token is drawn from: (B, V) -> (B, V), in float32.

    Args:
        logits: the network's output at the last position of each row.
        config: its `eos_token_id` is taken as it stands.
        seen: what each row holds.
    """
    return torch.softmax(next_token_scores(logits, config, seen), dim=-1)  # (B, V)


def next_token_scores(logits: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """The processed logits, whose largest is the greedy choice: (B, V) -> (B, V), in float32, as transformers does it.

    Arguments are those of `next_token_probabilities`; beam search passes log-probabilities as logits.
    """
    active = active_processors(config, seen)
    scores = logits.to(torch.float32, copy=bool(active))
    for processor in active:
        scores = processor.apply(scores)
    return scores.log_softmax(dim=-1) if config.renormalize_logits else scores


class ActiveProcessor(NamedTuple):
    """A processor or warper that the settings ask for: its name, its settings, and a function of the scores (B, V)."""

    name: str
    settings: tuple[str, ...]
    apply: Callable[[Tensor], Tensor]


def active_processors(config: GenerationConfig, seen: Sequence[Seen]) -> list[ActiveProcessor]:
    """What changes the scores with these settings, in transformers' order; arguments as for `next_token_scores`."""

    def processor(process: Processor) -> Callable[[Tensor], Tensor]:
        return lambda scores: process(scores, config, seen)

    def warper(warp: Warper) -> Callable[[Tensor], Tensor]:
        return lambda scores: warp(scores, config)

    return [
        *(ActiveProcessor(p.__name__, names, processor(p)) for p, names in PROCESSORS if _acts(config, names)),
        *(
            ActiveProcessor(w.__name__, (name,), warper(w))
            for w, name in WARPERS
            if config.do_sample and _acts(config, (name,))
        ),
    ]


def _acts(config: GenerationConfig, settings: Sequence[str]) -> bool:
    """Whether one of a processor's settings is other than the value that changes nothing."""
    return any(getattr(config, name) != _WITHOUT_EFFECT[name] for name in settings)


def check_tokens(config: GenerationConfig, vocab_size: int) -> None:
    """Refuse settings that name tokens which the vocabulary has not, or have nothing to act on.

    Raises:
        DialogueError: as said.
    """
    named = {
        "sequence_bias": [token for ids, _ in config.sequence_bias or () for token in ids],
        "bad_words_ids": [token for ids in config.bad_words_ids or () for token in ids],
        "forced_bos_token_id": () if config.forced_bos_token_id is None else (config.forced_bos_token_id,),
        "forced_eos_token_id": config.forced_eos_token_id if isinstance(config.forced_eos_token_id, tuple)
        else () if config.forced_eos_token_id is None else (config.forced_eos_token_id,),
        "eos_token_id": config.end_ids if config.exponential_decay_length_penalty else (),
    }  # fmt: skip
    for name, tokens in named.items():
        foreign = [token for token in tokens if token >= vocab_size]
        if foreign:
            raise DialogueError(f"{name} names the token {foreign[0]}, and the vocabulary has {vocab_size:,}")
    if config.exponential_decay_length_penalty and not config.end_ids:
        raise DialogueError(
            "exponential_decay_length_penalty needs an end token, and neither network nor settings name one"
        )


# ---- processors, where their settings say something: scores (B, V), which may be changed in place, -> (B, V) ----


def sequence_bias(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Add a number to the last token of each sequence whose other tokens were just said; one token's always."""
    return _biased(scores, config.sequence_bias or (), seen)


def repetition_penalty(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Make every token less likely that was seen, once however often that was.

    A positive score is divided and a negative one multiplied. The end token stands in every dialogue, so a penalty on
    all of it makes replies longer too.
    """
    penalty = config.repetition_penalty
    for row, held in enumerate(seen):
        index = torch.tensor(sorted({token for run in held.counted(config.repetition_scope) for token in run}))
        index = index.to(scores.device, torch.long)
        score = scores[row, index]
        scores[row, index] = torch.where(score < 0, score * penalty, score / penalty)
    return scores


def no_repeat_ngram(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Ban every token that would complete a run of n tokens that was seen already.

    Example: n = 2 and the row 5 7 5 ban 7, as 5 was followed by 7 before.
    """
    size = config.no_repeat_ngram_size
    for row, held in enumerate(seen):
        runs = held.counted(config.repetition_scope)
        last = list(runs[-1][len(runs[-1]) - size + 1 :])  # the n - 1 tokens that the next one would follow
        if len(runs[-1]) >= size - 1:
            banned = {
                run[start + size - 1]
                for run in runs
                for start in range(len(run) - size + 1)
                if list(run[start : start + size - 1]) == last
            }
            scores[row, list(banned)] = -torch.inf
    return scores


def bad_words(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Ban the last token of each sequence whose other tokens were just said; an end token alone is never banned."""
    ends = {(end,) for end in config.end_ids}
    return _biased(scores, tuple((ids, -math.inf) for ids in config.bad_words_ids or () if ids not in ends), seen)


def minimum_length(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Ban the end tokens in rows whose reply is too short, or, without `min_new_tokens`, prompt and reply together."""
    for row, held in enumerate(seen):
        if config.min_new_tokens is not None:
            too_short = len(held.said) < config.min_new_tokens
        else:
            too_short = len(held.ids) < config.min_length
        if too_short:
            _ban(scores, row, config.end_ids)
    return scores


def no_repeat_reply(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Ban the end where the reply is, so far, the bot's last turn over again: it has to go on."""
    for row, held in enumerate(seen):
        if held.own_turns and list(held.said) == list(held.own_turns[-1]):
            _ban(scores, row, config.end_ids)
    return scores


def forced_tokens(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Leave one choice after a prompt of one token (`forced_bos_token_id`), and for the last token of all."""
    for row, held in enumerate(seen):
        if config.forced_bos_token_id is not None and len(held.ids) == 1:
            _force(scores, row, config.forced_bos_token_id)
        if config.forced_eos_token_id is not None and len(held.said) == config.reply_limit(held.prompt_length) - 1:
            _force(scores, row, config.forced_eos_token_id)
    return scores


def remove_invalid_values(scores: Tensor, config: GenerationConfig, _: Sequence[Seen]) -> Tensor:
    """Take NaN for 0, and infinity for the largest number that there is."""
    largest = torch.finfo(scores.dtype).max
    return torch.nan_to_num(scores, nan=0.0, posinf=largest, neginf=-largest)


def exponential_decay(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Raise the end tokens' scores by a power of a factor, once a reply has a number of tokens."""
    assert config.exponential_decay_length_penalty is not None
    start, factor = config.exponential_decay_length_penalty
    ends = list(config.end_ids)
    for row, held in enumerate(seen):
        beyond = len(held.said) - start
        if beyond > 0:
            end_scores = scores[row, ends]
            raised = end_scores.abs() * (_power(factor, beyond) - 1)
            scores[row, ends] = end_scores + raised.masked_fill(~torch.isfinite(end_scores), 0.0)
    return scores


def suppressed_tokens(scores: Tensor, config: GenerationConfig, seen: Sequence[Seen]) -> Tensor:
    """Ban tokens everywhere, or (`begin_suppress_tokens`) as the first of a reply."""
    for row, held in enumerate(seen):
        _ban(scores, row, config.suppress_tokens or ())
        begin = int(held.prompt_length == 1 and config.forced_bos_token_id is not None)  # a forced token does not count
        if len(held.said) == begin:
            _ban(scores, row, config.begin_suppress_tokens or ())
    return scores


# Each with the settings that make it act.
PROCESSORS: tuple[tuple[Processor, tuple[str, ...]], ...] = (
    (sequence_bias, ("sequence_bias",)),
    (repetition_penalty, ("repetition_penalty",)),
    (no_repeat_ngram, ("no_repeat_ngram_size",)),
    (bad_words, ("bad_words_ids",)),
    (minimum_length, ("min_length", "min_new_tokens")),
    (no_repeat_reply, ("no_repeat_reply",)),
    (forced_tokens, ("forced_bos_token_id", "forced_eos_token_id")),
    (remove_invalid_values, ("remove_invalid_values",)),
    (exponential_decay, ("exponential_decay_length_penalty",)),
    (suppressed_tokens, ("suppress_tokens", "begin_suppress_tokens")),
)


Bias = tuple[tuple[int, ...], float]  # of the last token of a sequence, where the others have just been said


def _biased(scores: Tensor, biases: tuple[Bias, ...], seen: Sequence[Seen]) -> Tensor:
    """Add each bias where its sequence could be completed; several on one token are summed before."""
    if not biases:
        return scores
    tokens, values, sequences = _by_beginning(biases)
    bias = torch.zeros_like(scores)
    bias[:, tokens] = torch.tensor(values, dtype=bias.dtype, device=bias.device)
    for row, held in enumerate(seen):
        for (*before, last), value in sequences.get(held.ids[-1], ()):
            if list(held.ids[-len(before) :]) == before:
                bias[row, last] += value
    return scores + bias


@lru_cache(maxsize=64)
def _by_beginning(biases: tuple[Bias, ...]) -> tuple[list[int], list[float], dict[int, list[Bias]]]:
    """Single tokens, their biases, and all longer sequences by their last token but one: a filter has thousands."""
    single = {ids[0]: value for ids, value in biases if len(ids) == 1}
    longer: dict[int, list[Bias]] = {}
    for ids, value in dict(biases).items():
        if len(ids) > 1:
            longer.setdefault(ids[-2], []).append((ids, value))
    return list(single), list(single.values()), longer


def _ban(scores: Tensor, row: int, tokens: Sequence[int]) -> None:
    scores[row, [token for token in tokens if token < scores.size(1)]] = -torch.inf


def _force(scores: Tensor, row: int, tokens: int | tuple[int, ...]) -> None:
    scores[row] = -torch.inf
    scores[row, tokens if isinstance(tokens, int) else list(tokens)] = 0


def _power(factor: float, exponent: int) -> float:
    try:
        return float(factor**exponent)
    except OverflowError:
        return math.inf


# ---- warpers, with do_sample only: scores (B, V), which may be changed in place, -> (B, V) ----


def temperature(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Divide by the temperature: below 1 sharpens the distribution, above 1 flattens it."""
    return scores.div_(config.temperature)


def top_h(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Keep the likeliest tokens whose summed surprise stays within a share of the entropy (Potraghloo et al., 2025)."""
    top, index = scores.topk(min(TOP_H_TOKENS, scores.size(1)))  # (B, 100)
    distribution = torch.distributions.Categorical(logits=top, validate_args=False)
    surprise = -distribution.probs * distribution.probs.log()  # (B, 100)
    kept = surprise.cumsum(dim=-1) <= distribution.entropy()[:, None] * config.top_h  # type: ignore[no-untyped-call]
    kept[:, 0] = True
    return scores.masked_fill_(~torch.zeros_like(scores, dtype=torch.bool).scatter(1, index, kept), -torch.inf)


def top_k(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Keep the k highest scores, and all that tie with the lowest of them, as transformers does."""
    return scores.masked_fill_(scores < _nth_largest(scores, max(config.top_k, config.tokens_to_keep)), -torch.inf)


def top_p(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Keep the likeliest tokens that together hold probability p (Holtzman et al., 2020).

    Example: p = 0.7 of 0.5, 0.3, 0.2: summed from the least likely, 0.2 and 0.5 and 1.0; what stays at or below
    1 - p = 0.3 goes, so 0.5 and 0.3 are left. The token that crosses p is kept, and so is always the likeliest.
    """
    few = _cut_among_few(scores, config)
    if few is not None:
        return scores.masked_fill_(few, -torch.inf)
    ascending, order = scores.sort(dim=-1)  # (B, V)
    cut = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - config.top_p  # (B, V)
    cut[:, -config.tokens_to_keep :] = False
    return scores.masked_fill_(cut.scatter(1, order, cut), -torch.inf)


def _cut_among_few(scores: Tensor, config: GenerationConfig) -> Tensor | None:
    """What top_p cuts where few tokens are left, as after top_k: (B, V), or None where only a sort of all can tell.

    Sorting 50,257 scores takes 4 ms. Where the sum comes as near to 1 - p as rounding, or what is cut ties with what is
    kept, the order in which all are sorted and summed decides.
    """
    left = int((scores > -torch.inf).sum(dim=-1).max())
    if not config.tokens_to_keep < left <= FEW:
        return None
    ascending = scores.topk(left).values.flip(-1)  # (B, left)
    held = ascending.softmax(dim=-1).cumsum(dim=-1)
    cut = held <= 1 - config.top_p
    cut[:, -config.tokens_to_keep :] = False
    least = ascending.masked_fill(cut, torch.inf).amin(dim=-1, keepdim=True)  # (B, 1), of what is kept
    most = ascending.masked_fill(~cut, -torch.inf).amax(dim=-1, keepdim=True)
    doubtful = ((held - (1 - config.top_p)).abs() < 1e-5).any() or ((most == least) & (least > -torch.inf)).any()
    return None if doubtful else scores < least


def min_p(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Keep tokens that are at least so many times as likely as the likeliest (Nguyen et al., 2024)."""
    assert config.min_p is not None
    probabilities = scores.softmax(dim=-1)  # (B, V)
    cut = probabilities < config.min_p * probabilities.amax(dim=-1, keepdim=True)
    likeliest = probabilities.topk(min(config.tokens_to_keep, scores.size(1))).indices
    return scores.masked_fill_(cut.scatter(1, likeliest, False), -torch.inf)


def typical_p(scores: Tensor, config: GenerationConfig) -> Tensor:
    """Keep the tokens whose surprise is nearest to the entropy and that together hold p (Meister et al., 2022)."""
    log_probabilities = scores.log_softmax(dim=-1)  # (B, V)
    entropy = -(log_probabilities * log_probabilities.exp()).nansum(dim=-1, keepdim=True)  # (B, 1)
    distance, order = (-log_probabilities - entropy).abs().sort(dim=-1)  # (B, V)
    held = scores.gather(1, order).softmax(dim=-1).cumsum(dim=-1)
    last = (held < config.typical_p).sum(dim=1, keepdim=True).clamp(max=scores.size(1) - 1)  # (B, 1)
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


WARPERS: tuple[tuple[Warper, str], ...] = (
    (temperature, "temperature"),
    (top_h, "top_h"),
    (top_k, "top_k"),
    (top_p, "top_p"),
    (min_p, "min_p"),
    (typical_p, "typical_p"),
    (epsilon_cutoff, "epsilon_cutoff"),
    (eta_cutoff, "eta_cutoff"),
)
_WITHOUT_EFFECT = NEUTRAL | {"min_new_tokens": GenerationConfig().min_new_tokens}


def _nth_largest(scores: Tensor, number: int) -> Tensor:
    return scores.topk(min(number, scores.size(1))).values[:, -1:]  # (B, 1)


def _cut_below(scores: Tensor, probabilities: Tensor, least: Tensor, config: GenerationConfig) -> Tensor:
    """Cut what is less likely than `least` and not among the likeliest that must stay."""
    cut = (probabilities < least.to(scores.device)) & (scores < _nth_largest(scores, config.tokens_to_keep))
    return scores.masked_fill_(cut, -torch.inf)
