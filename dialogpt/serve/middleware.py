"""Checks that run before a request is parsed: host, API key, limits and body size; and the access log."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import zlib
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dialogpt.serve.access import Access, Client
from dialogpt.serve.errors import RequestError, as_response
from dialogpt.serve.metrics import Metrics

MAX_BODY_BYTES = 1 << 20  # about 200,000 tokens of dialogue; decompressed
BODY_TIMEOUT_SECONDS = 5
PROTECTED = ("/v1/", "/api/", "/inspect")  # paths that need a key
OPERATORS = ("/health", "/metrics", "/openapi.json")  # paths that need a key unless they are made public
PROBES = ("/health/live", "/health/ready")  # for orchestrators, which have no key; they return only a status
logger = logging.getLogger(__name__)
access_logger = logging.getLogger("dialogpt.serve.access")


class AccessMiddleware:
    """Refuses forbidden requests, counts and logs the others, and answers 500 if one fails."""

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics) -> None:
        self.app, self.access, self.metrics = app, access, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sending = _Sending(send, scope, self.metrics)
        scope = _normalized(scope)
        acquired = ""
        try:
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            client = self._client(scope, headers)
            sending.client = client
            if scope["method"] == "POST":
                self.access.limits.acquire(client.name)
                acquired = client.name
            body = await _body(receive, headers.get("content-encoding", ""))
            scope["state"] = {**scope.get("state", {}), "client": client}
            await self.app(scope, _replaying(body, receive), sending)
        except RequestError as error:
            await as_response(error, scope["path"])(scope, receive, sending)
        except Exception as error:  # the log has the details, the client the type only
            logger.exception("%s failed", scope["path"])
            if sending.status is not None:
                raise
            failed = RequestError(500, f"the server failed ({type(error).__name__}); its log says more")
            await as_response(failed, scope["path"])(scope, receive, sending)
        finally:
            if acquired:
                self.access.limits.release(acquired)
            sending.log()

    def _client(self, scope: Scope, headers: Mapping[str, str]) -> Client:
        """Identify the sender of a request.

        Raises:
            RequestError: access is denied.
        """
        host = _host_of(headers.get("host", ""))
        # DNS rebinding: a foreign name may resolve to this machine.
        if self.access.hosts is not None and host not in self.access.hosts:
            raise RequestError(
                403,
                f"this server only accepts requests from this machine, not for {str(host)[:80]!r}; start it with "
                "--allowed-host for a proxy's name, or with --host for other machines",
            )
        address, port = scope.get("client") or ("", 0)
        owner = None
        if self.access.keys is not None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            owner = self.access.keys.owner(given) if scheme.lower() == "bearer" else None
            if owner is None and self._needs_key(scope["path"]):
                raise RequestError(401, "the API key is missing or wrong; send it as a Bearer token", "invalid_api_key")
        return Client(owner or address, f"{address}:{port}", owner is not None)

    def _needs_key(self, path: str) -> bool:
        operators = path.startswith(OPERATORS) and path not in PROBES
        return path.startswith(PROTECTED) or (operators and not self.access.public_metrics)


class _Sending:
    """Sends a response with the common headers, and records its status for log and metrics."""

    def __init__(self, send: Send, scope: Scope, metrics: Metrics) -> None:
        self._send, self._metrics, self._start = send, metrics, time.perf_counter()
        self._method, self._path = scope["method"], scope["path"]
        self._address = (scope.get("client") or ("-",))[0]
        self.status: int | None = None
        self.client: Client | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message["headers"], (b"x-content-type-options", b"nosniff")]}
            if self._path.startswith(PROTECTED):
                self._metrics.requests.labels(str(self.status)).inc()
                if self.client is not None and self.client.has_key:
                    self._metrics.key_requests.labels(self.client.name).inc()
        await self._send(message)

    def log(self) -> None:
        """Log one line."""
        seconds = time.perf_counter() - self._start
        name = self.client.name if self.client else self._address  # the address, if the request was refused
        path = self._path[:200].encode("unicode_escape").decode()
        fields = {
            "client": name,
            "method": self._method,
            "path": path,
            "status": self.status,
            "seconds": round(seconds, 3),
        }
        access_logger.info(
            "%s %s %s %s %.3f s", name, self._method, path, self.status or "-", seconds, extra={"fields": fields}
        )


def _normalized(scope: Scope) -> Scope:
    """Return a request as routes expect it: HEAD as GET, whose body the protocol omits, and no doubled slashes."""
    path = re.sub("/{2,}", "/", scope["path"])
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    return {**scope, "path": path, "raw_path": path.encode(errors="surrogateescape"), "method": method}


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that replays a body that was read already, then continues with the original."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _host_of(header: str) -> str | None:
    """Return the name in a Host header, without port and brackets; None if it is not a name."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


async def _body(receive: Receive, encoding: str) -> bytes:
    """Read the whole body of a request, and decompress it.

    Raises:
        RequestError: it is too large, does not arrive in time, or is compressed, but not with gzip.
    """

    async def collect() -> bytes:
        chunks, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError(499, "the client disconnected")  # nobody reads it
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            more = message.get("more_body", False)
            if size > MAX_BODY_BYTES:
                raise _too_large()
        return b"".join(chunks)

    try:
        body = await asyncio.wait_for(collect(), BODY_TIMEOUT_SECONDS)
    except asyncio.TimeoutError:
        sentence = f"the body did not arrive within {BODY_TIMEOUT_SECONDS} seconds; send it again"
        raise RequestError(408, sentence, headers={"Connection": "close"}) from None
    if encoding.lower() in ("", "identity") or not body:
        return body
    if encoding.lower() not in ("gzip", "x-gzip"):
        raise RequestError(415, f"the body's Content-Encoding is {encoding[:50]!r}; send it uncompressed, or as gzip")
    return _decompressed(body)


def _decompressed(body: bytes) -> bytes:
    """Decompress gzip, up to the maximum size of a body."""
    decompressor = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        plain = decompressor.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error:
        raise RequestError(
            400, "the body is not gzip, as its Content-Encoding declares; send it uncompressed"
        ) from None
    if len(plain) > MAX_BODY_BYTES:
        raise _too_large()
    if not decompressor.eof:
        raise RequestError(400, "the body's gzip data is truncated; send it again")
    return plain


def _too_large() -> RequestError:
    sentence = f"the body is larger than {MAX_BODY_BYTES >> 10} KB; send less of the dialogue"
    return RequestError(413, sentence, headers={"Connection": "close"})
