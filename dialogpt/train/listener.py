"""Callbacks of a training run: a base class whose methods do nothing, for listeners to override.

It imports nothing heavy. Showing progress in a terminal is left to `dialogpt.cli.training_progress`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dialogpt.train.data.batches import Batches
    from dialogpt.train.data.prepare import TokenFiles
    from dialogpt.train.trainer import Measured, Trainer


class Listener:
    """Receives the events of a run and ignores them; the default."""

    def preparing(self, name: str, done: int, total: int) -> None:
        """Called while data is prepared, with the bytes read and the total; an exception stops the run."""

    def prepared(self, name: str, data: TokenFiles, batches: Batches) -> None:
        """Called when a data set, "train" or "valid", is ready."""

    def planned(self, sentences: Sequence[str]) -> None:
        """Called with the plan of the run in sentences: the number of steps, and settings without effect."""

    def began(self, trainer: Trainer) -> None:
        """Called when the network is ready, freshly initialized or restored from the last checkpoint."""

    def stepped(self, trainer: Trainer, measured: Measured) -> None:
        """Called after each training step."""

    def validated(self, trainer: Trainer, loss: float, best: bool) -> None:
        """Called after each validation."""

    def sampled(self, step: int, prompt: Sequence[str], replies: Sequence[str]) -> None:
        """Called with the replies to a held-out prompt: before training, and at each sampled step since."""

    def close(self) -> None:
        """Called when the run ends, for whatever reason."""


class Listeners(Listener):
    """Forwards every event to several listeners."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners = listeners

    def preparing(self, name: str, done: int, total: int) -> None:
        """See `Listener`."""
        for listener in self.listeners:
            listener.preparing(name, done, total)

    def prepared(self, name: str, data: TokenFiles, batches: Batches) -> None:
        """See `Listener`."""
        for listener in self.listeners:
            listener.prepared(name, data, batches)

    def planned(self, sentences: Sequence[str]) -> None:
        """See `Listener`."""
        for listener in self.listeners:
            listener.planned(sentences)

    def began(self, trainer: Trainer) -> None:
        """See `Listener`."""
        for listener in self.listeners:
            listener.began(trainer)

    def stepped(self, trainer: Trainer, measured: Measured) -> None:
        """See `Listener`."""
        for listener in self.listeners:
            listener.stepped(trainer, measured)

    def validated(self, trainer: Trainer, loss: float, best: bool) -> None:
        """See `Listener`."""
        for listener in self.listeners:
            listener.validated(trainer, loss, best)

    def sampled(self, step: int, prompt: Sequence[str], replies: Sequence[str]) -> None:
        """See `Listener`."""
        for listener in self.listeners:
            listener.sampled(step, prompt, replies)

    def close(self) -> None:
        """See `Listener`."""
        for listener in self.listeners:
            listener.close()
