"""What each command does: chat, reply, convert, info, cache.

Flags are left to `dialogpt.flags`, exit statuses and errors to `dialogpt.cli`. Each function imports what it needs, so
that a command waits for nothing that it does not use.
"""

from __future__ import annotations

import argparse
import codecs
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO

from dialogpt.errors import DONE, DialogueError
from dialogpt.flags import generation_from, installed_version, rerankers_from, wrong_usage
from dialogpt.generation_config import DEFAULT_CANDIDATES, GenerationConfig
from dialogpt.interrupt import flagged, raised
from dialogpt.opening import open_chat
from dialogpt.screen import one_line, printable

if TYPE_CHECKING:
    from dialogpt.chat import Chat
    from dialogpt.generate import Reply
    from dialogpt.weights import Checkpoint, Report


ALL = "everything in the cache"  # what --clear means without a name; known by identity, as "" may be a shell's slip


def chat(options: argparse.Namespace) -> int:
    """Talk: in a terminal, or through a pipe."""
    lines = stdin_bytes()
    _check_number(options, generation_from(options), 1)
    opened = open_chat(options)
    if not (lines.isatty() and sys.stdout.isatty()):
        answer_lines(opened, lines, _print_reply)
        return DONE
    import torch

    from dialogpt.keyboard import talk
    from dialogpt.model import GPT2

    with torch.device("meta"):  # packed weights are no parameters
        parameters = sum(parameter.numel() for parameter in GPT2(opened.model.config).parameters())
    title = (
        f"dialogpt {installed_version()}: {options.model}, {parameters / 1e6:.1f} million parameters, {options.dtype}"
        f"{'' if options.draft_model is None else f'; {options.draft_model} guesses ahead'}."
    )
    return talk(opened, title, remember=not options.no_history)


def stdin_bytes() -> BinaryIO:
    """Standard input, as it comes."""
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
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)  # PowerShell begins what it pipes with it
        try:
            text = raw.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise DialogueError(
                f"line {number} of the input is not UTF-8 (byte 0x{raw[error.start]:02x} at place {error.start + 1}); "
                f"convert it to UTF-8 first"
            ) from None
        write(chat.reply(text) if text.strip() else "")


def reply(options: argparse.Namespace) -> int:
    """Answer a dialogue that was given whole, or a file of them."""
    config = generation_from(options)
    number = 1 if options.num_replies is None else options.num_replies
    _check_number(options, config, number)
    if options.batch is not None:
        if options.turns or options.json:
            raise wrong_usage(options, "--batch answers a file; leave TURN and --json away")
        if options.draft_model is not None:
            raise wrong_usage(options, "--draft-model is for talking and single replies; leave it away with --batch")
        from dialogpt.batch import answer_file

        return answer_file(lambda: open_chat(options), options, number)
    if options.output is not None:
        raise wrong_usage(options, "--output goes with --batch")
    if not options.turns and not options.json:
        raise wrong_usage(options, "name at least one TURN, or pass --json and the dialogue on standard input")
    turns = options.turns or _turns_from(stdin_bytes().read())
    opened = open_chat(options)
    found = opened.candidates(turns, number)
    if options.json:
        print(json.dumps({"replies": described(opened, found)}, ensure_ascii=False))
    else:
        for reply in found:
            _print_reply(opened.tokenizer.decode(reply.ids))
    return DONE


def _check_number(options: argparse.Namespace, config: GenerationConfig, number: int) -> None:
    """Refuse a number of replies, or of candidates for them, that the settings cannot give."""
    judged = bool(rerankers_from(options))
    if options.draft_model is not None and (judged or number > 1 or config.num_beams > 1):
        raise wrong_usage(
            options, "--draft-model is for one reply at a time: not for --rerank, --num-replies or --num-beams"
        )
    asked = max(number, options.num_candidates or DEFAULT_CANDIDATES) if judged else number
    try:
        replace(config, num_return_sequences=asked)
    except DialogueError as error:
        flag = "--num-candidates" if judged else "--num-replies"
        raise wrong_usage(options, str(error).replace("num_return_sequences", flag)) from None


def described(chat: Chat, replies: Sequence[Reply]) -> list[dict[str, object]]:
    """Replies as JSON has them."""
    return [
        {
            "text": chat.tokenizer.decode(reply.ids),
            "ids": reply.ids,
            "finish_reason": reply.finish_reason,
            "score": reply.score,
            **({} if reply.rank is None else {"rank": reply.rank}),
        }
        for reply in replies
    ]


def _turns_from(data: bytes) -> list[str]:
    """The turns of a dialogue in JSON."""
    try:
        content = json.loads(data.removeprefix(codecs.BOM_UTF8).decode())
    except (ValueError, RecursionError) as error:
        raise DialogueError(
            f'standard input is not valid JSON in UTF-8 ({error}); expected {{"turns": [...]}}'
        ) from None
    turns = content.get("turns") if isinstance(content, dict) else None
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
        raise DialogueError('standard input holds no turns; expected {"turns": ["what was said", ...]}')
    return turns


def convert(options: argparse.Namespace) -> int:
    """Convert a checkpoint, and say what was done."""
    if options.to == "hf" and options.dtype is not None:
        raise wrong_usage(options, "--dtype goes with our own format; convert with it first, then --to hf")
    from dialogpt import weights
    from dialogpt.weights.files import require_new

    require_new(options.destination)  # before anything is downloaded
    checkpoint = weights.open_checkpoint(options.source, n_head=options.n_head)
    with flagged() as interrupted:

        def show_progress(done: int, total: int) -> None:
            if interrupted():
                raise KeyboardInterrupt
            if sys.stderr.isatty():
                print(f"\r{done + 1} of {total} tensors", end="" if done + 1 < total else "\n", file=sys.stderr)

        try:
            if options.to == "hf":
                report = weights.export(checkpoint, options.destination, progress=show_progress)
            else:
                report = weights.convert(checkpoint, options.destination, dtype=options.dtype, progress=show_progress)
        except Exception:
            if interrupted():  # a second Ctrl-C can surface as any error of the library that it hit
                raise KeyboardInterrupt from None
            raise
    rows = _report_rows(report)
    if checkpoint.name is not None:
        rows.insert(1, ("downloaded as", f"{checkpoint.origin().name}, sha256 {checkpoint.origin().sha256}"))
    print(_table(rows), flush=True)
    if not options.verify:
        return DONE
    try:
        with raised():  # not at once: what is compared may lie in a temporary folder
            return _verify(options, checkpoint)
    except KeyboardInterrupt:
        print(f"dialogpt: {options.destination} is written, and not verified", file=sys.stderr)
        raise


def _verify(options: argparse.Namespace, source: Checkpoint) -> int:
    """Compare what was written with what it was made from, and print the table."""
    from dialogpt import verify
    from dialogpt.weights import hub, open_checkpoint

    results = []
    if source.heads_assumed:
        heads = f"{source.config.n_head} of {source.config.head_dim} are assumed; no file says, and no comparison sees"
        results = [verify.Result("heads", heads, None)]
    wrong = "computes something else than what it was made from"
    if not verify.installed():
        results += verify.check_alone(open_checkpoint(options.destination), source)
        wrong = "is no better than guessing: its weights are scrambled, or untrained, or speak another language"
        print("transformers is not installed; this is what shows without it (.[test] installs it):")
    elif options.to == "hf":
        results += verify.compare(source, options.destination, "float32", 0, layers=False)
    else:
        written = open_checkpoint(options.destination)
        downloaded = None if source.name is None else hub.snapshot(source.origin().name)  # of the same commit
        original = source if downloaded is None else open_checkpoint(downloaded, n_head=options.n_head)
        with verify.readable(original) as folder:
            rounded = None if options.dtype is None else written.dtype
            results += verify.compare(written, folder, "float32", 0, layers=False, rounded=rounded)
    print(verify.table(results))
    if not verify.passed(results):
        raise DialogueError(f"{options.destination} {wrong}; do not use it")
    return DONE


def cache(options: argparse.Namespace) -> int:
    """List the converted checkpoints that are kept, or remove them."""
    from dialogpt.weights import hub

    named = None if options.clear is ALL else options.clear
    entries = hub.cached() if options.clear is None else hub.clear(named)
    rows = [
        (entry.name, f"{', '.join(entry.revisions) or 'no revision'}, {entry.nbytes / 1e6:.1f} MB, {entry.path}")
        for entry in entries
    ]
    if rows:
        print(_table(rows))
    total = f"{sum(entry.nbytes for entry in entries) / 1e6:.1f} MB"
    if options.clear is None:
        print(f"kept in {hub.cache_folder()}: {len(entries)}, {total}")
    else:
        print(f"removed: {len(entries)}, {total}; what was downloaded for them stays with huggingface_hub (hf cache)")
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


def info(options: argparse.Namespace) -> int:
    """Say what a checkpoint is; reads all of it."""
    from dialogpt.weights import open_checkpoint

    print(_table(_info_rows(open_checkpoint(options.source, n_head=options.n_head))))
    return DONE


def _info_rows(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    from dialogpt.weights.load import count_non_finite
    from dialogpt.weights.stored import dtype_name

    config = checkpoint.config
    rows = [
        ("path", str(checkpoint.path)),
        ("format", "dialogpt" if checkpoint.ours else "as published (transformers' names)"),
        ("weights", f"{', '.join(file.name for file in checkpoint.files)}, {dtype_name(checkpoint.dtype)}"),
        ("sha256", checkpoint.sha256()),
        ("parameters", f"{checkpoint.parameters:,} in {len(checkpoint.stored)} tensors"),
        (
            "sizes",
            f"{config.n_layer} layers, {config.n_embd} wide, {config.n_head} heads, {config.n_positions} positions",
        ),
    ]
    if checkpoint.ours:
        origin = checkpoint.origin()
        rows.append(("origin", origin.name + (f", sha256 {origin.sha256}" if origin.sha256 else "")))
    vocabulary = checkpoint.vocabulary
    tokens = "none" if vocabulary is None else f"{len(vocabulary.ids):,} tokens, from {vocabulary.origin}"
    rows.append(("vocabulary", f"{tokens}; {config.vocab_size:,} embedding rows"))
    if vocabulary is not None:
        rows.append(("end of a turn", f"{vocabulary.eos_token}, token {vocabulary.eos_id}"))
    if checkpoint.history_tokens is not None:
        rows.append(("history tokens", str(checkpoint.history_tokens)))
    if checkpoint.chat:
        rows.append(("chat settings", ", ".join(f"{name} {value}" for name, value in checkpoint.chat.items())))
    if checkpoint.about is not None:
        rows.append(("about", checkpoint.about))
    if checkpoint.ranking_head is not None:
        rows.append(("ranking head", "scores replies (DialogRPT), and was not trained to write them"))
    rows += _ignored_rows(checkpoint.ignored)
    damaged = {t.name: count for t in checkpoint.stored.values() if (count := count_non_finite(t.read()))}
    rows += [("NOT FINITE", f"{name}: {count:,} values are NaN or infinite") for name, count in damaged.items()]
    return rows


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {printable(one_line(value))}" for name, value in rows)
