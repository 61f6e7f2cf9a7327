"""What every request passes: the names this server is called by, the key, the size of a body; and what is counted.

Each is answered here before anything is parsed.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dialogpt.serve.engine import Engine
from dialogpt.serve.errors import Refused, as_response

MOST_BYTES = 512 << 10  # of a body; 32,000 characters, each escaped as two surrogates, are 384 KB
MOST_SECONDS = 5  # for a body to come
logger = logging.getLogger(__name__)


class Metrics:
    """What ``/metrics`` shows."""

    def __init__(self, engine: Engine) -> None:
        """Begin at zero."""
        self.registry = CollectorRegistry()
        self.requests = Counter("dialogpt_requests", "Requests by status.", ["status"], registry=self.registry)
        self.prompt = Counter("dialogpt_prompt_tokens", "Tokens of prompts.", registry=self.registry)
        self.said = Counter("dialogpt_tokens", "Tokens that were said.", registry=self.registry)
        self.first = Histogram("dialogpt_first_token_seconds", "From request to first token.", registry=self.registry)
        running = Gauge("dialogpt_replies_running", "Replies that are being said.", registry=self.registry)
        running.set_function(lambda: engine.running)
        waiting = Gauge("dialogpt_requests_waiting", "Requests that wait for a place.", registry=self.registry)
        waiting.set_function(lambda: engine.waiting)


class Gate:
    """Keeps out what is too large or has no key, counts what is answered, and answers where a fault of ours did not."""

    def __init__(self, app: ASGIApp, api_key: str | None, hosts: Sequence[str] | None, metrics: Metrics) -> None:
        self.app, self.api_key, self.hosts, self.metrics = app, api_key, hosts, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"]

        begun = False

        async def counted(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                if path.startswith("/v1/"):
                    self.metrics.requests.labels(str(message["status"])).inc()
            await send(message)

        try:
            self._admit(path, headers)
            body = await _body(receive)
        except Refused as refused:
            await as_response(refused)(scope, receive, counted)
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return messages.pop() if messages else await receive()

        try:
            await self.app(scope, replayed, counted)
        except Exception as error:  # a fault of ours, which the log tells; the client gets no more than its kind
            logger.exception("%s failed", path)
            if begun:
                raise
            failed = Refused(500, f"the server failed ({type(error).__name__}); its log says more")
            await as_response(failed)(scope, receive, counted)

    def _admit(self, path: str, headers: Mapping[str, str]) -> None:
        """Raise `Refused` if it may not be answered."""
        host = _host_of(headers.get("host", ""))
        if self.hosts is not None and host not in self.hosts:  # a page elsewhere whose name leads here
            raise Refused(
                403,
                f"this server answers this machine alone, and is not known as {str(host)[:80]!r}; start it with "
                "--allowed-host for a proxy's name, or with --host for other machines",
            )
        scheme, _, given = headers.get("authorization", "").partition(" ")
        known = hmac.compare_digest(given.encode("latin-1"), (self.api_key or "").encode(errors="surrogateescape"))
        if self.api_key is not None and path.startswith("/v1/") and not (scheme.lower() == "bearer" and known):
            raise Refused(401, "the API key is missing or wrong; send it as a Bearer token", "invalid_api_key")


def _host_of(header: str) -> str | None:
    """The name in a Host header, without port and brackets; None if it is no name."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


async def _body(receive: Receive) -> bytes:
    """The whole body of a request.

    Raises:
        Refused: it is larger than may be, or does not come.
    """

    async def collect() -> bytes:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(499, "the client went away")  # nobody reads it
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MOST_BYTES:
                raise Refused(413, f"the body is larger than {MOST_BYTES >> 10} KB")
        return body

    try:
        return await asyncio.wait_for(collect(), MOST_SECONDS)
    except asyncio.TimeoutError:
        raise Refused(408, f"the body did not come within {MOST_SECONDS} seconds; send it again") from None
