"""Logs of a run in the tools that people watch runs with: TensorBoard and Trackio, each an extra package."""

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
    """A listener that writes to a tool.

    Args:
        name: in `TRACKERS`.
        folder: of the run.

    Raises:
        DialogueError: the tool is not installed.
    """
    try:
        return TensorBoard(folder) if name == "tensorboard" else Trackio(folder)
    except ImportError:
        raise DialogueError(f"--log {name} needs {name}: {install_hint('log')}") from None


class _Tracker(Listener):
    """What both are told: numbers by name and step, and samples as text."""

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers down."""
        raise NotImplementedError

    def stepped(self, trainer: Trainer, measured: Measured) -> None:
        """Write a step's numbers down."""
        values = {"loss": measured.loss, "lr": measured.lr, "grad_norm": measured.grad_norm}
        self.numbers({f"train/{name}": value for name, value in values.items()}, measured.step)

    def validated(self, trainer: Trainer, loss: float, best: bool) -> None:
        """Write the validation loss down."""
        self.numbers({"valid/loss": loss}, trainer.progress.step)


class TensorBoard(_Tracker):
    """Event files in RUN/tensorboard, for `tensorboard --logdir RUN`."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(folder / "tensorboard")

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers down."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def sampled(self, step: int, prompt: Sequence[str], replies: Sequence[str]) -> None:
        """Write a reply down beside the first one."""
        shown = "\n\n".join([*prompt, f"**{replies[-1]}**", f"(before training: {replies[0]})"])
        self.writer.add_text(f"samples/{prompt[-1][:40]}", shown, step)

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class Trackio(_Tracker):
    """A run of the Trackio project "dialogpt", on this machine."""

    def __init__(self, folder: Path) -> None:
        import trackio

        self.run: Any = trackio.init(project="dialogpt", name=folder.name, embed=False)

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers down."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Write what is left."""
        self.run.finish()
