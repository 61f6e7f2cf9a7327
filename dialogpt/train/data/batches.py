"""Token files to batches: dialogues cut at turns to fit the window, rows of equal length together.

The order of all batches of all epochs is a pure function of the data, the sizes and a seed, so that a run that was
interrupted goes on from a number. Each turn is trained on once an epoch. The plan is held in memory, about 50 bytes for
each piece; the tokens are not. How the loss uses a batch is left to `dialogpt.train.objective`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dialogpt.errors import DialogueError
from dialogpt.train.data.prepare import TokenFiles

AT_ONCE = 1 << 20  # dialogues that are cut together
IGNORED = -100  # the label of a token that is no target, as in torch's cross entropy


@dataclass(frozen=True)
class Batch:
    """Rows of one training step, padded on the right.

    Attributes:
        ids: (B, T).
        labels: (B, T): the same ids, `IGNORED` where they are no target: padding, context, first tokens. They are
            not shifted; the objective compares each with what the network says one place before it.
        weights: (B, T), float32: how much each label counts.
    """

    ids: Tensor
    labels: Tensor
    weights: Tensor

    @property
    def learned(self) -> int:
        """How many target tokens there are."""
        return int((self.labels != IGNORED).sum())

    @property
    def weight(self) -> float:
        """The sum of the weights of the target tokens, by which the sum of their losses is divided."""
        return float(self.weights[self.labels != IGNORED].double().sum())


@dataclass(frozen=True)
class _Pieces:
    """Parts of dialogues that fit the window; one entry each, 21 bytes.

    Attributes:
        starts: first token.
        lengths: in tokens.
        turns: number of the first turn, for its weight.
        with_context: whether the first turn is there only to be answered.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int32]
    turns: NDArray[np.int64]
    with_context: NDArray[np.bool_]


class Batches:
    """All batches of all epochs, by number.

    Attributes:
        per_epoch: how many batches there are in an epoch.
    """

    def __init__(self, data: TokenFiles, *, window: int, batch_tokens: int, learn_first: bool, seed: int) -> None:
        """Cut the dialogues and plan the batches.

        Args:
            data: prepared dialogues.
            window: the most tokens of a row.
            batch_tokens: the most places of a batch, rows times the longest of them; at least `window`.
            learn_first: whether a dialogue's first turn is trained on too.
            seed: of the order.

        Raises:
            DialogueError: no turn can be trained on.
        """
        self.data = data
        self.seed = seed
        self.pieces = _pieces(data, window, learn_first)
        if not len(self.pieces.starts):
            raise DialogueError(
                f"no turn of {data.folder} can be trained on: all are first turns, longer than {window} tokens, or of "
                f"weight 0"
            )
        self._edges = _edges(np.sort(self.pieces.lengths), batch_tokens)
        self.per_epoch = len(self._edges) - 1
        self._shuffled: tuple[int, NDArray[np.int32], NDArray[np.int64]] | None = None  # the last epoch asked for

    def __getitem__(self, number: int) -> Batch:
        """A batch of the endless sequence of epochs."""
        epoch, place = divmod(number, self.per_epoch)
        if self._shuffled is None or self._shuffled[0] != epoch:
            self._shuffled = (epoch, *self._order(epoch))
        _, rows, batches = self._shuffled
        which = batches[place]
        return self._batch(rows[self._edges[which] : self._edges[which + 1]])

    def _order(self, epoch: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """An epoch's pieces, by length and at random among equals, and the order of its batches."""
        generator = np.random.default_rng((self.seed, epoch))
        rows = generator.permutation(np.arange(len(self.pieces.lengths), dtype=np.int32))
        rows = rows[np.argsort(self.pieces.lengths[rows], kind="stable")]
        return rows, generator.permutation(self.per_epoch)

    def _batch(self, rows: NDArray[np.int32]) -> Batch:
        """Pad some pieces to one batch, and mark their target tokens."""
        width = int(self.pieces.lengths[rows].max())
        ids = np.full((len(rows), width), self.data.eos_id, np.int64)  # (B, T)
        learned = np.zeros(ids.shape, bool)
        weights = np.zeros(ids.shape, np.float32)
        for row, piece in enumerate(rows):
            start, length = self.pieces.starts[piece], self.pieces.lengths[piece]
            ids[row, :length] = self.data.tokens[start : start + length]
            ends = ids[row, :length] == self.data.eos_id
            turn = np.cumsum(ends) - ends  # of each token, counted in this piece
            weights[row, :length] = self.data.weights[self.pieces.turns[piece] + turn]
            learned[row, :length] = turn >= self.pieces.with_context[piece]
        learned[:, 0] = False  # nothing precedes it
        learned &= weights > 0
        labels = np.where(learned, ids, IGNORED)
        return Batch(torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(weights))


def _pieces(data: TokenFiles, window: int, learn_first: bool) -> _Pieces:
    """Cut all dialogues, some at a time: what is computed on the way takes several times the memory of its result."""
    before, parts = np.zeros((1, 2), np.int64), []
    for first in range(0, len(data.ends), AT_ONCE):
        ends = np.array(data.ends[first : first + AT_ONCE])
        parts.append(_pieces_of(data, np.concatenate([before, ends[:-1]]), ends, window, learn_first))
        before = ends[-1:]
    return _Pieces(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(_Pieces)))


def _pieces_of(
    data: TokenFiles, begins: NDArray[np.int64], ends: NDArray[np.int64], window: int, learn_first: bool
) -> _Pieces:
    """Cut dialogues that are longer than the window; each piece begins with the turn before it as its context."""
    first_turn, after = begins[0, 1], ends[-1, 1]
    counts = np.concatenate([[0], np.cumsum(data.weights[first_turn:after] > 0)])

    def weighted(turns: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many turns before these have a weight, from the first on."""
        before: NDArray[np.int64] = counts[turns - first_turn]
        return before

    lengths = ends[:, 0] - begins[:, 0]
    taught = weighted(ends[:, 1]) > weighted(np.minimum(begins[:, 1] + (not learn_first), ends[:, 1]))
    whole = np.flatnonzero((lengths <= window) & taught)
    starts, sizes, turns = [begins[whole, 0]], [lengths[whole]], [begins[whole, 1]]
    context = [np.full(len(whole), not learn_first)]
    for dialogue in np.flatnonzero(lengths > window):
        (start, turn), end = begins[dialogue], ends[dialogue, 0]
        turn_ends = np.flatnonzero(data.tokens[start:end] == data.eos_id) + 1
        cuts = np.array(cut(np.diff(turn_ends, prepend=0).tolist(), window, learn_first), np.int64).reshape(-1, 5)
        cuts = cuts[weighted(turn + cuts[:, 4]) > weighted(turn + cuts[:, 2] + cuts[:, 3])]
        starts.append(start + cuts[:, 0])
        sizes.append(cuts[:, 1])
        turns.append(turn + cuts[:, 2])
        context.append(cuts[:, 3] > 0)
    return _Pieces(
        np.concatenate(starts),
        np.concatenate(sizes).astype(np.int32),
        np.concatenate(turns),
        np.concatenate(context).astype(bool),
    )


def cut(lengths: list[int], window: int, learn_first: bool) -> list[tuple[int, int, int, int, int]]:
    """Cut one dialogue into pieces of at most `window` tokens that learn each turn once.

    A piece begins with the turn before those that it learns, or with as much of that turn's end as there is room for. A
    turn that is longer than the window is not learned.

    Example: turns of 4, 3, 3 and 2 tokens and a window of 8, first turns learned too: the first two (7 tokens); then
    the second again, to be answered by the third and the fourth (8 tokens).

    Args:
        lengths: of the turns, with their end tokens.
        window: the most tokens of a piece.
        learn_first: whether the first turn is learned.

    Returns:
        For each piece its first token, its length, its first turn, whether that turn is context, and the turn after
        its last.
    """
    pieces = []
    ends = np.cumsum(lengths).tolist()
    turn = 0 if learn_first else 1
    while turn < len(lengths):
        if lengths[turn] > window:
            turn += 1
            continue
        context = min(lengths[turn - 1], window - lengths[turn]) if turn else 0
        start = (ends[turn - 1] if turn else 0) - context
        after = turn + 1
        while after < len(lengths) and ends[after] - start <= window:
            after += 1
        pieces.append((start, ends[after - 1] - start, turn - 1 if context else turn, int(context > 0), after))
        turn = after
    return pieces


def _edges(lengths: NDArray[np.int32], batch_tokens: int) -> NDArray[np.int64]:
    """Where batches begin and end among sorted lengths: as many rows as fit, each as long as the last of them."""
    edges = [0]
    while edges[-1] < len(lengths):
        start, fits = edges[-1], 1
        most = min(batch_tokens // int(lengths[start]), len(lengths) - start)  # rows, if none were longer
        low, high = 1, most
        while low <= high:
            rows = (low + high) // 2
            if int(lengths[start + rows - 1]) * rows <= batch_tokens:
                fits, low = rows, rows + 1
            else:
                high = rows - 1
        edges.append(start + fits)
    return np.array(edges, np.int64)
