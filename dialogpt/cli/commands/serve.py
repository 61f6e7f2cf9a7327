"""`dialogpt serve`: its flags, and how a server is begun and ended.

What it answers is left to `dialogpt.serve.app`; this file imports no torch and no web library before the command runs.
"""

from __future__ import annotations

import argparse
import errno
import importlib.util
import logging
import os
import re
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from dialogpt.cli.opening import open_model
from dialogpt.cli.options import (
    add_choice_flags,
    add_generation_flags,
    add_network_flags,
    generation_from,
    positive_number,
    rerankers_from,
    wrong_usage,
)
from dialogpt.cli.signals import leaving_at_once
from dialogpt.errors import DONE, INTERRUPTED, DialogueError, install_hint
from dialogpt.generation_config import GenerationConfig

if TYPE_CHECKING:
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
        "--most-rows", type=positive_number, default=32, metavar="N", help="replies decoded together (default: 32)"
    )
    server.add_argument(
        "--most-waiting", type=positive_number, default=64, metavar="N", help="requests that may wait (default: 64)"
    )
    server.add_argument(
        "--prefix-memory",
        type=positive_number,
        default=512,
        metavar="MB",
        help="for what was read of conversations, so that their next turn reads its own words only (default: 512)",
    )
    server.add_argument(
        "--time-limit", type=positive_number, default=60, metavar="SECONDS", help="for a request (default: 60)"
    )
    server.add_argument(
        "--grace", type=positive_number, default=10, metavar="SECONDS", help="to finish in when stopped (default: 10)"
    )
    add_network_flags(parser)
    add_choice_flags(parser)
    add_generation_flags(parser)


def _port(text: str) -> int:
    if not text.isdecimal() or len(text) > 5 or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no port; expected a whole number from 0 to 65535")
    return int(text)


def _origin(text: str) -> str:
    if text != "*" and not re.fullmatch(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", text):
        raise argparse.ArgumentTypeError(f"{text[:50]!r} is no origin; expected https://host or http://host:port")
    return text


def run(options: argparse.Namespace) -> int:
    """Serve until a signal ends it; returns 0 after SIGTERM, and 130 after Ctrl-C."""
    config = generation_from(options)  # what is wrong with the flags is said before anything is loaded
    if config.num_beams > 1:
        raise wrong_usage(options, "--num-beams is for requests to ask; as the server's own it would allow no stream")
    rerankers_from(options)
    if options.api_key == "" or os.environ.get(KEY) == "":
        raise wrong_usage(options, f"the API key is empty; leave --api-key and {KEY} away to have none")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise DialogueError(f"a server needs {' and '.join(missing)}; install with: {install_hint('serve')}")
    listener = _listener(options.host, options.port)
    try:
        with leaving_at_once(signal.SIGTERM, DONE):  # until the server listens to signals itself
            engine, app = _loaded(options)
            return _serve(app, engine, listener, options)
    finally:
        listener.close()


def _listener(host: str, port: int) -> socket.socket:
    """A socket that listens, or a sentence; before anything is loaded."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
        # Connections inherit it. asyncio sets it only where a socket names its protocol, and without it each short
        # answer waited 40 ms for the client's acknowledgement of its head.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (socket.gaierror, UnicodeError):
        raise DialogueError(f"--host {host!r} is no name of this machine; 127.0.0.1 is, and 0.0.0.0 is all") from None
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while attempting")[0]  # Windows' numbers are not errno's
        flag = "--host" if error.errno == errno.EADDRNOTAVAIL else "--port"
        raise DialogueError(f"{host} port {port} cannot be listened on ({reason}); choose another {flag}") from None


def _loaded(options: argparse.Namespace) -> tuple[Engine, Any]:
    """The engine and the application, with the weights packed."""
    opened = open_model(options)
    from dialogpt.generation import generate
    from dialogpt.serve.app import create_app
    from dialogpt.serve.engine import Engine
    from dialogpt.serve.schemas import Limits

    checkpoint, model, tokenizer = opened.checkpoint, opened.model, opened.tokenizer
    positions = model.config.n_positions
    most = positions // 2  # tokens of a reply
    if options.max_new_tokens and options.max_new_tokens > most:
        raise DialogueError(
            f"--max-new-tokens is {options.max_new_tokens}; at most {most} are served, half of {positions} positions"
        )
    next(generate(model, [tokenizer.eos_id], GenerationConfig(max_new_tokens=1)), None)  # packs the weights
    limits = Limits(
        opened.generation,
        positions,
        new_tokens=most,
        seconds=options.time_limit,
        history_tokens=opened.history_tokens,
        reranker=opened.reranker,
        num_candidates=opened.num_candidates,
    )
    engine = Engine(
        model,
        tokenizer,
        most_rows=options.most_rows,
        most_waiting=options.most_waiting,
        kept_bytes=options.prefix_memory << 20,
    )
    name = checkpoint.shown_name
    key = options.api_key or os.environ.get(KEY)
    local = options.host in LOOPBACK
    if key is None and not local:
        logger.warning("anyone who reaches this machine can ask; --api-key keeps others out")
    hosts = (*LOOPBACK, *(options.allowed_host or ())) if local else None
    return engine, create_app(engine, name, limits, api_key=key, origins=options.cors or [], hosts=hosts)


def _serve(app: Any, engine: Engine, listener: socket.socket, options: argparse.Namespace) -> int:
    import uvicorn

    received: list[int] = []

    def status() -> int:
        return INTERRUPTED if received[:1] == [signal.SIGINT] else DONE

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(options.host, options.host)  # of all addresses, this one
            host = f"[{near}]" if ":" in near else near
            url = f"http://{host}:{listener.getsockname()[1]}/"
            print(f"dialogpt: {options.model} answers at {url} (programs: /v1); Ctrl-C ends it", file=sys.stderr)
            sys.stderr.flush()

        def handle_exit(self, sig: int, frame: Any) -> None:
            """Let what is being said be finished or cut, and its streams end as they should; once more ends at once."""
            if received:
                os._exit(status())
            received.append(sig)  # at once: the next signal may come in the middle of this
            going = engine.running + engine.waiting
            threading.Thread(target=engine.close, args=(options.grace,), daemon=True).start()
            super().handle_exit(sig, frame)
            if sig == signal.SIGINT and going:
                told = f"finishing {going} replies, within {options.grace} seconds; Ctrl-C again ends at once"
                with suppress(OSError, RuntimeError):  # nobody reads it any more, or it is being written to
                    print(f"dialogpt: {told}", file=sys.stderr, flush=True)

    def leave(number: int, _frame: Any) -> None:
        """Before uvicorn listens to signals, end at once; when it is done, it raises them once more."""
        if not received:
            os._exit(INTERRUPTED if number == signal.SIGINT else DONE)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=options.grace + 5
    )
    Server(settings).run(sockets=[listener])
    return status()
