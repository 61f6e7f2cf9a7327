"""A training run from start to end: data, network, steps and checkpoints; and resuming an interrupted run.

A single step is left to `dialogpt.train.trainer`, the run's folder to `dialogpt.train.run_folder`, and what the user
sees to the `Listener` that the caller passes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dialogpt.data import Reading
from dialogpt.errors import DialogueError
from dialogpt.files import own_files
from dialogpt.model import GPT2, PRESETS, GPT2Config
from dialogpt.settings import choice
from dialogpt.tokenizer import Tokenizer
from dialogpt.train.data.batches import Batches
from dialogpt.train.data.dialogues import ALL, Format
from dialogpt.train.data.prepare import NothingUsable, TokenFiles, check_paths, prepare
from dialogpt.train.distributed import Processes
from dialogpt.train.listener import Listener
from dialogpt.train.lora import attach
from dialogpt.train.plan import VALID_EVERY, batch_tokens_for, idle_settings
from dialogpt.train.run_folder import Run
from dialogpt.train.samples import Samples
from dialogpt.train.settings import TrainConfig
from dialogpt.train.trainer import Trainer
from dialogpt.weights import Checkpoint, Vocabulary, load, open_checkpoint
from dialogpt.weights.checkpoint import Origin
from dialogpt.weights.load import dtype_of, require_dtype
from dialogpt.weights.vocabulary import gpt2_vocabulary

PASS_OTHERS = "pass others with --valid to get a validation loss"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """What a run starts or resumes from: a checkpoint, or fresh weights in the sizes of a preset.

    Attributes:
        checkpoint: sizes, vocabulary and settings; it has no tensors if the weights are fresh.
        vocabulary: its vocabulary.
        origin: where the weights come from.
    """

    checkpoint: Checkpoint
    vocabulary: Vocabulary
    origin: Origin

    @classmethod
    def fresh(cls, preset: str, dropout: float | None) -> Start:
        """Start from fresh weights in a size of `PRESETS`."""
        config = PRESETS[preset]
        vocabulary = gpt2_vocabulary(config.vocab_size)
        checkpoint = Checkpoint(
            config=config,
            tensors={},
            read_vocabulary=lambda: vocabulary,
            generation_config={},
            history_tokens=None,
            path=Path(preset),
            files=(),
            ours=True,
            settings={"bos_token_id": vocabulary.eos_id},
        )
        return cls(_with_dropout(checkpoint, dropout), vocabulary, Origin("fresh weights, trained with dialogpt", ""))

    @classmethod
    def loaded(cls, source: str | Path, dropout: float | None, adapter: str | None = None) -> Start:
        """Start from a checkpoint, with an adapter merged into it if there is one.

        Raises:
            CheckpointError: it cannot be used.
            DialogueError: it has no vocabulary.
        """
        checkpoint = open_checkpoint(source, adapter=adapter)
        if checkpoint.vocabulary is None:
            raise DialogueError(f"{source} has no vocabulary; put its vocab.json and merges.txt beside it")
        if checkpoint.ranking_head is not None:
            logger.warning("%s is a DialogRPT; its ranking head is dropped and not trained", checkpoint.path)
        anonymous = replace(checkpoint, about=None)  # a fine-tune is no longer the bot that `about` describes
        return cls(_with_dropout(anonymous, dropout), checkpoint.vocabulary, checkpoint.origin())

    def network(self, seed: int, dtype: str) -> GPT2:
        """Build the network with fresh or loaded weights, in its own memory: mapped files are copied."""
        torch.manual_seed(seed)
        model = GPT2(self.checkpoint.config).to(dtype_of(dtype))
        if self.checkpoint.tensors:
            model.load_state_dict(load(self.checkpoint, dtype=dtype, trainable=True).state_dict())
        return model


def _with_dropout(checkpoint: Checkpoint, rate: float | None) -> Checkpoint:
    if rate is None:
        return checkpoint
    config = replace(checkpoint.config, embd_pdrop=rate, attn_pdrop=rate, resid_pdrop=rate)
    return replace(checkpoint, config=config)


@dataclass(frozen=True)
class TrainingRequest:
    """The arguments of a run; they are stored in run.json, and `--resume` compares them.

    Attributes:
        data: training files, or one folder that was prepared from such files.
        valid: validation files; may be empty.
        preset: a name in `PRESETS`, for fresh weights.
        source: the checkpoint to fine-tune; exactly one of `preset` and `source` is given.
        config: the training settings.
        reading: how the files are read.
        adapter: the folder of a PEFT adapter that is merged into `source` first.
    """

    data: tuple[str, ...]
    valid: tuple[str, ...]
    preset: str | None
    source: str | None
    config: TrainConfig
    reading: Reading = field(default_factory=Reading)
    adapter: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the content of run.json."""
        return {**asdict(self), "data": list(self.data), "valid": list(self.valid)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingRequest:
        """Parse the content of run.json.

        Raises:
            DialogueError: this version did not write it.
        """
        own_files.require({"reading": {}, "adapter": None, **values}, _SCHEMA, "run.json")
        data, valid, preset, source, config = (values.get(each.name) for each in fields(cls)[:5])
        if not data or (preset is None) == (source is None):
            raise DialogueError("run.json is not one that this version wrote; begin a new run")
        kept = TrainConfig.from_dict(config or {}), Reading.from_dict(values.get("reading", {}))
        return cls(tuple(data), tuple(valid or ()), preset, source, *kept, values.get("adapter"))

    def start(self) -> Start:
        """Return what a new run starts from.

        Raises:
            CheckpointError, DialogueError: the checkpoint cannot be used.
        """
        if self.preset is not None:
            return Start.fresh(self.preset, self.config.dropout)
        return Start.loaded(str(self.source), self.config.dropout, self.adapter)


_SCHEMA: own_files.Schema = {  # of run.json
    "data": own_files.TEXTS,
    "valid": own_files.TEXTS,
    "preset": own_files.optional(choice(*PRESETS)),
    "source": own_files.optional(own_files.TEXT),
    "config": own_files.OBJECT,
    "reading": own_files.OBJECT,
    "adapter": own_files.optional(own_files.TEXT),
}


def begin(folder: Path, request: TrainingRequest, processes: Processes) -> Run:
    """Start a run in a new folder.

    Raises:
        DialogueError, CheckpointError: the folder exists, or the arguments contradict each other.
    """
    both = sorted({*request.data} & {*request.valid})
    if both:
        raise DialogueError(
            f"{', '.join(both)} is named for both training and validation; pass other dialogues to --valid"
        )
    if request.config.patience is not None and not request.valid and not _splits(request):
        raise DialogueError("patience counts validations, and there is nothing to validate with; add --valid")
    config = replace(request.config, accumulation=request.config.accumulation or processes.size)  # stored for --resume
    return _opened(lambda: Run.begin(folder, replace(request, config=config).to_dict()), folder, processes)


def resume(folder: Path, processes: Processes) -> Run:
    """Resume a run that was started before.

    Raises:
        DialogueError: there is none in this folder, or another process is training it.
    """
    return _opened(lambda: Run(folder), folder, processes)


def _opened(opened: Callable[[], Run], folder: Path, processes: Processes) -> Run:
    """Open and lock a run on rank 0, then open it on the other ranks."""
    runs: list[Run] = []

    def open_and_lock() -> None:
        run = opened()
        run.lock()
        runs.append(run)

    processes.on_rank_0(open_and_lock)
    return runs[0] if runs else Run(folder)


def fit(
    run: Run,
    processes: Processes,
    *,
    listener: Listener | None = None,
    stop: Callable[[], bool] = lambda: False,
    workers: int = 1,
) -> Trainer:
    """Train until the last step, early stopping, or until `stop` returns true; the final state is always saved.

    Args:
        run: its folder, with the arguments in run.json; if it holds a checkpoint, training resumes from there.
        processes: all processes of the run, seen from this one.
        listener: receives the events of the run.
        stop: called after each step.
        workers: processes that prepare data.

    Raises:
        DialogueError: the data cannot be used, or the loss is not finite.
        CheckpointError: the model cannot be used, or a checkpoint cannot be written.
    """
    listener = listener or Listener()
    request = TrainingRequest.from_dict(run.about)
    config = request.config
    found = processes.first and bool(run.checkpoints())  # the others may look when the first has saved already
    left_off = processes.sums([float(found)])[0] > 0
    begun = request.start() if config.lora or not left_off else None  # adapters belong to the weights they began with
    start = begun or Start.loaded(run.checkpoints()[-1], None)
    form = form_of(request, start.checkpoint.config)
    _check_before_preparing(run, request, form, processes)
    data = _Data(run, request, form, start.vocabulary, processes, listener, workers).prepared()
    batch_tokens = config.batch_tokens or batch_tokens_for(data["train"].about["tokens"], processes.size)
    sets = {}
    for name, files in data.items():
        sets[name] = Batches(
            files,
            window=form.window,
            batch_tokens=batch_tokens,
            first_is_target=config.loss_on == "all",
            seed=config.seed,
        )
        listener.prepared(name, files, sets[name])
    model = start.network(config.seed, "float64" if config.dtype == "float64" else "float32")
    if config.lora:
        attach(model, config.lora, config.lora_alpha, config.lora_target)
    trainer = Trainer(model, sets["train"], sets.get("valid"), config, processes)

    def save() -> None:
        run.save(trainer, replace(start.checkpoint, reverse=config.reverse), start.origin)

    if left_off:
        run.restore(trainer)
    else:
        save()  # so that a full disk is known now, and a run can be resumed from its first step on
    listener.planned(_plan(trainer, batch_tokens))
    listener.began(trainer)
    sample = _sampling(trainer, run, start, data.get("valid", data["train"]), listener)
    sample()
    _steps(trainer, run, save, listener, stop, sample)
    return trainer


def _plan(trainer: Trainer, batch_tokens: int) -> list[str]:
    """Describe the plan that follows from the data, in sentences: the steps, and settings without effect."""
    config, about = trainer.config, trainer.batches.data.about
    steps_an_epoch = trainer.batches.per_epoch / trainer.accumulation
    epochs = trainer.steps / steps_an_epoch
    plan = (
        f"{about['dialogues']:,} dialogues, {about.get('targets', about['tokens']):,} target tokens: "
        f"{steps_an_epoch:,.3g} steps an epoch of {batch_tokens:,} tokens each, {epochs:.3g} epochs, {trainer.steps:,} "
        f"steps, learning rate {config.lr:g}"
    )
    idle = idle_settings(config, trainer.steps, trainer.valid is not None)
    return [plan, *(f"warning: {sentence}" for sentence in idle)]


def _sampling(trainer: Trainer, run: Run, start: Start, data: TokenFiles, listener: Listener) -> Callable[[], None]:
    """Return a function that answers the held-out prompts at the current step; it does nothing on a sharded network."""
    count, processes = trainer.config.samples, trainer.processes
    if not count or not processes.first or (trainer.config.parallel == "fsdp" and processes.size > 1):
        return lambda: None
    tokenizer = Tokenizer(start.vocabulary)
    samples = Samples.of(run.folder, data, tokenizer, count, trainer.progress.step)

    def sample() -> None:
        step = trainer.progress.step
        if step in samples.replies:
            return
        samples.take(trainer.model, tokenizer, start.checkpoint, step)
        if samples.prompts:
            listener.sampled(step, samples.prompts[0], samples.of_prompt(0))

    return sample


def form_of(request: TrainingRequest, sizes: GPT2Config) -> Format:
    """Return how the lines of data are read.

    Raises:
        DialogueError: the window exceeds the network's positions, or a batch.
    """
    config = request.config
    window = config.window or sizes.n_positions
    if window > sizes.n_positions:
        raise DialogueError(
            f"a window of {window} tokens exceeds the network's {sizes.n_positions} positions; reduce --window"
        )
    if config.batch_tokens is not None and config.batch_tokens < window:
        raise DialogueError(
            f"a batch of {config.batch_tokens} tokens cannot hold a row of {window}; make --batch-tokens larger, or "
            f"--window smaller"
        )
    fewest_turns = 1 if config.loss_on == "all" else 2
    reading = replace(request.reading, tsv_weights=config.tsv_weights or request.reading.tsv_weights)
    if config.loss_on == "all" and reading.min_turns == 2:
        reading = replace(reading, min_turns=1)
    return Format(window=window, fewest_turns=fewest_turns, reverse=config.reverse, reading=reading)


def _splits(request: TrainingRequest) -> bool:
    """Whether some dialogues are held out; a prepared folder cannot be split."""
    return request.config.split > 0 and not request.valid and not _are_prepared(request.data)


def _check_before_preparing(run: Run, request: TrainingRequest, form: Format, processes: Processes) -> None:
    """Check the arguments before preparing, which may take hours."""
    require_dtype(request.config.dtype, processes.device)
    size, accumulation = processes.size, request.config.accumulation
    if accumulation and accumulation % size:
        raise DialogueError(
            f"{accumulation} batches per step cannot be divided among {size} processes; make --accumulation a multiple "
            f"of {size}"
        )
    unread = [
        path
        for name, paths in (("train", request.data), ("valid", request.valid))
        if not (_are_prepared(paths) or (run.folder / "data" / name).exists())
        for path in paths
    ]
    processes.on_rank_0(lambda: check_paths(unread, form))


def _are_prepared(paths: Sequence[str]) -> bool:
    return len(paths) == 1 and (Path(paths[0]) / "data.json").is_file()


def _steps(
    trainer: Trainer,
    run: Run,
    save: Callable[[], None],
    listener: Listener,
    stop: Callable[[], bool],
    sample: Callable[[], None],
) -> None:
    """Run the training steps; validate, sample and save at their intervals."""
    config, progress, processes = trainer.config, trainer.progress, trainer.processes
    valid_every = config.valid_every or VALID_EVERY
    while progress.step < trainer.steps and not _patience_exhausted(trainer):
        measured = trainer.step()
        last = progress.step == trainer.steps
        lines: list[dict[str, Any]] = [asdict(measured)]
        listener.stepped(trainer, measured)
        best = False
        if trainer.valid is not None and (last or progress.step % valid_every == 0):
            loss = trainer.validate()
            best = loss < progress.best_loss
            progress.worse = 0 if best else progress.worse + 1
            if best:
                progress.best_loss, progress.best_step = loss, progress.step
            perplexity = math.exp(loss) if loss < 700 else None  # it would overflow
            lines.append({"step": progress.step, "valid_loss": loss, "valid_perplexity": perplexity})
            listener.validated(trainer, loss, best)
            sample()
        processes.on_rank_0(partial(run.log, lines))
        stopping = processes.sums([float(stop())])[0] > 0  # processes may receive Ctrl-C at different steps
        if best or last or stopping or _patience_exhausted(trainer) or progress.step % config.save_every == 0:
            trainer.check_next_loss()
            save()
        if stopping:
            trainer.interrupted = not last
            return
    sample()


def _patience_exhausted(trainer: Trainer) -> bool:
    patience = trainer.config.patience
    return patience is not None and trainer.progress.worse >= patience


@dataclass(frozen=True)
class _Data:
    """Prepares the training and validation data of a run as token files, once, on rank 0."""

    run: Run
    request: TrainingRequest
    form: Format
    vocabulary: Vocabulary
    processes: Processes
    listener: Listener
    workers: int

    def prepared(self) -> dict[str, TokenFiles]:
        """Return the data sets: "train" and, if there is validation data, "valid"."""
        request, share = self.request, self.request.config.split
        folder = self.run.folder / "data"
        if not _splits(request):
            for name, paths, taken in (("train", request.data, ALL), ("valid", request.valid, ALL)):
                if paths:
                    self._make(name, paths, taken)
        elif not (folder / "train").exists():
            self._split(share)
        found = [("train", request.data), ("valid", request.valid)]
        sets = {
            name: self._open(name, paths) for name, paths in found if _are_prepared(paths) or (folder / name).exists()
        }
        if _splits(request) and "valid" in sets and not sets["valid"].about.get("targets", 1):
            del sets["valid"]  # such as one dialogue, whose reply is longer than the window
            if self.processes.first:
                logger.warning("nothing in the dialogues held out is a target; %s", PASS_OTHERS)
        return sets

    def _split(self, share: float) -> None:
        """Hold out some dialogues, but none of very few: there all or none could fall into the share."""

        def split() -> None:
            try:
                self._prepare("train", self.request.data, (share, 1.0))
                self._prepare("valid", self.request.data, (0.0, share))
            except NothingUsable:
                if not (self.run.folder / "data" / "train").exists():
                    self._prepare("train", self.request.data, ALL)
                logger.warning("too few dialogues to hold any out; %s", PASS_OTHERS)

        self.processes.on_rank_0(split)

    def _make(self, name: str, paths: Sequence[str], share: tuple[float, float]) -> None:
        def make() -> None:
            if not (_are_prepared(paths) or (self.run.folder / "data" / name).exists()):
                self._prepare(name, paths, share)

        self.processes.on_rank_0(make)

    def _prepare(self, name: str, paths: Sequence[str], share: tuple[float, float]) -> None:
        prepare(
            [Path(path) for path in paths],
            self.run.folder / "data" / name,
            self.vocabulary,
            replace(self.form, share=share),
            workers=self.workers,
            progress=lambda done, total: self.listener.preparing(name, done, total),
        )

    def _open(self, name: str, paths: Sequence[str]) -> TokenFiles:
        data = TokenFiles(Path(paths[0]) if _are_prepared(paths) else self.run.folder / "data" / name)
        data.check(self.vocabulary, self.form)
        return data
