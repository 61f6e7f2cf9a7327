"""A server in this process, and what it is asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import uvicorn

from dialogpt import GenerationConfig
from dialogpt.ranking.rerankers import Reranker
from dialogpt.serve.access import Access
from dialogpt.serve.app import create_app
from dialogpt.serve.engine import Engine
from dialogpt.serve.protocol import TimedProtocol
from dialogpt.serve.schemas import Limits
from dialogpt.weights import open_checkpoint
from tests.helpers import WAIT_SECONDS

HELLO: Any = [{"role": "user", "content": "Hi! How are you?"}]


@dataclass
class Served:
    """A server in this process."""

    engine: Engine
    url: str
    listener: Any  # its socket
    client: openai.OpenAI  # one for all tests: those that were left open were told of in later tests

    def post(self, body: Any, path: str = "/v1/chat/completions", **settings: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=WAIT_SECONDS, **settings)


@contextmanager
def serve(
    engine: Engine,
    reranker: Reranker | None = None,
    *,
    access: Access | None = None,
    origins: Sequence[str] = (),
    isolate_cache: bool = False,
    inspects: bool = True,
    **granted: Any,
) -> Iterator[Served]:
    """Serve an engine from a thread of this process; what is granted are fields of `Limits`."""
    own = open_checkpoint("tiny").chat  # as `dialogpt serve` takes them
    limits = Limits(GenerationConfig.chat(own), engine.model.config.n_positions, 64, 30, 256, reranker, **granted)
    app = create_app(
        engine, "tiny", limits, access=access, origins=origins, isolate_cache=isolate_cache, inspects=inspects
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=TimedProtocol, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        listener = server.servers[0].sockets[0]
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with openai.OpenAI(base_url=f"{url}/v1", api_key="anything", max_retries=0, timeout=WAIT_SECONDS) as client:
            yield Served(engine, url, listener, client)
    finally:
        server.should_exit = server.force_exit = True
        thread.join(30)
        assert not thread.is_alive()
