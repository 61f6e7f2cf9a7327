"""Send a pending response as one JSON object or as a stream, without blocking the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import Request as HTTPRequest
from fastapi.responses import Response, StreamingResponse

from dialogpt.errors import DialogueError
from dialogpt.serve.engine import End, Token
from dialogpt.serve.errors import as_request_error
from dialogpt.serve.fields import Fields
from dialogpt.serve.pending import PendingResponse, unless_disconnected
from dialogpt.serve.responses import ResponseFormat, json_pieces
from dialogpt.serve.schemas import GenerationRequest, warnings_for
from dialogpt.serve.service import Service

DISCONNECTED = 499  # nginx's status for a client that closed the connection; nobody reads it
MAX_BLOCKING_SECONDS = 0.01  # for which writing one response may block the event loop
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def respond(
    service: Service, asked: GenerationRequest, request: HTTPRequest, form: ResponseFormat, body: Fields | None = None
) -> Response:
    """Answer one prompt in one format, whole or streamed as requested.

    Args:
        service: the served model.
        asked: what is requested.
        request: the HTTP request, to detect a disconnected client.
        form: the format of the response.
        body: the body, where it has another form than what is requested.

    Raises:
        RequestError: the request cannot be answered.
    """
    try:
        headers = warning_headers(warnings_for(asked, service.limits, body))
        pending = await PendingResponse.submitted(service, asked, request.state.client)
        if not asked.stream:
            return await _whole(pending, form, request, headers)
        try:
            first = await unless_disconnected(pending.next(), request)
        except BaseException:
            pending.cancel()
            raise
    except DialogueError as error:
        raise as_request_error(error) from None
    if first is None:
        pending.cancel()
        return Response(status_code=DISCONNECTED)
    return StreamingResponse(
        _stream(pending, form, first), media_type=form.media_type, headers={**STREAM_HEADERS, **headers}
    )


def warning_headers(warnings: list[str]) -> dict[str, str]:
    """Return the header that lists what had no effect in a request; empty if there are no warnings."""
    return {"X-Dialogpt-Warning": "; ".join(warnings)} if warnings else {}


async def json_response(content: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """Serialize a JSON response of any size, yielding to the event loop in between."""
    pieces, since = [], time.perf_counter()
    for piece in json_pieces(dict(content)):
        pieces.append(piece)
        if time.perf_counter() - since > MAX_BLOCKING_SECONDS:
            await asyncio.sleep(0)
            since = time.perf_counter()
    return Response("".join(pieces), media_type="application/json", headers=headers and dict(headers))


async def _whole(
    pending: PendingResponse, form: ResponseFormat, request: HTTPRequest, headers: Mapping[str, str]
) -> Response:
    """Wait for all choices, unless the client disconnects."""
    try:
        connected = await unless_disconnected(pending.collect(form), request)
    finally:
        pending.cancel()
    if not connected:
        return Response(status_code=DISCONNECTED)
    return await json_response(form.whole(pending.choices, pending.usage), headers)


async def _stream(
    pending: PendingResponse, form: ResponseFormat, first: tuple[int, str, Token | End]
) -> AsyncIterator[str]:
    """Yield every event as the format writes it."""
    try:
        for choice in range(len(pending.choices)):
            for chunk in form.opening(choice):
                yield form.frame(chunk)
        event = first
        while True:
            for chunk in form.chunks(*event):
                yield form.frame(chunk)
            if pending.done:
                break
            event = await pending.next()
        for chunk in form.closing(pending.choices, pending.usage):
            yield form.frame(chunk)
    except DialogueError as error:
        yield form.frame(form.error_chunk(str(error)))
    finally:
        pending.cancel()
    if form.end_of_stream:
        yield form.end_of_stream
