"""How well a network predicts what people said: perplexity, accuracy of the next token, calibration.

Each dialogue is read alone, its turns joined as in training, each with its end token, which is predicted too. The first
token of a dialogue has nothing before it and is not counted. A dialogue longer than the window is read in windows that
overlap by half: each token is counted once, in the window where most stands before it. Calibration is the expected
calibration error of Guo et al., "On Calibration of Modern Neural Networks" (2017), over 15 bins of equal width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dialogpt.evaluate.overlap import Floats
from dialogpt.history import BOT, USER
from dialogpt.model import GPT2
from dialogpt.ranking.scoring import MICRO_BATCH
from dialogpt.tokenizer import Tokenizer

BINS = 15


@dataclass(frozen=True)
class Prediction:
    """What a network predicted of the counted tokens of one dialogue.

    Attributes:
        nats: minus the log-probability of all of them.
        tokens: how many they are.
        bytes: of their text in UTF-8; an end of turn is one byte, as a line end would be.
        turns: how many turns are counted.
        correct: of how many the token was the likeliest.
        bins: (15, 3) by the probability of the likeliest token: tokens, the sum of these probabilities, how many were
            right.
    """

    nats: float
    tokens: int
    bytes: int
    turns: int
    correct: int
    bins: Floats


@dataclass(frozen=True)
class Window:
    """A piece of a dialogue that is read at once.

    Attributes:
        first: index of its first token in the dialogue.
        counted: index in the dialogue of the first token that is counted.
        end: index after its last token.
    """

    first: int
    counted: int
    end: int


def windows_of(length: int, size: int) -> list[Window]:
    """Cut a dialogue of so many tokens into windows of at most `size`, each token counted once but the first.

    Example: 10 tokens in windows of 4 are counted as 1-3 of 0-3, 4-5 of 2-5, 6-7 of 4-7 and 8-9 of 6-9.
    """
    windows = [Window(0, 1, min(length, size))]
    while windows[-1].end < length:
        counted = windows[-1].end
        end = min(length, counted + max(1, size // 2))
        windows.append(Window(end - size, counted, end))
    return windows


def predict(
    model: GPT2, tokenizer: Tokenizer, dialogue: Sequence[str], *, window: int | None = None, bot_only: bool = False
) -> Prediction:
    """Predict the tokens of a dialogue.

    Args:
        model: the network.
        tokenizer: of the same checkpoint.
        dialogue: its turns.
        window: the most tokens that are read at once; None is all positions of the network.
        bot_only: whether only every second turn is counted, from the second on.
    """
    ids: list[int] = []
    is_counted: list[bool] = []
    for place, text in enumerate(dialogue):
        role = (USER, BOT)[place % 2]
        turn, before = tokenizer.whole_turn(text, role), len(tokenizer.turn_prefix.of(role))
        ids += turn
        is_counted += [False] * before + [place % 2 == 1 or not bot_only] * (len(turn) - before)
    is_counted[0] = False
    size = min(window or model.config.n_positions, model.config.n_positions)
    pieces = [_read(model, ids, piece) for piece in windows_of(len(ids), size)] if len(ids) > 1 else []
    empty = np.zeros((0, 3))
    found = np.concatenate([empty, *pieces])[np.array(is_counted[1:], dtype=bool)]  # (counted, 3)
    counted = [token for token, wanted in zip(ids, is_counted, strict=True) if wanted]
    return Prediction(
        nats=-math.fsum(found[:, 0].tolist()),
        tokens=len(counted),
        bytes=sum(1 if token == tokenizer.eos_id else len(tokenizer.bytes_of(token)) for token in counted),
        turns=len(dialogue) // 2 if bot_only else len(dialogue),
        correct=int(found[:, 2].sum()),
        bins=_binned(found[:, 1], found[:, 2]),
    )


@torch.inference_mode()
def _read(model: GPT2, ids: Sequence[int], window: Window) -> Floats:
    """Of each counted token of a window: its log-probability, the highest probability there, whether it is that."""
    hidden = model.hidden(torch.tensor([ids[window.first : window.end]], device=model.device))[0]  # (T, C)
    found = []
    for start in range(window.counted, window.end, MICRO_BATCH * 8):
        tokens = torch.tensor(ids[start : min(start + MICRO_BATCH * 8, window.end)], device=model.device)  # (chunk,)
        place = start - 1 - window.first
        logits = model.logits(hidden[place : place + len(tokens)]).double()  # (chunk, V)
        logs = logits.log_softmax(dim=-1)
        likeliest, which = logs.max(dim=-1)
        own = logs.gather(1, tokens[:, None])[:, 0]
        found.append(torch.stack([own, likeliest.exp(), (which == tokens).double()], dim=1).cpu())  # (chunk, 3)
    return torch.cat(found).numpy() if found else np.zeros((0, 3))


def _binned(confidence: Floats, correct: Floats) -> Floats:
    """Tokens, probabilities and right ones by bin of the probability: (15, 3)."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    kinds = (np.ones_like(confidence), confidence, correct)
    return np.stack([np.bincount(place, weights=kind, minlength=BINS) for kind in kinds], axis=1)


def columns(predictions: Sequence[Prediction]) -> Floats:
    """The predictions of N dialogues as statistics that can be summed: (N, 50), the bins last."""
    return np.array(
        [[each.nats, each.tokens, each.bytes, each.turns, each.correct, *each.bins.ravel()] for each in predictions],
        dtype=float,
    ).reshape(len(predictions), 5 + 3 * BINS)


def figures(sums: Floats) -> dict[str, float]:
    """Perplexity per token, bits per byte, nats per turn, accuracy and calibration error, from sums of `columns`.

    They are empty where no token is counted.
    """
    nats, tokens, bytes_, turns, correct = sums[:5]
    if not tokens:
        return {}
    bins = sums[5:].reshape(BINS, 3)
    mean = nats / tokens
    return {
        "perplexity": math.exp(mean) if mean < 700 else math.inf,  # where floats end
        "bits-per-byte": float(nats / bytes_ / math.log(2)),
        "nats-per-turn": float(nats / turns),
        "accuracy": float(correct / tokens),
        "calibration-error": float(np.abs(bins[:, 1] - bins[:, 2]).sum() / tokens),
    }
