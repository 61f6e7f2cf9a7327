"""What a training run reports while it goes on: a base whose methods do nothing, for listeners to override.

It imports nothing heavy. What is shown to people is left to `dialogpt.cli.training_progress`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dialogpt.train.data.batches import Batches
    from dialogpt.train.data.prepare import TokenFiles
    from dialogpt.train.trainer import Measured, Trainer


class Listener:
    """Hears of a run; a run in which nobody is interested has this one."""

    def preparing(self, name: str, done: int, total: int) -> None:
        """So many bytes of the files were read; may raise to stop."""

    def prepared(self, name: str, data: TokenFiles, batches: Batches) -> None:
        """The data of this name, train or valid, is ready."""

    def planned(self, sentences: Sequence[str]) -> None:
        """What follows from the data: the steps, and settings that cannot do anything."""

    def began(self, trainer: Trainer) -> None:
        """The network is ready, fresh or as the last checkpoint has it."""

    def stepped(self, trainer: Trainer, measured: Measured) -> None:
        """A step was taken."""

    def validated(self, trainer: Trainer, loss: float, best: bool) -> None:
        """The network was judged by the validation data."""

    def sampled(self, step: int, prompt: Sequence[str], replies: Sequence[str]) -> None:
        """A held-out prompt was answered: before training, and at the steps since then."""

    def close(self) -> None:
        """The run is left, whatever the reason."""


class Listeners(Listener):
    """Several listeners as one."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners = listeners

    def preparing(self, name: str, done: int, total: int) -> None:
        """Tell all."""
        for listener in self.listeners:
            listener.preparing(name, done, total)

    def prepared(self, name: str, data: TokenFiles, batches: Batches) -> None:
        """Tell all."""
        for listener in self.listeners:
            listener.prepared(name, data, batches)

    def planned(self, sentences: Sequence[str]) -> None:
        """Tell all."""
        for listener in self.listeners:
            listener.planned(sentences)

    def began(self, trainer: Trainer) -> None:
        """Tell all."""
        for listener in self.listeners:
            listener.began(trainer)

    def stepped(self, trainer: Trainer, measured: Measured) -> None:
        """Tell all."""
        for listener in self.listeners:
            listener.stepped(trainer, measured)

    def validated(self, trainer: Trainer, loss: float, best: bool) -> None:
        """Tell all."""
        for listener in self.listeners:
            listener.validated(trainer, loss, best)

    def sampled(self, step: int, prompt: Sequence[str], replies: Sequence[str]) -> None:
        """Tell all."""
        for listener in self.listeners:
            listener.sampled(step, prompt, replies)

    def close(self) -> None:
        """Tell all."""
        for listener in self.listeners:
            listener.close()
