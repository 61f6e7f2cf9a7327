"""`/inspect`: look inside a reply; see `dialogpt.inspect`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from concurrent.futures import Future

from fastapi import FastAPI
from fastapi import Request as HTTPRequest
from fastapi.responses import HTMLResponse, Response

from dialogpt.decoding.stop import Stop
from dialogpt.errors import DialogueError
from dialogpt.history import BOT
from dialogpt.inspect import Inspection, inspect_reply, render_page
from dialogpt.serve.errors import as_request_error
from dialogpt.serve.pending import unless_disconnected
from dialogpt.serve.schemas import ChatRequest, plan_of, warnings_for
from dialogpt.serve.sending import DISCONNECTED, json_response, warning_headers
from dialogpt.serve.service import Service


class InspectRequest(ChatRequest):
    """The body: a dialogue that ends with the bot's reply, and the settings it was sampled with."""

    ended: bool = True


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the endpoint."""

    @app.post("/inspect")
    async def inspect(body: InspectRequest, request: HTTPRequest) -> Response:
        """Look inside the last reply of a dialogue: as a page for people if `Accept` names HTML, else as JSON."""
        service.require_model(body.model)
        try:
            headers = warning_headers(warnings_for(body, service.limits))
            work = asyncio.wrap_future(inspected(service, body))
            as_page = "text/html" in request.headers.get("accept", "")
            found = await unless_disconnected(_awaited(work), request)
            if found is None:
                return Response(status_code=DISCONNECTED)
            if not as_page:
                return await json_response(found, headers)
            return HTMLResponse(await asyncio.to_thread(render_page, found), headers=headers)
        except DialogueError as error:
            raise as_request_error(error) from None


def inspected(service: Service, body: InspectRequest) -> Future[Inspection]:
    """Look inside a reply in the engine's thread for unbatched requests.

    Raises:
        DialogueError: the dialogue does not end with a reply, or the queue is full.
    """
    limits, engine = service.limits, service.engine
    if body.messages[-1].role != BOT:
        raise DialogueError(
            f"the last message's role is {body.messages[-1].role[:20]!r}; expected the reply, by {BOT!r}"
        )
    config = plan_of(body, limits, engine.tokenizer.eos_id).config

    def work(stop: Stop) -> Inspection:
        *turns, reply = body.turns(engine.tokenizer, limits)
        history_tokens = body.history_tokens or limits.history_tokens
        return inspect_reply(
            engine.model,
            engine.tokenizer,
            config,
            turns,
            reply,
            history_tokens=history_tokens,
            ended=body.ended,
            name=service.name,
            stop=stop,
        )

    return engine.run_unbatched(work, limits.seconds)


async def _awaited(work: Awaitable[Inspection]) -> Inspection:
    return await work
