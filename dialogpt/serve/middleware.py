"""What every request passes before anything is parsed: the server's names, the key, the size of the body, counting."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dialogpt.serve.errors import RequestError, as_response
from dialogpt.serve.metrics import Metrics

MAX_BODY_BYTES = 512 << 10  # of a body; 32,000 characters, each escaped as two surrogates, are 384 KB
BODY_TIMEOUT_SECONDS = 5  # for a body to come
logger = logging.getLogger(__name__)


class Gate:
    """Refuses what is too large or has no key, counts responses, and answers 500 where the application raised."""

    def __init__(self, app: ASGIApp, api_key: str | None, hosts: Sequence[str] | None, metrics: Metrics) -> None:
        self.app, self.api_key, self.hosts, self.metrics = app, api_key, hosts, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"]

        started = False

        async def counted(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if path.startswith("/v1/"):
                    self.metrics.requests.labels(str(message["status"])).inc()
            await send(message)

        try:
            self._admit(path, headers)
            body = await _body(receive)
        except RequestError as refused:
            await as_response(refused)(scope, receive, counted)
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return messages.pop() if messages else await receive()

        try:
            await self.app(scope, replayed, counted)
        except Exception as error:  # the log has the details, the client the type only
            logger.exception("%s failed", path)
            if started:
                raise
            failed = RequestError(500, f"the server failed ({type(error).__name__}); its log says more")
            await as_response(failed)(scope, receive, counted)

    def _admit(self, path: str, headers: Mapping[str, str]) -> None:
        """Raise a `RequestError` if the request may not be answered."""
        host = _host_of(headers.get("host", ""))
        if (
            self.hosts is not None and host not in self.hosts
        ):  # DNS rebinding: a foreign name that resolves to this machine
            raise RequestError(
                403,
                f"this server answers this machine alone, and is not known as {str(host)[:80]!r}; start it with "
                "--allowed-host for a proxy's name, or with --host for other machines",
            )
        scheme, _, given = headers.get("authorization", "").partition(" ")
        known = hmac.compare_digest(given.encode("latin-1"), (self.api_key or "").encode(errors="surrogateescape"))
        if self.api_key is not None and path.startswith("/v1/") and not (scheme.lower() == "bearer" and known):
            raise RequestError(401, "the API key is missing or wrong; send it as a Bearer token", "invalid_api_key")


def _host_of(header: str) -> str | None:
    """Return the name in a Host header, without port and brackets; None if it is not a name."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


async def _body(receive: Receive) -> bytes:
    """Read the whole body of a request.

    Raises:
        RequestError: it is too large, or does not arrive in time.
    """

    async def collect() -> bytes:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError(499, "the client went away")  # nobody reads it
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MAX_BODY_BYTES:
                raise RequestError(413, f"the body is larger than {MAX_BODY_BYTES >> 10} KB")
        return body

    try:
        return await asyncio.wait_for(collect(), BODY_TIMEOUT_SECONDS)
    except asyncio.TimeoutError:
        raise RequestError(408, f"the body did not come within {BODY_TIMEOUT_SECONDS} seconds; send it again") from None
