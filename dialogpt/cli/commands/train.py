"""`dialogpt train`: its flags, and how a run is begun, resumed, checked and left.

Progress goes to stderr; stdout holds what `--check` shows, or nothing. Training itself is left to
`dialogpt.train.loop`; this file imports no torch before a command runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogpt.cli.options import add_adapter, add_switch, flag_of, parser_of, wrong_usage
from dialogpt.cli.output import command_line
from dialogpt.cli.printable import one_line, printable
from dialogpt.cli.reading import add_kind, reading_from
from dialogpt.cli.signals import interrupts_flagged
from dialogpt.cli.training_progress import Screen
from dialogpt.errors import DONE, INTERRUPTED, DialogueError, install_hint
from dialogpt.settings import SWITCH
from dialogpt.train.listener import Listener, Listeners
from dialogpt.train.settings import TrainConfig

if TYPE_CHECKING:
    from dialogpt.train.loop import TrainingRequest
    from dialogpt.train.run_folder import Run
    from dialogpt.train.trainer import Trainer

PRESETS = ("tiny", "small", "medium", "large")  # model.PRESETS, whose module imports torch
TRACKERS = ("tensorboard", "trackio")  # dialogpt.train.trackers, whose module imports more
CHECKED = 3  # lines of each file that --check shows


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its flags; the settings are the fields of `TrainConfig` in kebab case."""
    parser = subparsers.add_parser(
        "train",
        usage="%(prog)s DATA... --out RUN [FLAGS]  (--help lists them)",
        help="learn from dialogues, from fresh weights or a checkpoint",
        everyday=(
            *("--out", "--resume", "--check", "--valid", "--model", "--preset", "--epochs", "--lr", "--batch-tokens"),
            *("--lora", "--device"),
        ),
        examples=(
            "dialogpt train DATA.jsonl --out RUN                 # goes on from tiny",
            "dialogpt train DATA.jsonl --out RUN --model microsoft/DialoGPT-small --device cuda",
            "dialogpt train --resume --out RUN                   # after Ctrl-C, or a crash",
            "dialogpt chat RUN",
        ),
    )
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument(
        "data",
        nargs="*",
        metavar="DATA",
        help="dialogues of any kind that dialogpt import knows; or a prepared folder, such as RUN/data/train",
    )
    parser.add_argument("--out", type=Path, metavar="RUN", help="the run's folder: checkpoints, metrics, loss curve")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="resume the run in RUN with its own settings; --device and --threads are not kept",
    )
    parser.add_argument("--check", action="store_true", help="only show how the first dialogues are read and learned")
    parser.add_argument("--valid", action="append", metavar="FILE", help="validation dialogues; may be given again")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--model", metavar="SOURCE", help="a checkpoint to start from (default: tiny)")
    start.add_argument("--preset", choices=PRESETS, help="fresh weights of this size instead")
    add_adapter(parser)
    parser.add_argument("--device", default="cpu", help="cpu (the default), cuda, ...")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (default: torch's choice)")
    parser.add_argument("--log", choices=TRACKERS, help="write to this tool too, while it trains")
    add_kind(parser)
    group = parser.add_argument_group("settings")
    for setting in fields(TrainConfig):
        kind, purpose = setting.metadata["kind"], setting.metadata["help"]
        shown = "" if setting.default is None or kind is SWITCH else f" (default: {setting.default})"
        if kind is SWITCH:
            add_switch(group, setting.name, purpose)
        elif kind.choices:
            group.add_argument(flag_of(setting.name), choices=kind.choices, help=purpose + shown)
        else:
            value_of = parser_of(setting.name, kind)
            group.add_argument(flag_of(setting.name), type=value_of, metavar="X", help=purpose + shown)


def run(options: argparse.Namespace) -> int:
    """Train, or show what would be learned."""
    given = {
        setting.name: value for setting in fields(TrainConfig) if (value := getattr(options, setting.name)) is not None
    }
    try:
        config = TrainConfig(**given)
    except DialogueError as error:
        raise wrong_usage(options, error) from None
    if options.threads is not None and not 1 <= options.threads <= 1024:
        raise wrong_usage(options, f"--threads is {options.threads}, expected 1 to 1024")
    if not options.data and (options.check or not options.resume):
        raise wrong_usage(options, "name at least one file of dialogues")
    if options.adapter is not None and (options.preset or config.lora):
        other = "--preset" if options.preset else "--lora"  # whose adapters would name a base that nobody has
        raise wrong_usage(options, f"--adapter does not go with {other}; convert merges it into a checkpoint first")
    if options.preset and config.lora:
        raise wrong_usage(options, "--lora adapts a checkpoint, and --preset begins with none; omit one of the two")
    if options.check:
        return _check(options, config)
    if options.out is None:
        raise wrong_usage(options, "name the run's folder with --out")
    return _train(options, config, given)


def _train(options: argparse.Namespace, config: TrainConfig, given: dict[str, Any]) -> int:
    import torch

    from dialogpt.train import loop
    from dialogpt.train.distributed import joined

    if options.threads:
        torch.set_num_threads(options.threads)
    out = options.out.absolute()
    with ExitStack() as stack:
        processes = stack.enter_context(joined(options.device))
        interrupted = stack.enter_context(interrupts_flagged())
        if options.resume:
            run = stack.enter_context(loop.resume(out, processes))
            _refuse_others(options, given, loop.TrainingRequest.from_dict(run.about))
        else:
            data, valid = _paths(options.data), _paths(options.valid)
            source, reading = _source(options), reading_from(options)
            asked = loop.TrainingRequest(data, valid, options.preset, source, config, reading, _adapter(options))
            run = stack.enter_context(loop.begin(out, asked, processes))
        screen = Screen(interrupted)
        listener = _listener(options, screen, run.folder) if processes.first else Listener()
        stack.callback(listener.close)
        trainer = loop.fit(run, processes, listener=listener, stop=interrupted, workers=os.cpu_count() or 1)
        if processes.first:
            _tell_end(screen, run, trainer, options)
        return INTERRUPTED if trainer.interrupted else DONE


def _listener(options: argparse.Namespace, screen: Screen, folder: Path) -> Listener:
    """The screen, and a tool that was asked for."""
    if options.log is None:
        return screen
    from dialogpt.train.trackers import tracker

    return Listeners(screen, tracker(options.log, folder))


def _paths(names: Sequence[str] | None) -> tuple[str, ...]:
    """Files as run.json keeps them, as a run may be resumed from another folder."""
    return tuple(str(Path(name).absolute()) for name in names or ())


def _source(options: argparse.Namespace) -> str | None:
    """The checkpoint to go on from; a path is made absolute, as a run may be resumed from elsewhere."""
    if options.preset:
        return None
    source: str = options.model or "tiny"
    return str(Path(source).absolute()) if source != "tiny" and Path(source).exists() else source


def _adapter(options: argparse.Namespace) -> str | None:
    return None if options.adapter is None else str(Path(options.adapter).absolute())


def _refuse_others(options: argparse.Namespace, given: dict[str, Any], request: TrainingRequest) -> None:
    """Raise unless what was typed beside --resume is what the run was begun with."""
    typed = {
        **given,
        "data": _paths(options.data) or None,
        "valid": _paths(options.valid) or None,
        "preset": options.preset,
        "model": options.model and _source(options),
        "adapter": _adapter(options),
    }
    config = request.config
    kept = {
        **vars(config),
        "data": request.data,
        "valid": request.valid,
        "preset": request.preset,
        "model": request.source,
        "adapter": request.adapter,
    }
    others = [
        f"{_shown(name, kept[name])} and not {_shown(name, value)}"
        for name, value in typed.items()
        if value is not None and value != kept[name]
    ]
    if others:
        raise DialogueError(
            f"{options.out} was begun with {'; with '.join(others)}; leave that out to go on with it, or begin another "
            f"run in a new folder"
        )


def _shown(name: str, value: Any) -> str:
    """A setting as it is typed: "--lr 0.5", "no --valid"."""
    flag = "" if name == "data" else f"--{name.replace('_', '-')}"
    if value is None or value is False or value == ():
        return f"no {flag}"
    words = value if isinstance(value, tuple) else (() if value is True else (str(value),))
    return " ".join([flag, *words]).strip()


def _tell_end(screen: Screen, run: Run, trainer: Trainer, options: argparse.Namespace) -> None:
    """Say where everything is, and draw the curves."""
    progress = trainer.progress
    if progress.step < trainer.steps and not trainer.interrupted:
        screen.say(f"stopped early: {progress.worse} validations without a better one")
    best = f", the best is of step {progress.best_step:,}" if progress.best_step else ""
    screen.say(
        f"saved step {progress.step:,} in {run.folder}{best}; talk to it: "
        f"{command_line(['dialogpt', 'chat', '--model', str(run.folder)])}"
    )
    if trainer.interrupted:
        size = trainer.processes.size
        words = ["torchrun", "--nproc-per-node", str(size), "--no-python"] if size > 1 else []
        words += ["dialogpt", "train", "--resume", "--out", str(run.folder)]
        words += ["--device", options.device] if options.device != "cpu" else []
        words += ["--threads", str(options.threads)] if options.threads else []  # the last bits depend on them
        screen.say(f"interrupted; to resume: {command_line(words)}")
    if importlib.util.find_spec("matplotlib") is None:
        screen.say(f"no loss.png, as matplotlib is missing: {install_hint('train')}")
        return
    from dialogpt.train.plot import draw

    try:
        draw(run.metrics(), run.folder / "loss.png")
    except (OSError, KeyError, TypeError) as error:  # a viewer has the old one open, say
        screen.say(f"no loss.png: {error}")


def _check(options: argparse.Namespace, config: TrainConfig) -> int:
    """Show the first dialogues of each file as they are learned."""
    from dialogpt.train import loop
    from dialogpt.train.data.prepare import preview

    reading = reading_from(options)
    request = loop.TrainingRequest(
        _paths(options.data), (), options.preset, _source(options), config, reading, _adapter(options)
    )
    start = request.start()
    form = loop.form_of(request, start.checkpoint.config)
    seen = usable = False
    for path in options.data:
        if (Path(path) / "data.json").is_file():
            raise DialogueError(f"{path} is prepared, and --check shows text; name a file of dialogues")
        for line in preview(Path(path), start.vocabulary, form, first_is_target=config.loss_on == "all", most=CHECKED):
            seen, usable = True, usable or not line.problem
            print(printable(f"{path}, line {line.number}{': ' * bool(line.problem)}{line.problem}"))
            for turn in line.turns:
                print(printable(f"  weight {turn.weight:g}: {one_line(turn.text)}"))
                print(f"    ids      {' '.join(map(str, turn.ids))}")
                learned = [str(n) if is_learned else "-" for n, is_learned in zip(turn.ids, turn.learned, strict=True)]
                print(f"    learned  {' '.join(learned)}")
            if line.more_turns:
                print(f"  and {line.more_turns:,} more turns")
    if not usable:
        found = f"none of the first lines of {', '.join(options.data)} can be used; the reasons are above"
        raise DialogueError(found if seen else f"{', '.join(options.data)}: no line but empty ones")
    return DONE
