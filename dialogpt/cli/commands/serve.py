"""`dialogpt serve`: its flags, and how a server is begun and ended.

What it answers is left to `dialogpt.serve.app`; this file imports no torch and no web library before the command runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialogpt.cli import logs
from dialogpt.cli.opening import Opened, open_model
from dialogpt.cli.options import (
    add_choice_flags,
    add_generation_flags,
    add_network_flags,
    generation_from,
    positive_number,
    rerankers_from,
    wrong_usage,
)
from dialogpt.cli.server_process import listen, run_workers, serve, urls
from dialogpt.cli.signals import interrupts_exiting
from dialogpt.errors import DONE, DialogueError, install_hint
from dialogpt.generation_config import GenerationConfig

if TYPE_CHECKING:
    from dialogpt.serve.access import Access
    from dialogpt.serve.engine import Engine

KEY = "DIALOGPT_API_KEY"  # where a key is not seen by everyone who lists processes
LOOPBACK = ("127.0.0.1", "localhost", "::1")
NEEDED = ("fastapi", "uvicorn", "prometheus_client")
logger = logging.getLogger(__name__)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its flags."""
    parser = subparsers.add_parser(
        "serve",
        usage="%(prog)s [FLAGS]  (--help lists them)",
        help="a page for people, and OpenAI's interface for programs",
        description="Answer many at once from one model: people by a page in the browser, programs by OpenAI's "
        "interface, with the base URL http://HOST:PORT/v1.",
        everyday=(
            *("--model", "--host", "--port", "--api-key", "--name", "--max-sequences", "--workers", "--time-limit"),
            *("--log-level", "--temperature", "--max-new-tokens", "--dtype", "--device"),
        ),
        examples=(
            "dialogpt serve                                      # http://127.0.0.1:8000",
            "dialogpt serve --model microsoft/DialoGPT-medium --dtype int8",
            "DIALOGPT_API_KEY=secret dialogpt serve --host 0.0.0.0",
        ),
    )
    parser.set_defaults(run=run, parser=parser)
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1, this machine alone)")
    server.add_argument("--port", type=_port, default=8000, metavar="N", help="default: 8000; 0 is any that is free")
    server.add_argument("--api-key", metavar="KEY", help=f"what clients must send (or {KEY} in the environment)")
    server.add_argument(
        "--cors",
        action="append",
        type=_origin,
        metavar="ORIGIN",
        help="let pages of this origin ask, https://host[:port], or * for all; may be given again",
    )
    server.add_argument(
        "--allowed-host",
        action="append",
        type=str.lower,
        metavar="NAME",
        help="on this machine alone: another name in requests, as a proxy's; may be given again",
    )
    server.add_argument(
        "--name", metavar="NAME", help="what clients call the model (default: the checkpoint's or run's)"
    )
    server.add_argument(
        "--system",
        choices=("drop", "first-turn"),
        default="drop",
        help="what a system message is, which the model was not trained to follow (default: drop)",
    )
    server.add_argument("--no-inspect", action="store_true", help="do not let clients look inside replies")
    server.add_argument("--strict", action="store_true", help="refuse what is otherwise ignored with a warning")
    _add_capacity_flags(parser.add_argument_group("capacity"))
    _add_operator_flags(parser.add_argument_group("operation"))
    add_network_flags(parser)
    add_choice_flags(parser)
    add_generation_flags(parser)


def _add_capacity_flags(group: argparse._ArgumentGroup) -> None:
    """Declare how much is done at a time, and for how long."""
    group.add_argument(
        "--max-sequences", type=positive_number, default=32, metavar="N", help="replies decoded together (default: 32)"
    )
    group.add_argument(
        "--max-waiting", type=positive_number, default=64, metavar="N", help="requests that may wait (default: 64)"
    )
    group.add_argument(
        "--workers",
        type=positive_number,
        default=1,
        metavar="N",
        help="processes on the one port, which share the weights (default: 1)",
    )
    group.add_argument(
        "--prefix-memory",
        type=positive_number,
        default=512,
        metavar="MB",
        help="for what was read of conversations, so that their next turn reads its own words only (default: 512)",
    )
    group.add_argument(
        "--time-limit", type=positive_number, default=60, metavar="SECONDS", help="for a request (default: 60)"
    )
    group.add_argument(
        "--grace", type=positive_number, default=10, metavar="SECONDS", help="to finish in when stopped (default: 10)"
    )


def _add_operator_flags(group: argparse._ArgumentGroup) -> None:
    """Declare keys, limits for each client, and logs."""
    group.add_argument("--api-keys", metavar="FILE", help="several keys: a name and a key on each line")
    group.add_argument("--rate-limit", type=positive_number, metavar="N", help="requests per minute of each client")
    group.add_argument(
        "--max-concurrent", type=positive_number, metavar="N", help="requests of each client at the same time"
    )
    group.add_argument(
        "--isolate-cache",
        action="store_true",
        help="share no cached prefixes between clients without keys, which could measure what others said",
    )
    group.add_argument(
        "--public-metrics", action="store_true", help="show /health, /metrics and /openapi.json without a key"
    )
    group.add_argument("--log-level", choices=logs.LEVELS, default="info", help="info logs requests (default)")
    group.add_argument("--log-format", choices=logs.FORMATS, default="text", help="default: text")


def _port(text: str) -> int:
    if not text.isdecimal() or len(text) > 5 or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no port; expected an integer from 0 to 65535")
    return int(text)


def _origin(text: str) -> str:
    if text != "*" and not re.fullmatch(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", text):
        raise argparse.ArgumentTypeError(f"{text[:50]!r} is no origin; expected https://host or http://host:port")
    return text


def run(options: argparse.Namespace) -> int:
    """Serve until a signal ends it; returns 0 after SIGTERM, and 130 after Ctrl-C."""
    config = generation_from(options)  # wrong flags are reported before anything is loaded
    if config.num_beams > 1:
        raise wrong_usage(options, "--num-beams is for requests to ask; as the server's own it would allow no stream")
    rerankers_from(options)
    if options.api_keys and (options.api_key or os.environ.get(KEY)):
        raise wrong_usage(options, f"--api-keys names all keys; omit --api-key and {KEY}")
    if options.api_key == "" or os.environ.get(KEY) == "":
        raise wrong_usage(options, f"the API key is empty; omit --api-key and {KEY} to have none")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise DialogueError(f"a server needs {' and '.join(missing)}; install with: {install_hint('serve')}")
    if options.workers > 1 and not hasattr(os, "fork"):
        raise DialogueError("--workers needs a system that can fork; start one server for each port instead")
    listener = listen(options.host, options.port)
    logs.configure(options.log_level, options.log_format)
    try:
        with interrupts_exiting(signal.SIGTERM, DONE):  # until the server handles signals itself
            return _run_loaded(options, listener)
    finally:
        listener.close()


def _run_loaded(options: argparse.Namespace, listener: socket.socket) -> int:
    """Load the model, then serve it from this process or from several."""
    if options.workers > 1:  # see `run_workers`
        threads, options.threads = options.threads or 1, 1
    access = access_from(options)
    logger.info("loading %s", options.model)
    make_app = _prepared(options, open_model(options), access)

    def work(index: int) -> int:
        if options.workers > 1:
            import torch

            torch.set_num_threads(threads)
        engine, app = make_app()
        return serve(app, engine, listener, options.grace, lambda: _announce(options, listener) if index == 0 else None)

    return work(0) if options.workers == 1 else run_workers(options.workers, work)


def _prepared(options: argparse.Namespace, opened: Opened, access: Access) -> Callable[[], tuple[Engine, Any]]:
    """Pack the weights, and return what makes an engine and its application, in a process of its own or in this one."""
    from dialogpt.generation import generate
    from dialogpt.serve.app import create_app
    from dialogpt.serve.engine import Engine
    from dialogpt.serve.memory import copy_weights
    from dialogpt.serve.schemas import Limits

    model, tokenizer = opened.model, opened.tokenizer
    positions = model.config.n_positions
    new_tokens = positions // 2
    if options.max_new_tokens and options.max_new_tokens > new_tokens:
        raise DialogueError(
            f"--max-new-tokens is {options.max_new_tokens}; at most {new_tokens} are served, "
            f"half of {positions} positions"
        )
    next(generate(model, [tokenizer.eos_id], GenerationConfig(max_new_tokens=1)), None)  # packs the weights
    copy_weights(model)
    limits = Limits(
        opened.generation,
        positions,
        new_tokens=new_tokens,
        seconds=options.time_limit,
        history_tokens=opened.history_tokens,
        reranker=opened.reranker,
        num_candidates=opened.num_candidates,
        strict=options.strict,
        keep_system=options.system == "first-turn",
    )
    name = options.name or opened.checkpoint.shown_name

    def make_app() -> tuple[Engine, Any]:
        engine = Engine(
            model,
            tokenizer,
            max_sequences=options.max_sequences,
            max_waiting=options.max_waiting,
            prefix_cache_bytes=options.prefix_memory << 20,
        )
        app = create_app(
            engine,
            name,
            limits,
            access=access,
            origins=options.cors or [],
            isolate_cache=options.isolate_cache,
            inspects=not options.no_inspect,
        )
        return engine, app

    return make_app


def access_from(options: argparse.Namespace) -> Access:
    """Return who may connect.

    Raises:
        DialogueError: the file of keys cannot be used.
    """
    from dialogpt.serve.access import Access, ClientLimits, Keys, read_keys

    key = options.api_key or os.environ.get(KEY)
    keys = read_keys(Path(options.api_keys)) if options.api_keys else {"default": key} if key else {}
    local = options.host in LOOPBACK
    if not keys and not local:
        logger.warning("anyone who reaches this machine can ask; --api-key keeps others out")
    return Access(
        Keys(keys) if keys else None,
        (*LOOPBACK, *(options.allowed_host or ())) if local else None,
        options.public_metrics,
        ClientLimits(options.rate_limit, options.max_concurrent),
    )


def _announce(options: argparse.Namespace, listener: socket.socket) -> None:
    """Tell where the server answers."""
    here, *elsewhere = urls(options.host, listener.getsockname()[1])
    others = f"; other machines reach it at {', '.join(elsewhere)}" if elsewhere else ""
    sentence = f"{options.model} answers at {here} (programs: /v1); Ctrl-C ends it{others}"
    if options.log_format == "json":
        sentence = json.dumps({"level": "info", "message": sentence, "url": here})
    else:
        sentence = f"dialogpt: {sentence}"
    print(sentence, file=sys.stderr, flush=True)
