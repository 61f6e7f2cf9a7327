"""Log the metrics of a run to TensorBoard or Trackio, each of which is an extra package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogpt.errors import DialogueError, install_hint
from dialogpt.train.listener import Listener

if TYPE_CHECKING:
    from dialogpt.train.trainer import Measured, Trainer

TRACKERS = ("tensorboard", "trackio")


def tracker(name: str, folder: Path) -> Listener:
    """Return a listener that logs to a tracker.

    Args:
        name: one of `TRACKERS`.
        folder: the folder of the run.

    Raises:
        DialogueError: the tool is not installed.
    """
    try:
        return TensorBoard(folder) if name == "tensorboard" else Trackio(folder)
    except ImportError:
        raise DialogueError(f"--log {name} needs {name}: {install_hint('log')}") from None


class _Tracker(Listener):
    """Logs scalars by name and step; the base of both trackers."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars."""
        raise NotImplementedError

    def stepped(self, trainer: Trainer, measured: Measured) -> None:
        """Log the metrics of a step."""
        values = {"loss": measured.loss, "lr": measured.lr, "grad_norm": measured.grad_norm}
        self.scalars({f"train/{name}": value for name, value in values.items()}, measured.step)

    def validated(self, trainer: Trainer, loss: float, best: bool) -> None:
        """Log the validation loss."""
        self.scalars({"valid/loss": loss}, trainer.progress.step)


class TensorBoard(_Tracker):
    """Writes event files to RUN/tensorboard, for `tensorboard --logdir RUN`."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(folder / "tensorboard")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def sampled(self, step: int, prompt: Sequence[str], replies: Sequence[str]) -> None:
        """Log a reply together with the one before training."""
        shown = "\n\n".join([*prompt, f"**{replies[-1]}**", f"(before training: {replies[0]})"])
        self.writer.add_text(f"samples/{prompt[-1][:40]}", shown, step)

    def close(self) -> None:
        """Flush and close the log."""
        self.writer.close()


class Trackio(_Tracker):
    """A run of the Trackio project "dialogpt", on this machine."""

    def __init__(self, folder: Path) -> None:
        import trackio

        self.run: Any = trackio.init(project="dialogpt", name=folder.name, embed=False)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Flush and close the log."""
        self.run.finish()
