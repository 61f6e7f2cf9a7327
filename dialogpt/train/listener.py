"""What a training run reports while it goes on: a base whose methods do nothing, for listeners to override.

It imports nothing heavy. What is shown to people is left to `dialogpt.cli.training_progress`.
"""

from __future__ import annotations

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

    def began(self, trainer: Trainer) -> None:
        """The network is ready, fresh or as the last checkpoint has it."""

    def stepped(self, trainer: Trainer, measured: Measured) -> None:
        """A step was taken."""

    def validated(self, trainer: Trainer, loss: float, best: bool) -> None:
        """The network was judged by the validation data."""
