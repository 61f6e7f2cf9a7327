"""OpenAI's `/v1/chat/completions` and `/v1/completions`, whole or streamed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HTTPRequest
from fastapi.responses import Response

from dialogpt.errors import DialogueError
from dialogpt.model import GPT2Config
from dialogpt.serve.access import Client
from dialogpt.serve.engine import Token
from dialogpt.serve.errors import as_request_error
from dialogpt.serve.pending import PendingResponse, unless_disconnected
from dialogpt.serve.responses import ChatFormat, Choice, CompletionFormat, VisibleText
from dialogpt.serve.schemas import ChatRequest, CompletionRequest, GenerationRequest, plan_of, warnings_for
from dialogpt.serve.sending import DISCONNECTED, json_response, respond, warning_headers
from dialogpt.serve.service import Service


def add_routes(app: FastAPI, service: Service) -> None:
    """Add chat and text completions."""

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: HTTPRequest) -> Response:
        """Reply to a dialogue."""
        service.require_model(body.model)
        form = ChatFormat(service.engine.tokenizer, service.name, _include_usage(body))
        return await respond(service, body, request, form)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: HTTPRequest) -> Response:
        """Continue texts, or score them."""
        service.require_model(body.model)
        try:
            prompts = body.several
            if len(prompts) == 1 and not body.echo and body.max_tokens != 0:
                form = CompletionFormat(service.engine.tokenizer, service.name, _include_usage(body))
                return await respond(service, prompts[0], request, form)
            if body.stream:
                raise DialogueError("several prompts, echo and max_tokens 0 are not streamed; omit stream")
            headers = warning_headers(warnings_for(body, service.limits))
            texts = await unless_disconnected(continue_texts(service, prompts, request.state.client), request)
        except DialogueError as error:
            raise as_request_error(error) from None
        return Response(status_code=DISCONNECTED) if texts is None else await json_response(texts, headers)


def _include_usage(body: GenerationRequest) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage


async def continue_texts(service: Service, prompts: Sequence[CompletionRequest], client: Client) -> dict[str, Any]:
    """Continue several texts (none of them with `max_tokens` 0), each echoed before its replies if `echo` is set.

    Raises:
        DialogueError: one of them cannot be answered.
    """
    body, tokenizer, limits = prompts[0], service.engine.tokenizer, service.limits
    plan_of(body, limits, tokenizer.eos_id)  # checks the settings even if nothing is generated
    prompt_ids = [(await asyncio.to_thread(each.prompt, tokenizer, limits, limits.positions)).ids for each in prompts]
    scored: list[list[Token]] = [[] for _ in prompts]
    pending: list[PendingResponse] = []
    try:
        if body.echo and body.logprobs is not None:
            scored = await _score(service, prompt_ids, body, service.cache_owner(client, body.user))
        if body.max_tokens != 0:
            for prompt in prompts:  # submitted in turn, so that all are cancelled if one is refused
                pending.append(await PendingResponse.submitted(service, prompt, client))
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
    service: Service, prompt_ids: Sequence[Sequence[int]], body: CompletionRequest, cache_owner: str
) -> list[list[Token]]:
    """Score the tokens of prompts; see `Engine.score_prompts`.

    Raises:
        DialogueError: the network cannot read one of them.
    """
    for ids in prompt_ids:
        require_scorable(ids, service.engine.model.config)
    keep, seconds = body.max_tokens != 0, service.limits.seconds
    future = service.engine.score_prompts(prompt_ids, body.logprobs or 0, seconds, keep, cache_owner)
    return await asyncio.wrap_future(future)


def require_scorable(ids: Sequence[int], config: GPT2Config) -> None:
    """Raise a `DialogueError` unless the network can read a prompt."""
    if len(ids) > config.n_positions:
        raise DialogueError(
            f"the prompt has {len(ids):,} tokens and the network {config.n_positions:,} positions; shorten it"
        )
    if not all(0 <= token < config.vocab_size for token in ids):
        raise DialogueError(f"the prompt holds ids outside the vocabulary of {config.vocab_size:,} tokens")
