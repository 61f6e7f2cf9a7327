"""The progress of a training run, on stderr: one line that is replaced in a terminal, now and then a line in a log."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dialogpt.cli.printable import one_line
from dialogpt.cli.progress import IN_LOG, MEGABYTES, ProgressLine, clock
from dialogpt.train.listener import Listener

if TYPE_CHECKING:
    from dialogpt.train.data.batches import Batches
    from dialogpt.train.data.prepare import TokenFiles
    from dialogpt.train.trainer import Measured, Trainer


SHOWN = 80  # characters of a sampled turn


class Screen(Listener):
    """Prints what it hears on stderr."""

    def __init__(self, interrupted: Callable[[], bool]) -> None:
        self.interrupted = interrupted
        self._line = ProgressLine(log_seconds=IN_LOG)
        self._recent: deque[tuple[int, float]] = deque(maxlen=20)  # tokens and seconds of the last steps

    def say(self, text: str) -> None:
        """Print a line."""
        self._line.say(text)

    def preparing(self, name: str, done: int, total: int) -> None:
        """Show how much was read; Ctrl-C ends it here, as there is nothing to save yet."""
        if self.interrupted():
            raise KeyboardInterrupt
        self._line.count(f"preparing {name}", done, total, MEGABYTES)

    def prepared(self, name: str, data: TokenFiles, batches: Batches) -> None:
        """Say what there is to learn, and which lines cannot be used."""
        about = data.about
        self.say(
            f"{name}: {about['dialogues']:,} dialogues, {about['turns']:,} turns, {about['tokens']:,} tokens; "
            f"{batches.per_epoch:,} batches an epoch"
        )
        if about["unusable"] or about["shortened"]:
            self.say(
                f"{about['unusable']:,} lines cannot be used and {about['shortened']:,} not whole; all of them are in "
                f"{data.folder / 'problems.txt'}:"
            )
            for problem in about["first_problems"]:
                self.say(f"  {problem}")
        for warning in about.get("warnings", []):
            self.say(f"warning: {warning}")

    def planned(self, sentences: Sequence[str]) -> None:
        """Say what follows from the data."""
        for sentence in sentences:
            self.say(sentence)

    def sampled(self, step: int, prompt: Sequence[str], replies: Sequence[str]) -> None:
        """Show a reply of now beside that before training; RUN/samples.md has all of them."""
        before = f"; before training: {_shown(replies[0])}" if step else ""
        self.say(f"step {step:,}: {_shown(prompt[-1])} is answered {_shown(replies[-1])}{before}")

    def began(self, trainer: Trainer) -> None:
        """Say what is trained, and from which step on."""
        parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
        after = f", {trainer.progress.step:,} of them taken" if trainer.progress.step else ""
        self.say(
            f"{parameters / 1e6:.1f} million parameters, {str(trainer.dtype).removeprefix('torch.')} products, "
            f"{trainer.steps:,} steps{after}"
        )

    def stepped(self, trainer: Trainer, measured: Measured) -> None:
        """Show step, loss, tokens a second and the time that is left."""
        self._recent.append((measured.learned, measured.seconds))
        tokens, seconds = map(sum, zip(*self._recent, strict=True))
        left = (trainer.steps - measured.step) * seconds / len(self._recent)
        self._line.show(
            f"step {measured.step:,} of {trainer.steps:,}  loss {measured.loss:.3f}  {tokens / seconds:,.0f} tokens/s  "
            f"{clock(left)} left",
            last=measured.step == trainer.steps,
        )

    def validated(self, trainer: Trainer, loss: float, best: bool) -> None:
        """Show the validation loss."""
        self.say(
            f"step {trainer.progress.step:,}: validation loss {loss:.4f}, perplexity {math.exp(min(loss, 700)):.2f}"
            f"{', the best so far' if best else ''}"
        )


def _shown(text: str) -> str:
    """A turn in a line of the log, in quotes; of a long one the beginning."""
    line = one_line(text)
    return repr(line if len(line) <= SHOWN else f"{line[:SHOWN]}...")
