"""OpenAI's `/v1/chat/completions` and `/v1/completions`, whole or streamed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HTTPRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse

from dialogpt.errors import DialogueError
from dialogpt.model import GPT2Config
from dialogpt.serve.engine import End, Token
from dialogpt.serve.errors import as_request_error, error_object
from dialogpt.serve.pending import PendingResponse, unless_disconnected
from dialogpt.serve.responses import ChatFormat, Choice, CompletionFormat, ResponseFormat, VisibleText
from dialogpt.serve.schemas import ChatRequest, CompletionRequest, GenerationRequest, plan_of
from dialogpt.serve.service import Service

DISCONNECTED = 499  # nginx's status for a client that closed the connection; nobody reads it
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def add_routes(app: FastAPI, service: Service) -> None:
    """Add chat and text completions."""

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: HTTPRequest) -> Response:
        """Reply to a dialogue."""
        service.require_model(body.model)
        return await respond(service, body, request, ChatFormat(service.engine.tokenizer, service.name))

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: HTTPRequest) -> Response:
        """Continue texts, or score them."""
        service.require_model(body.model)
        try:
            prompts = body.several
            if len(prompts) == 1 and not body.echo and body.max_tokens != 0:
                form = CompletionFormat(service.engine.tokenizer, service.name)
                return await respond(service, prompts[0], request, form)
            if body.stream:
                raise DialogueError("several prompts, echo and max_tokens 0 are not streamed; omit stream")
            texts = await unless_disconnected(continue_texts(service, prompts), request)
        except DialogueError as error:
            raise as_request_error(error) from None
        return Response(status_code=DISCONNECTED) if texts is None else JSONResponse(texts)


async def respond(service: Service, body: GenerationRequest, request: HTTPRequest, form: ResponseFormat) -> Response:
    """Answer one prompt in one format, whole or streamed as the body asks."""
    try:
        pending = PendingResponse(service, body)
    except DialogueError as error:
        raise as_request_error(error) from None
    if not body.stream:
        return await _whole(pending, form, request)
    try:
        first = await unless_disconnected(pending.next(), request)
    except BaseException as error:
        pending.cancel()
        raise (as_request_error(error) if isinstance(error, DialogueError) else error) from None
    if first is None:
        pending.cancel()
        return Response(status_code=DISCONNECTED)
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    events = _stream(pending, form, first, include_usage)
    return StreamingResponse(events, media_type="text/event-stream", headers=STREAM_HEADERS)


async def _whole(pending: PendingResponse, form: ResponseFormat, request: HTTPRequest) -> Response:
    """Wait for all choices, unless the client disconnects."""
    try:
        connected = await unless_disconnected(pending.collect(form), request)
    except DialogueError as error:
        raise as_request_error(error) from None
    finally:
        pending.cancel()
    if not connected:
        return Response(status_code=DISCONNECTED)
    return JSONResponse(form.whole(pending.choices, pending.usage))


async def _stream(
    pending: PendingResponse, form: ResponseFormat, first: tuple[int, str, Token | End], include_usage: bool
) -> AsyncIterator[str]:
    """Yield every event as a server-sent event, and the usage at the end if it was asked for."""
    no_usage_yet = {"usage": None} if include_usage else {}
    try:
        for choice in range(len(pending.choices)):
            for chunk in form.opening(choice):
                yield _server_sent(chunk | no_usage_yet)
        event = first
        while True:
            for chunk in form.chunks(*event):
                yield _server_sent(chunk | no_usage_yet)
            if pending.done:
                break
            event = await pending.next()
        if include_usage:
            yield _server_sent(form.head(chunk=True) | {"choices": [], "usage": pending.usage})
    except DialogueError as error:
        yield _server_sent({"error": error_object(str(error), "server_error")})
    finally:
        pending.cancel()
    yield "data: [DONE]\n\n"


def _server_sent(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def continue_texts(service: Service, prompts: Sequence[CompletionRequest]) -> dict[str, Any]:
    """Continue several texts (none of them with `max_tokens` 0), each echoed before its replies if `echo` is set.

    Raises:
        DialogueError: one of them cannot be answered.
    """
    body, tokenizer, limits = prompts[0], service.engine.tokenizer, service.limits
    plan_of(body, limits, tokenizer.eos_id)  # also where nothing is generated
    prompt_ids = [prompt.prompt(tokenizer, limits.history_tokens, limits.positions).ids for prompt in prompts]
    scored: list[list[Token]] = [[] for _ in prompts]
    pending: list[PendingResponse] = []
    try:
        if body.echo and body.logprobs is not None:
            scored = await _score(service, prompt_ids, body.logprobs, keep=body.max_tokens != 0)
        if body.max_tokens != 0:
            for prompt in prompts:  # one by one, so that all are cancelled if one is refused
                pending.append(PendingResponse(service, prompt))
        form = CompletionFormat(tokenizer, service.name)
        response = form.head(chunk=False) | {"choices": []}
        for index, ids in enumerate(prompt_ids):
            echoed = tokenizer.decode(ids) if body.echo else ""
            if body.max_tokens == 0:
                choices, recorded = [Choice(VisibleText(tokenizer, ()), finish_reason="length")] * body.replies, {}
            else:
                own = CompletionFormat(tokenizer, service.name)
                await pending[index].collect(own)
                choices, recorded = pending[index].choices, own.recorded
            response["choices"] += form.continued(index, echoed, scored[index], choices, recorded)
    finally:
        for each in pending:
            each.cancel()
    generated = sum(choice.tokens for each in pending for choice in each.choices)
    prompt_tokens = sum(map(len, prompt_ids))
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": generated, "total_tokens": prompt_tokens + generated}
    return response | {"usage": usage}


async def _score(
    service: Service, prompt_ids: Sequence[Sequence[int]], alternatives: int, keep: bool
) -> list[list[Token]]:
    """Score the tokens of prompts; see `Engine.score_prompts`.

    Raises:
        DialogueError: the network cannot read one of them.
    """
    for ids in prompt_ids:
        require_scorable(ids, service.engine.model.config)
    return await asyncio.wrap_future(
        service.engine.score_prompts(prompt_ids, alternatives, service.limits.seconds, keep)
    )


def require_scorable(ids: Sequence[int], config: GPT2Config) -> None:
    """Raise a `DialogueError` unless the network can read a prompt."""
    if len(ids) > config.n_positions:
        raise DialogueError(
            f"the prompt has {len(ids):,} tokens and the network {config.n_positions:,} positions; shorten it"
        )
    if not all(0 <= token < config.vocab_size for token in ids):
        raise DialogueError(f"the prompt holds ids outside the vocabulary of {config.vocab_size:,} tokens")
