"""A server as a process: its socket, its addresses, its signals, and several processes on one port.

What it answers is left to `dialogpt.serve`.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from dialogpt.errors import DONE, FAILED, INTERRUPTED, DialogueError

if TYPE_CHECKING:
    from dialogpt.serve.engine import Engine

ALL_ADDRESSES = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # and the one of this machine alone
MIN_LIFE_SECONDS = 5.0  # a worker that ends sooner would end again, and ends the server
logger = logging.getLogger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket, before anything is loaded.

    Raises:
        DialogueError: there is no such address here, or the port is taken.
    """
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


def urls(host: str, port: int) -> list[str]:
    """Return where a server can be reached: from this machine, then from others if it listens on all addresses."""
    names = [ALL_ADDRESSES.get(host, host), *(own_addresses() if host in ALL_ADDRESSES else [])]
    return [f"http://{f'[{name}]' if ':' in name else name}:{port}/" for name in names]


def own_addresses() -> list[str]:
    """Return this machine's IPv4 addresses that others can use, the one of its default route first."""
    found = []
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; tells which address packets would leave from
        found.append(probe.getsockname()[0])
    with suppress(OSError):
        found += [str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    return [name for name in dict.fromkeys(found) if not name.startswith(("127.", "0."))]


def serve(app: Any, engine: Engine, listener: socket.socket, grace: int, on_start: Callable[[], None]) -> int:
    """Serve an application until a signal ends it.

    Args:
        app: the application.
        engine: its engine, which is closed.
        listener: the socket.
        grace: seconds for running replies after a signal.
        on_start: called when requests are answered.

    Returns:
        The exit status: 0 after SIGTERM, 130 after Ctrl-C.
    """
    import uvicorn

    from dialogpt.serve.protocol import TimedProtocol

    received: list[int] = []

    def status() -> int:
        return INTERRUPTED if received[:1] == [signal.SIGINT] else DONE

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_start()

        def handle_exit(self, sig: int, frame: Any) -> None:
            """Let running replies finish or cut them, so that streams end properly; a second signal ends at once."""
            if received:
                os._exit(status())
            received.append(sig)  # at once: the next signal may come in the middle of this
            running = engine.running + engine.waiting
            threading.Thread(target=engine.close, args=(grace,), daemon=True).start()
            super().handle_exit(sig, frame)
            if sig == signal.SIGINT and running:
                notice = f"finishing {running} replies, within {grace} seconds; Ctrl-C again ends at once"
                with suppress(OSError, RuntimeError):  # nobody reads it any more, or it is being written to
                    print(f"dialogpt: {notice}", file=sys.stderr, flush=True)

    def exit_before_start(number: int, _frame: Any) -> None:
        """End at once before uvicorn handles signals; when it is done, it raises them once more."""
        if not received:
            os._exit(INTERRUPTED if number == signal.SIGINT else DONE)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, exit_before_start)
    settings = uvicorn.Config(
        app,
        http=TimedProtocol,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=grace + 5,
    )
    Server(settings).run(sockets=[listener])
    return status()


def run_workers(count: int, work: Callable[[int], int]) -> int:
    """Run a function in several forked processes until a signal ends them; one that dies is replaced.

    The memory of this process is shared with them. It must have no threads, and torch must have run on one thread only:
    a fork copies no threads, and a pool without them hangs.

    Args:
        count: how many processes.
        work: called in each with its index from 0 on; returns its exit status.

    Returns:
        0 after SIGTERM, 130 after Ctrl-C, 1 if a worker died right after its start.
    """
    alive_end, parent_end = os.pipe()  # readable once this process has ended, however it ended
    workers: dict[int, tuple[int, float]] = {}  # index and start of each process
    received: list[int] = []

    def forward(number: int, _frame: Any) -> None:
        received.append(number)
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)

    def start(index: int) -> None:
        pid = os.fork()
        if pid:
            workers[pid] = index, time.monotonic()
            return
        os.setpgid(0, 0)  # Ctrl-C in a terminal reaches the parent alone, which forwards it once
        os.close(parent_end)
        threading.Thread(target=_end_with_parent, args=(alive_end,), daemon=True).start()
        status = FAILED
        try:
            status = work(index)
        except Exception:
            logger.exception("worker %d failed", index)
        finally:
            os._exit(status)

    for index in range(count):
        start(index)
    failed = False
    while workers:
        pid, _ = os.wait()
        index, since = workers.pop(pid, (-1, 0.0))
        if received or failed or index < 0:
            continue
        if time.monotonic() - since < MIN_LIFE_SECONDS:
            logger.error("worker %d ended right after its start; the server ends", index)
            failed = True
            for other in workers:
                os.kill(other, signal.SIGTERM)
        else:
            logger.error("worker %d ended and is started again", index)
            start(index)
    return FAILED if failed else INTERRUPTED if received[:1] == [signal.SIGINT] else DONE


def _end_with_parent(alive_end: int) -> None:
    os.read(alive_end, 1)  # nothing is written: it returns when the parent has ended
    os.kill(os.getpid(), signal.SIGTERM)
