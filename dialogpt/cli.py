"""The command line: flags, pipes, exit statuses, and every error as one sentence on stderr.

It imports what a command needs when that command runs; `--help` and `--version` import no torch. Talking in a terminal
is left to `dialogpt.terminal`.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from dialogpt.errors import DialogueError
from dialogpt.generation_config import GenerationConfig, parse_value, positive
from dialogpt.interrupt import INTERRUPTED, flagged, leaving_at_once, raised
from dialogpt.screen import one_line, printable

if TYPE_CHECKING:
    from dialogpt.chat import Chat
    from weights import Checkpoint, Report

DONE, FAILED, USAGE, CLOSED = 0, 1, 2, 141  # 141 is 128 + SIGPIPE
DTYPES = ("float64", "float32", "bfloat16", "float16")
MOST_THREADS = 1024
HISTORY_LINES = 1000  # of typed lines that the terminal remembers


def console() -> NoReturn:
    """The installed command: `main`, and then the end of the process.

    Python's own way out takes torch apart module by module, half a second in which a Ctrl-C makes noise. Nothing is
    left to do there: what was printed is flushed, and files are closed by those who opened them.
    """
    signal.signal(signal.SIGINT, lambda _signal, _frame: os._exit(INTERRUPTED))
    status = main()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None is the process's own.

    Returns:
        0 done, 1 failed, 2 wrong usage, 130 interrupted, 141 stdout was closed.
    """
    if sys.stderr is None:  # closed by the caller; print would write errors to stdout then
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - open as long as the process
    if sys.stdout is None:
        return CLOSED
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    logging.basicConfig(format="dialogpt: %(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        with leaving_at_once():
            status = _run(argv)
            sys.stdout.flush()
            return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _abandon_stdout()
        return CLOSED
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        _abandon_stdout()
        print(f"dialogpt: error: {printable(one_line(sentence))}", file=sys.stderr)
        return FAILED


def _run(argv: Sequence[str] | None) -> int:
    try:
        options = build_parser().parse_args(argv)
        status: int = options.run(options)
    except SystemExit as stop:  # argparse, or `_usage`, has said why
        return stop.code if isinstance(stop.code, int) else USAGE
    return status


def _sentence(error: Exception) -> str | None:
    """What to tell a person of an error that is not a fault of this program; None for one that is."""
    if isinstance(error, DialogueError) or type(error).__name__ == "CheckpointError":
        return str(error)  # CheckpointError is known by name, as its module imports torch
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError":
        return "there is not enough memory; try a smaller model or --dtype bfloat16"
    if isinstance(error, OSError):
        return f"{error.filename or 'input or output'}: {error.strerror or error}"
    return None


def _abandon_stdout() -> None:
    """Send what is still buffered nowhere: flushing it into a closed pipe at exit would raise once more."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


# ---- flags ----


def build_parser() -> argparse.ArgumentParser:
    """All commands and their flags."""
    parser = argparse.ArgumentParser(
        prog="dialogpt", description="Talk with DialoGPT, convert its weights, and look inside a checkpoint."
    )
    parser.add_argument("--version", action="version", version=f"dialogpt {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    chat = commands.add_parser("chat", help="talk; in a pipe, one reply per input line")
    chat.add_argument("--no-history", action="store_true", help="do not remember typed lines in a file")
    _add_model_flags(chat)
    chat.set_defaults(run=run_chat, parser=chat)

    reply = commands.add_parser("reply", help="one reply to a dialogue given as arguments")
    reply.add_argument("turns", nargs="*", metavar="TURN", help="what was said, oldest first; the last is answered")
    reply.add_argument("--num-replies", type=int, metavar="N", help="several replies to the same dialogue")
    reply.add_argument(
        "--json", action="store_true", help='write JSON; without a TURN, read {"turns": [...]} from standard input'
    )
    _add_model_flags(reply)
    reply.set_defaults(run=run_reply, parser=reply)

    convert = commands.add_parser("convert", help="a published checkpoint to ours, or ours back")
    convert.add_argument("source", help="a checkpoint: folder, file or tiny")
    convert.add_argument("destination", type=Path, help="a new folder")
    convert.add_argument("--to", choices=("dialogpt", "hf"), default="dialogpt", help="hf: what transformers loads")
    convert.add_argument("--dtype", choices=DTYPES, help="of the written weights (default: as they are)")
    convert.set_defaults(run=run_convert, parser=convert)

    info = commands.add_parser("info", help="what a checkpoint is")
    info.add_argument("source", help="a checkpoint: folder, file or tiny")
    info.set_defaults(run=run_info, parser=info)
    return parser


def _version() -> str:
    try:
        return version("dialogpt")
    except PackageNotFoundError:
        return "(not installed)"


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of every command that talks."""
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="tiny", metavar="M", help="a checkpoint: folder, file or tiny (the default)")
    model.add_argument("--dtype", choices=DTYPES, default="float32", help="to compute in (default: float32)")
    model.add_argument("--device", default="cpu", help="cpu (the default), cuda, mps, ...")
    model.add_argument("--threads", type=_threads, metavar="N", help="processor threads (default: torch's choice)")
    model.add_argument("--history-tokens", type=_positive, metavar="N", help="tokens of dialogue shown to the model")
    model.add_argument("--seed", type=_seed, metavar="N", help="the same draws each time")
    group = parser.add_argument_group("generation", "on top of the chat preset: " + _preset())
    group.add_argument("--greedy", action="store_true", help="always the likeliest token; no processor")
    group.add_argument("--transformers-defaults", action="store_true", help="start from transformers' own settings")
    for setting in fields(GenerationConfig):
        if setting.name == "num_return_sequences":  # --num-replies, where a command has several
            continue
        flag, purpose = f"--{setting.name.replace('_', '-')}", setting.metadata["help"]
        if isinstance(setting.default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=purpose)
        else:
            group.add_argument(flag, type=_value_of(setting.name), metavar="X", help=purpose)


def _preset() -> str:
    """The chat preset, as flags that would set it."""
    chat, plain = GenerationConfig.chat(), GenerationConfig()
    changed = {setting.name: getattr(chat, setting.name) for setting in fields(chat)}
    flags = (
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name, value in changed.items()
        if value != getattr(plain, name)
    )
    return " ".join(flags)


def _usage(options: argparse.Namespace, problem: str) -> SystemExit:
    """Wrong usage, said in argparse's way: the usage line, then the problem."""
    options.parser.print_usage(sys.stderr)
    print(f"{options.parser.prog}: error: {problem}", file=sys.stderr)
    return SystemExit(USAGE)


def _value_of(name: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return parse_value(name, text)
        except DialogueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _positive(text: str) -> int:
    try:
        return positive("it", text)
    except DialogueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _threads(text: str) -> int:
    number = _positive(text)
    if number > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{number} threads are more than {MOST_THREADS}")
    return number


def _seed(text: str) -> int:
    if not text.isdecimal() or len(text) > 20 or int(text) >= 1 << 64:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a whole number from 0 to 2^64 - 1")
    return int(text)


def generation_from(options: argparse.Namespace) -> GenerationConfig:
    """The settings that the flags ask for: a preset, and what was given on top of it."""
    config = GenerationConfig() if options.transformers_defaults else GenerationConfig.chat()
    given = {
        setting.name: value
        for setting in fields(GenerationConfig)
        if (value := getattr(options, setting.name, None)) is not None
    }
    if options.greedy or given.get("temperature") == 0:
        if given.get("do_sample"):
            raise _usage(options, "--do-sample contradicts --greedy, and so does it --temperature 0")
        given = {name: value for name, value in given.items() if (name, value) != ("temperature", 0)}
        config = config.greedy()
    try:
        return replace(config, **given)
    except DialogueError as error:
        raise _usage(options, str(error)) from None


# ---- commands ----


def run_chat(options: argparse.Namespace) -> int:
    """Talk: in a terminal, or through a pipe."""
    lines = _stdin()
    chat = _open_chat(options)
    if lines.isatty() and sys.stdout.isatty():
        return _talk(chat, options)
    answer_lines(chat, lines, _print_reply)
    return DONE


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise DialogueError("standard input is closed; there is nothing to read")
    return sys.stdin.buffer


def _print_reply(text: str) -> None:
    """Print one reply as one line; the bytes are the model's own unless a terminal shows them."""
    line = one_line(text)
    print(printable(line) if sys.stdout.isatty() else line, flush=True)


def answer_lines(chat: Chat, lines: BinaryIO, write: Callable[[str], None]) -> None:
    """Answer every line read: a reply, or nothing for a blank line.

    Raises:
        DialogueError: a line is not UTF-8; its number is named.
    """
    for number, raw in enumerate(lines, 1):
        try:
            text = raw.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise DialogueError(
                f"line {number} of the input is not UTF-8 (byte 0x{raw[error.start]:02x} at place {error.start + 1}); "
                f"convert it to UTF-8 first"
            ) from None
        write(chat.reply(text) if text.strip() else "")


def run_reply(options: argparse.Namespace) -> int:
    """Answer a dialogue that was given whole."""
    config = generation_from(options)
    number = 1 if options.num_replies is None else options.num_replies
    try:
        replace(config, num_return_sequences=number)
    except DialogueError as error:
        raise _usage(options, str(error).replace("num_return_sequences", "--num-replies")) from None
    if not options.turns and not options.json:
        raise _usage(options, "name at least one TURN, or pass --json and the dialogue on standard input")
    turns = options.turns or _turns_from(_stdin().read())
    chat = _open_chat(options)
    replies = chat.candidates(turns, number)
    texts = [chat.tokenizer.decode(reply.ids) for reply in replies]
    if options.json:
        content = [
            {"text": text, "ids": reply.ids, "finish_reason": reply.finish_reason, "score": reply.score}
            for text, reply in zip(texts, replies, strict=True)
        ]
        print(json.dumps({"replies": content}, ensure_ascii=False))
    else:
        for text in texts:
            _print_reply(text)
    return DONE


def _turns_from(data: bytes) -> list[str]:
    """The turns of a dialogue in JSON."""
    try:
        content = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise DialogueError(
            f'standard input is not valid JSON in UTF-8 ({error}); expected {{"turns": [...]}}'
        ) from None
    turns = content.get("turns") if isinstance(content, dict) else None
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
        raise DialogueError('standard input holds no turns; expected {"turns": ["what was said", ...]}')
    return turns


def run_convert(options: argparse.Namespace) -> int:
    """Convert a checkpoint, and say what was done."""
    if options.to == "hf" and options.dtype is not None:
        raise _usage(options, "--dtype goes with our own format; convert with it first, then --to hf")
    from weights import convert, export

    with flagged() as interrupted:

        def stop_if_interrupted(_done: int, _total: int) -> None:
            if interrupted():
                raise KeyboardInterrupt

        try:
            if options.to == "hf":
                report = export(options.source, options.destination, progress=stop_if_interrupted)
            else:
                report = convert(options.source, options.destination, dtype=options.dtype, progress=stop_if_interrupted)
        except Exception:
            if interrupted():  # a second Ctrl-C can surface as any error of the library that it hit
                raise KeyboardInterrupt from None
            raise
    print(_table(_report_rows(report)))
    return DONE


def _report_rows(report: Report) -> list[tuple[str, str]]:
    return [
        ("source", str(report.source)),
        ("source sha256", report.sha256),
        ("written to", str(report.destination)),
        ("tensors", f"{report.tensors}, {report.parameters:,} parameters, {report.dtype}"),
        *_ignored_rows(report.ignored),
    ]


def _ignored_rows(ignored: dict[str, str]) -> list[tuple[str, str]]:
    """One row for each reason, with the names that it holds for."""
    reasons: dict[str, list[str]] = {}
    for name, reason in ignored.items():
        reasons.setdefault(reason, []).append(name)
    return [
        ("left out", f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}")
        for reason, names in reasons.items()
    ]


def run_info(options: argparse.Namespace) -> int:
    """Say what a checkpoint is; reads all of it."""
    from weights import open_checkpoint

    print(_table(_info_rows(open_checkpoint(options.source))))
    return DONE


def _info_rows(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    from weights.files import dtype_name, safetensors_metadata
    from weights.load import count_non_finite

    config = checkpoint.config
    rows = [
        ("path", str(checkpoint.path)),
        ("format", "dialogpt" if checkpoint.ours else "as published (transformers' names)"),
        ("weights", f"{', '.join(file.name for file in checkpoint.files)}, {dtype_name(checkpoint.dtype)}"),
        ("sha256", checkpoint.sha256()),
        ("parameters", f"{checkpoint.parameters:,} in {len(checkpoint.tensors)} tensors"),
        (
            "sizes",
            f"{config.n_layer} layers, {config.n_embd} wide, {config.n_head} heads, {config.n_positions} positions",
        ),
    ]
    if checkpoint.ours:
        notes = safetensors_metadata(checkpoint.files[0])
        rows.append(("converted from", f"{notes.get('origin')}, sha256 {notes.get('origin_sha256')}"))
    vocabulary = checkpoint.vocabulary
    tokens = "none" if vocabulary is None else f"{len(vocabulary.ids):,} tokens, from {vocabulary.origin}"
    rows.append(("vocabulary", f"{tokens}; {config.vocab_size:,} embedding rows"))
    if checkpoint.history_tokens is not None:
        rows.append(("history tokens", str(checkpoint.history_tokens)))
    rows += _ignored_rows(checkpoint.ignored)
    damaged = {t.name: count for t in checkpoint.tensors.values() if (count := count_non_finite(t.read()))}
    rows += [("NOT FINITE", f"{name}: {count:,} values are NaN or infinite") for name, count in damaged.items()]
    return rows


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {printable(one_line(value))}" for name, value in rows)


# ---- chat ----


def _open_chat(options: argparse.Namespace) -> Chat:
    config = generation_from(options)
    import torch

    from dialogpt.chat import Chat
    from weights import open_checkpoint

    if options.threads:
        torch.set_num_threads(options.threads)
    checkpoint = open_checkpoint(options.model)
    if options.max_new_tokens is None:
        config = config.fitted(checkpoint.config.n_positions)
    return Chat.load(
        checkpoint,
        dtype=options.dtype,
        device=options.device,
        generation=config,
        seed=options.seed,
        history_tokens=options.history_tokens,
    )


def _talk(chat: Chat, options: argparse.Namespace) -> int:
    """Talk in a terminal, with line editing and typed lines that are remembered."""
    import readline  # only here: without a terminal it writes to stdout

    from dialogpt.terminal import Terminal

    parameters = sum(parameter.numel() for parameter in chat.model.parameters())
    print(f"dialogpt {_version()}: {options.model}, {parameters / 1e6:.1f} million parameters, {options.dtype}.")
    print("/help lists the commands, Ctrl-D leaves.")
    remembered = None if options.no_history else _history_file()
    if remembered is not None:
        with _without_history_on_error():
            readline.read_history_file(remembered)
    try:
        with raised():
            return Terminal(chat, _read_line, _write, lambda line: print(line, file=sys.stderr, flush=True)).talk()
    finally:
        if remembered is not None:
            with _without_history_on_error():
                readline.set_history_length(HISTORY_LINES)
                readline.write_history_file(remembered)
                remembered.chmod(0o600)


def _read_line(prompt: str, prefill: str) -> str:
    import readline

    readline.set_startup_hook((lambda: readline.insert_text(prefill)) if prefill else None)
    try:
        return input(prompt)
    finally:
        readline.set_startup_hook(None)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _history_file() -> Path | None:
    """Where typed lines are remembered, readable by their owner only; None where that cannot be."""
    with _without_history_on_error():
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        path = state / "dialogpt" / "history"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        return path
    return None


@contextmanager
def _without_history_on_error() -> Iterator[None]:
    """Remembering lines is a comfort: what goes wrong with it is a notice, and the talk goes on."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: a home folder that is not known
        reason = getattr(error, "strerror", None) or error
        logging.getLogger(__name__).warning("typed lines are not remembered in a file: %s", reason)
