"""The folder of a training run: its arguments, checkpoints and metrics.

    run.json            the settings, the model that it started from, the data
    data/               the prepared dialogues
    step-00000500/      a checkpoint in this project's format, and training.safetensors and training.json beside it:
                        the state of the optimizers and the progress of the run
    last, best          small files that name the newest checkpoint, and the one with the lowest validation loss
    metrics.jsonl       one line per step and per validation
    loss.png            the loss curves

A checkpoint gets its name only when all of it is on the disk, so a process that dies at any moment leaves the previous
checkpoint intact.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from dialogpt.errors import DialogueError
from dialogpt.files import own_files
from dialogpt.files.disk import lock, reason_of, write_atomically
from dialogpt.files.plain_file import require_plain_file
from dialogpt.model import GPT2
from dialogpt.train.lora import write_adapter
from dialogpt.train.trainer import Progress, Trainer
from dialogpt.weights import Checkpoint, open_checkpoint, save
from dialogpt.weights.checkpoint import Origin
from dialogpt.weights.formats import (
    CheckpointError,
    StoredTensor,
    new_folder,
    read_json,
    read_safetensors,
    write_json,
    write_safetensors,
)

logger = logging.getLogger(__name__)
STATE, PROGRESS, LOCK, ADAPTER = "training.safetensors", "training.json", ".lock", "adapter"
ADAPTER_PREFIX = "learned."  # of adapter weights, which are stored beside the state of the optimizers


def step_name(step: int) -> str:
    """Return the name of a step's checkpoint; names sort in the order of steps."""
    return f"step-{step:08d}"


class Run:
    """A run's folder.

    Attributes:
        folder: where it is.
        about: the content of run.json.
    """

    def __init__(self, folder: Path) -> None:
        """Open an existing run.

        Raises:
            DialogueError: there is none.
            CheckpointError: its run.json is damaged.
        """
        if not (folder / "run.json").is_file():
            raise DialogueError(f"{folder} holds no run to resume; omit --resume to start one there")
        self.folder = folder
        self.about = read_json(folder / "run.json")
        self._release: Callable[[], None] | None = None  # releases the lock
        self._new = False

    @classmethod
    def begin(cls, folder: Path, about: Mapping[str, Any]) -> Run:
        """Create the folder of a new run.

        Raises:
            CheckpointError: it exists or cannot be written.
        """
        if (folder / "run.json").exists():
            raise CheckpointError(f"{folder} holds a run already; pass --resume to continue it, or name a new folder")
        with new_folder(folder) as temporary:
            write_json(temporary / "run.json", about)
        run = cls(folder)
        run._new = True
        return run

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._release is None:
            return
        useless = self._new and kind is not None and not self.checkpoints()  # bad data, for example: nothing is lost
        if useless:
            traceback.clear_frames(trace)  # frames keep prepared data mapped, which Windows then cannot delete
            try:
                self._empty()
            except OSError as left:
                logger.warning("%s has no checkpoint and cannot be removed: %s", self.folder, reason_of(left))
        self._release()
        if useless:
            with suppress(OSError):  # remaining files were reported above, or belong to a run that was started since
                self.folder.rmdir()

    def _empty(self) -> None:
        """Remove everything but the lock file, which excludes other processes meanwhile."""
        (self.folder / "run.json").unlink()  # first: without it there is nothing to resume
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()

    def lock(self) -> None:
        """Lock the folder against other processes until the `with` block of the run ends.

        If an error ends a new run before its first checkpoint, its folder is removed.

        Raises:
            DialogueError: another process is training here, or the folder cannot be locked.
        """
        try:
            self._release = lock(self.folder / LOCK)
        except BlockingIOError:
            raise DialogueError(f"{self.folder} is being trained by another process; wait for it to end") from None
        except OSError as error:
            raise DialogueError(str(error)) from None
        for left in self.folder.glob("**/.*.partial-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        for left in self.folder.glob(".*.lock"):  # of checkpoints that it was writing; nobody else writes here now
            left.unlink(missing_ok=True)

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints from which training can resume, the newest last."""
        return sorted(path.parent for path in self.folder.glob(f"step-*/{PROGRESS}"))

    def restore(self, trainer: Trainer) -> None:
        """Restore a trainer from the newest checkpoint, and drop later metrics.

        Raises:
            CheckpointError: it cannot be read.
        """
        newest = self.checkpoints()[-1]
        state = {name: stored.read() for name, stored in read_safetensors(newest / STATE).items()}
        learned = [name for name in state if name.startswith(ADAPTER_PREFIX)]
        weights = {name.removeprefix(ADAPTER_PREFIX): state.pop(name) for name in learned}
        if not weights:
            weights = {name: stored.read() for name, stored in open_checkpoint(newest).tensors.items()}
        try:
            progress = Progress.from_dict(read_json(newest / PROGRESS))
            trainer.restore(weights, state, progress)
        except ValueError as error:
            raise CheckpointError(f"{newest} cannot be resumed from ({error}); its files are damaged") from None
        trainer.processes.on_rank_0(lambda: self._tidy(newest.name, progress))

    def _tidy(self, newest: str, progress: Progress) -> None:
        """Repair what a kill may have left: point `last` to the newest checkpoint, and drop later metrics."""
        best = step_name(progress.best_step)
        self._point("last", newest)
        if progress.best_step and (self.folder / best).is_dir():
            self._point("best", best)
        kept = [line for line in self.metrics() if line["step"] <= progress.step]
        temporary = self.folder / ".metrics.jsonl.partial"
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self.folder / "metrics.jsonl")

    def metrics(self) -> list[dict[str, Any]]:
        """What was measured so far; a line that cannot be read, such as a kill cuts short, is left out.

        Raises:
            DialogueError: the file cannot be read.
        """
        path = self.folder / "metrics.jsonl"
        measured = []
        try:
            if path.exists():
                require_plain_file(path)
                with path.open("rb") as file:
                    while line := file.readline(own_files.LINE_LIMIT):
                        with suppress(ValueError):
                            entry = own_files.parse_line(line, {"step": own_files.AT_LEAST_ONE})
                            if all(value is None or own_files.NUMBER.accepts(value) for value in entry.values()):
                                measured.append(entry)
        except OSError as error:
            raise DialogueError(f"{path} cannot be read: {error.strerror}") from None
        return measured

    def log(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Append lines to metrics.jsonl.

        Raises:
            DialogueError: the file cannot be written.
        """
        path = self.folder / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(entry) + "\n" for entry in entries))
        except OSError as error:
            raise DialogueError(f"{path} cannot be written: {reason_of(error)}; the last checkpoint is kept") from None

    def save(self, trainer: Trainer, like: Checkpoint, origin: Origin) -> None:
        """Write a checkpoint, point `last` and possibly `best` to it, and remove checkpoints that neither names.

        All processes of a run must call this; rank 0 writes.

        Args:
            trainer: the trainer to save.
            like: provides everything but the weights.
            origin: where the weights come from.

        Raises:
            CheckpointError: it cannot be written; earlier checkpoints are intact.
        """
        weights, state, adapter = trainer.weights(), trainer.optimizer_state(), trainer.adapter_weights()
        state |= {f"{ADAPTER_PREFIX}{name}": value for name, value in adapter.items()}
        adapted = trainer.model if adapter else None
        trainer.processes.on_rank_0(lambda: self._write(trainer.progress, weights, state, adapted, like, origin))

    def _write(
        self,
        progress: Progress,
        weights: dict[str, Tensor],
        state: dict[str, Tensor],
        adapted: GPT2 | None,
        like: Checkpoint,
        origin: Origin,
    ) -> None:
        name = step_name(progress.step)
        try:
            if not (self.folder / name).exists():
                with new_folder(self.folder / name) as folder:
                    save(folder, like, weights, origin)
                    if adapted is not None:
                        (folder / ADAPTER).mkdir()
                        write_adapter(folder / ADAPTER, adapted, self.about.get("source") or origin.name)
                    stored = [StoredTensor(key, tuple(t.shape), t.dtype, t.cpu) for key, t in state.items()]
                    write_safetensors(folder / STATE, stored, {"format": "pt"})
                    write_json(folder / PROGRESS, progress.to_dict())
        except (CheckpointError, OSError) as error:
            step, reason = progress.step, error if isinstance(error, CheckpointError) else reason_of(error)
            raise CheckpointError(
                f"the checkpoint of step {step} cannot be saved, earlier checkpoints are intact: {reason}"
            ) from None
        link = "last"
        try:
            self._point(link, name)
            if progress.best_step == progress.step > 0:
                link = "best"
                self._point(link, name)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint of step {progress.step} is saved as {self.folder / name}, but {self.folder / link} "
                f"cannot be written: {reason_of(error)}; train --resume continues from it"
            ) from None
        self._prune(name, step_name(progress.best_step) if progress.best_step else None)

    def _point(self, link: str, name: str) -> None:
        write_atomically(self.folder / link, f"{name}\n")

    def _prune(self, last: str, best: str | None) -> None:
        """Keep the last checkpoint, and of the best one what inference needs; remove all others.

        Files that cannot be removed, as when a chat has them open on Windows, are retried after the next checkpoint.
        """

        def complain(error: OSError) -> None:
            logger.warning("an old checkpoint in %s cannot be removed: %s", self.folder, reason_of(error))

        for folder in self.folder.glob("step-*"):
            try:
                if folder.name != last:
                    (folder / PROGRESS).unlink(missing_ok=True)  # first: without it nothing resumes from here
                    (folder / STATE).unlink(missing_ok=True)
                    if folder.name != best:
                        doomed = folder.with_name(f".{folder.name}.partial-{os.getpid()}-{os.urandom(4).hex()}")
                        folder.rename(doomed)  # atomic, also for a chat that is opening it
            except OSError as error:
                complain(error)
        for doomed in self.folder.glob(".step-*.partial-*"):
            try:
                shutil.rmtree(doomed)
            except OSError as error:
                complain(error)
