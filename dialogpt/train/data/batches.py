"""Token files to batches: dialogues are split at turns to fit the window, and rows of similar length are batched.

The order of all batches of all epochs is a pure function of the data, the sizes and a seed, so that an interrupted run
resumes from a batch number. Each turn is a target once per epoch. The index of the pieces is kept in memory, about 50
bytes per piece; the tokens are not. How the loss uses a batch is left to `dialogpt.train.objective`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dialogpt.errors import DialogueError
from dialogpt.train.data.prepare import TokenFiles

CHUNK_DIALOGUES = 1 << 20  # dialogues that are split together
IGNORED = -100  # the label of a token that is no target, as in torch's cross entropy


@dataclass(frozen=True)
class Batch:
    """One batch, padded on the right.

    Attributes:
        ids: (B, T) token ids.
        labels: (B, T) the same ids, or `IGNORED` for padding, context and first tokens. They are not shifted: the
            objective compares each label with the logits one position before it.
        weights: (B, T) in float32, the weight of each label.
    """

    ids: Tensor
    labels: Tensor
    weights: Tensor

    @property
    def learned(self) -> int:
        """The number of target tokens."""
        return int((self.labels != IGNORED).sum())

    @property
    def weight(self) -> float:
        """The sum of the weights of the target tokens, which normalizes the loss."""
        return float(self.weights[self.labels != IGNORED].double().sum())


@dataclass(frozen=True)
class _Pieces:
    """Pieces of dialogues that fit the window, one array entry each (21 bytes).

    Attributes:
        starts: index of the first token.
        lengths: number of tokens.
        turns: index of the first turn, to look up weights.
        with_context: whether the first turn is context only.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int32]
    turns: NDArray[np.int64]
    with_context: NDArray[np.bool_]


class Batches:
    """All batches of all epochs, indexed by their number.

    Attributes:
        per_epoch: the number of batches in an epoch.
    """

    def __init__(self, data: TokenFiles, *, window: int, batch_tokens: int, first_is_target: bool, seed: int) -> None:
        """Split the dialogues and plan the batches.

        Args:
            data: prepared dialogues.
            window: maximum tokens of a row.
            batch_tokens: maximum slots of a batch, rows times the longest row; at least `window`.
            first_is_target: whether a dialogue's first turn is a target too.
            seed: seeds the order of pieces and batches.

        Raises:
            DialogueError: no turn can be trained on.
        """
        self.data = data
        self.seed = seed
        self.pieces = _pieces(data, window, first_is_target)
        if not len(self.pieces.starts):
            raise DialogueError(
                f"no turn of {data.folder} can be trained on: all are first turns, longer than {window} tokens, or of "
                f"weight 0"
            )
        self._edges = _edges(np.sort(self.pieces.lengths), batch_tokens)
        self.per_epoch = len(self._edges) - 1
        self._shuffled: tuple[int, NDArray[np.int32], NDArray[np.int64]] | None = None  # of the last epoch used

    def __getitem__(self, number: int) -> Batch:
        """Return a batch of the endless sequence of epochs."""
        epoch, index = divmod(number, self.per_epoch)
        if self._shuffled is None or self._shuffled[0] != epoch:
            self._shuffled = (epoch, *self._order(epoch))
        _, rows, batches = self._shuffled
        which = batches[index]
        return self._batch(rows[self._edges[which] : self._edges[which + 1]])

    def _order(self, epoch: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return an epoch's pieces, sorted by length with ties shuffled, and the shuffled order of its batches."""
        generator = np.random.default_rng((self.seed, epoch))
        rows = generator.permutation(np.arange(len(self.pieces.lengths), dtype=np.int32))
        rows = rows[np.argsort(self.pieces.lengths[rows], kind="stable")]
        return rows, generator.permutation(self.per_epoch)

    def _batch(self, rows: NDArray[np.int32]) -> Batch:
        """Pad pieces to one batch, and mark their target tokens."""
        width = int(self.pieces.lengths[rows].max())
        ids = np.full((len(rows), width), self.data.eos_id, np.int64)  # (B, T)
        is_target = np.zeros(ids.shape, bool)
        weights = np.zeros(ids.shape, np.float32)
        for row, piece in enumerate(rows):
            start, length = self.pieces.starts[piece], self.pieces.lengths[piece]
            ids[row, :length] = self.data.tokens[start : start + length]
            ends = ids[row, :length] == self.data.eos_id
            turn = np.cumsum(ends) - ends  # of each token, counted in this piece
            weights[row, :length] = self.data.weights[self.pieces.turns[piece] + turn]
            is_target[row, :length] = turn >= self.pieces.with_context[piece]
        is_target[:, 0] = False  # nothing precedes it
        is_target &= weights > 0
        labels = np.where(is_target, ids, IGNORED)
        return Batch(torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(weights))


def _pieces(data: TokenFiles, window: int, first_is_target: bool) -> _Pieces:
    """Split all dialogues in chunks, as temporary arrays take several times the memory of the result."""
    before, parts = np.zeros((1, 2), np.int64), []
    for first in range(0, len(data.ends), CHUNK_DIALOGUES):
        ends = np.array(data.ends[first : first + CHUNK_DIALOGUES])
        parts.append(_pieces_of(data, np.concatenate([before, ends[:-1]]), ends, window, first_is_target))
        before = ends[-1:]
    return _Pieces(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(_Pieces)))


def _pieces_of(
    data: TokenFiles, begins: NDArray[np.int64], ends: NDArray[np.int64], window: int, first_is_target: bool
) -> _Pieces:
    """Split dialogues that are longer than the window; each piece starts with the turn before it as context."""
    first_turn, after = begins[0, 1], ends[-1, 1]
    counts = np.concatenate([[0], np.cumsum(data.weights[first_turn:after] > 0)])

    def weighted(turns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count the turns with a positive weight before each of these turns."""
        before: NDArray[np.int64] = counts[turns - first_turn]
        return before

    lengths = ends[:, 0] - begins[:, 0]
    has_targets = weighted(ends[:, 1]) > weighted(np.minimum(begins[:, 1] + (not first_is_target), ends[:, 1]))
    fitting = np.flatnonzero((lengths <= window) & has_targets)
    starts, sizes, turns = [begins[fitting, 0]], [lengths[fitting]], [begins[fitting, 1]]
    context = [np.full(len(fitting), not first_is_target)]
    for dialogue in np.flatnonzero(lengths > window):
        (start, turn), end = begins[dialogue], ends[dialogue, 0]
        turn_ends = np.flatnonzero(data.tokens[start:end] == data.eos_id) + 1
        pieces = np.array(
            split_turns(np.diff(turn_ends, prepend=0).tolist(), window, first_is_target), np.int64
        ).reshape(-1, 5)
        pieces = pieces[weighted(turn + pieces[:, 4]) > weighted(turn + pieces[:, 2] + pieces[:, 3])]
        starts.append(start + pieces[:, 0])
        sizes.append(pieces[:, 1])
        turns.append(turn + pieces[:, 2])
        context.append(pieces[:, 3] > 0)
    return _Pieces(
        np.concatenate(starts),
        np.concatenate(sizes).astype(np.int32),
        np.concatenate(turns),
        np.concatenate(context).astype(bool),
    )


def split_turns(lengths: list[int], window: int, first_is_target: bool) -> list[tuple[int, int, int, int, int]]:
    """Split one dialogue into pieces of at most `window` tokens in which each turn is a target once.

    A piece starts with the turn before its targets as context, truncated on the left if it does not fit. A turn that is
    longer than the window is not a target.

    Example: turns of 4, 3, 3 and 2 tokens, a window of 8 and `first_is_target` give two pieces: the first two turns (7
    tokens); then the second turn as context of the third and the fourth (8 tokens).

    Args:
        lengths: the number of tokens of each turn, with its end token.
        window: maximum tokens of a piece.
        first_is_target: whether the first turn is a target.

    Returns:
        For each piece: the index of its first token, its length, the index of its first turn, whether that turn is
        context, and the index after its last turn.
    """
    pieces = []
    ends = np.cumsum(lengths).tolist()
    turn = 0 if first_is_target else 1
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
    """Return the boundaries of batches among sorted lengths: as many rows as fit, padded to the last of them."""
    edges = [0]
    while edges[-1] < len(lengths):
        start, fits = edges[-1], 1
        most = min(batch_tokens // int(lengths[start]), len(lengths) - start)  # rows, if all had this length
        low, high = 1, most
        while low <= high:
            rows = (low + high) // 2
            if int(lengths[start + rows - 1]) * rows <= batch_tokens:
                fits, low = rows, rows + 1
            else:
                high = rows - 1
        edges.append(start + fits)
    return np.array(edges, np.int64)
