"""OpenAI's interface over HTTP: chat and text completions, streamed or whole; models, health, metrics; and the page.

What a body means is left to `dialogpt.serve.schemas`, decoding to `dialogpt.serve.engine`, how answers are written to
`dialogpt.serve.responses`, and who is let in to `dialogpt.serve.middleware`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi import Request as HTTPRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from dialogpt.errors import DialogueError
from dialogpt.model import GPT2Config
from dialogpt.replies import Dialogue, Generators
from dialogpt.serve.engine import End, Engine, Event, Job, Token
from dialogpt.serve.errors import Refused, as_refused, error_object, on_http_error, on_not_valid, on_refused
from dialogpt.serve.middleware import Gate, Metrics
from dialogpt.serve.responses import Chat, Completion, Form, Reply, ShownText
from dialogpt.serve.schemas import ChatRequest, CompletionRequest, Limits, Request, plan_of

Result = TypeVar("Result")


class Answer:
    """One request on its way: its events, and what they have made of its replies."""

    def __init__(self, engine: Engine, request: Request, limits: Limits, metrics: Metrics) -> None:
        """Check the request, and hand it to the engine.

        Raises:
            DialogueError: it cannot be answered.
        """
        tokenizer = engine.tokenizer
        plan = plan_of(request, limits, tokenizer.eos_id)
        window = plan.config.prompt_room(limits.positions)
        self.prompt = request.prompt(tokenizer, limits.history_tokens, window)
        self.tokenizer, self.metrics, self.engine = tokenizer, metrics, engine
        self.start = time.perf_counter()
        self.replies = [Reply(ShownText(tokenizer, request.stops)) for _ in range(request.replies)]
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody listens
                loop.call_soon_threadsafe(self.events.put_nowait, event)

        turns = request.turns(tokenizer) if request.rerank else []
        dialogue = Dialogue(self.prompt, turns, Generators(engine.model.device, request.seed))
        self.job = Job(dialogue, plan, tell, limits.seconds, request.alternatives)
        engine.submit(self.job)
        metrics.prompt.inc(len(self.prompt.ids))

    async def next(self) -> tuple[int, str, Token | End]:
        """The next event: of which reply, the text that it adds, and itself.

        Raises:
            DialogueError: the engine says that there will be none.
        """
        event = await self.events.get()
        if isinstance(event, DialogueError):
            raise event
        reply = self.replies[event.choice]
        if isinstance(event, Token):
            if not any(each.tokens for each in self.replies):
                self.metrics.first.observe(time.perf_counter() - self.start)
            self.metrics.said.inc()
            reply.tokens += 1
            text = reply.text.feed(event.id)
        else:
            reply.finish_reason = event.finish_reason
            text = reply.text.finish()
        reply.whole += text
        return event.choice, text, event

    @property
    def done(self) -> bool:
        """Whether all replies are over."""
        return all(reply.finish_reason is not None for reply in self.replies)

    @property
    def usage(self) -> dict[str, int]:
        """OpenAI's count of tokens; and what of the dialogue found no room, which a chat in the terminal says, too."""
        said = sum(reply.tokens for reply in self.replies)
        prompt = len(self.prompt.ids)
        left_out = {"turns_left_out": self.prompt.first_turn, "tokens_cut": self.prompt.cut}
        return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said, **left_out}

    def leave(self) -> None:
        """Nobody waits for the rest."""
        self.engine.cancel(self.job)


def create_app(
    engine: Engine,
    name: str,
    limits: Limits,
    *,
    api_key: str | None = None,
    origins: Sequence[str] = (),
    hosts: Sequence[str] | None = None,
) -> FastAPI:
    """The application.

    Args:
        engine: decodes; whoever made it closes it.
        name: what clients call the model.
        limits: what is granted.
        api_key: without it in the ``Authorization`` header, nothing under ``/v1`` is answered.
        origins: of pages elsewhere that may ask.
        hosts: names by which the server may be called; None is any.
    """
    about = "A GPT-2 that talks, behind OpenAI's interface."
    app = FastAPI(title="dialogpt", description=about, docs_url=None, redoc_url=None)  # they load from elsewhere
    metrics = Metrics(engine)
    app.add_middleware(Gate, api_key=api_key, hosts=hosts, metrics=metrics)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    app.add_exception_handler(Refused, on_refused)
    app.add_exception_handler(RequestValidationError, on_not_valid)
    app.add_exception_handler(HTTPException, on_http_error)
    model = {
        "id": name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "dialogpt",
        "context_length": limits.positions,
        "max_completion_tokens": limits.new_tokens,
        "history_tokens": limits.history_tokens,
        "defaults": {
            "temperature": limits.settings.temperature if limits.settings.do_sample else 0,
            "top_k": limits.settings.top_k,
            "top_p": limits.settings.top_p,
            "repetition_penalty": limits.settings.repetition_penalty,
            "max_tokens": limits.settings.max_new_tokens,
        },
    }
    page, policy = _page()

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def show_page() -> Response:
        """The page for people."""
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": policy})

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: HTTPRequest) -> Response:
        """Reply to a dialogue."""
        return await _answered(body, request, Chat(engine.tokenizer, name))

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: HTTPRequest) -> Response:
        """Continue texts, or score them."""
        try:
            prompts = body.several
        except DialogueError as error:
            raise as_refused(error) from None
        if len(prompts) == 1 and not body.echo and body.max_tokens != 0:
            return await _answered(prompts[0], request, Completion(engine.tokenizer, name))
        _require_model(body)
        if body.stream:
            raise Refused(400, "several prompts, echo and max_tokens 0 are not streamed; leave stream out")
        try:
            texts = await _unless_gone(continued(engine, prompts, limits, metrics, name), request)
        except DialogueError as error:
            raise as_refused(error) from None
        return Response(status_code=499) if texts is None else JSONResponse(texts)

    def _require_model(body: Request) -> None:
        if body.model not in (None, "", name):
            raise Refused(404, f"there is no model {body.model!r} here; there is {name!r}", "model_not_found", "model")

    async def _answered(body: Request, request: HTTPRequest, form: Form) -> Response:
        _require_model(body)
        try:
            answer = Answer(engine, body, limits, metrics)
        except DialogueError as error:
            raise as_refused(error) from None
        if not body.stream:
            return await _whole(answer, form, request)
        try:
            first = await _unless_gone(answer.next(), request)
        except BaseException as error:
            answer.leave()
            raise (as_refused(error) if isinstance(error, DialogueError) else error) from None
        if first is None:
            answer.leave()
            return Response(status_code=499)  # nobody reads it
        counted = body.stream_options is not None and body.stream_options.include_usage
        return StreamingResponse(_stream(answer, form, first, counted), media_type="text/event-stream",
                                 headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})  # fmt: skip

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model."""
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{asked:path}")
    async def model_of(asked: str) -> dict[str, Any]:
        """The one model, by its name."""
        if asked != name:
            raise Refused(404, f"there is no model {asked!r} here; there is {name!r}", "model_not_found", "model")
        return model

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Whether it works, and how much it has to do."""
        if not engine.alive:
            raise Refused(503, "decoding has ended; start the server again")
        return {"status": "ok", "model": name, "running": engine.running, "waiting": engine.waiting}

    @app.get("/metrics")
    async def show_metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


async def continued(
    engine: Engine, prompts: Sequence[CompletionRequest], limits: Limits, metrics: Metrics, name: str
) -> dict[str, Any]:
    """Continue several texts, or none of them with `max_tokens` 0, and echo each before its replies if that is asked.

    Raises:
        DialogueError: one of them cannot be answered.
    """
    body, tokenizer = prompts[0], engine.tokenizer
    plan_of(body, limits, tokenizer.eos_id)  # also where nothing is generated
    given = [prompt.prompt(tokenizer, limits.history_tokens, limits.positions).ids for prompt in prompts]
    scored: list[list[Token]] = [[] for _ in prompts]
    answers: list[Answer] = []
    try:
        if body.echo and body.logprobs is not None:
            for ids in given:
                require_scorable(ids, engine.model.config)
            keep = body.max_tokens != 0
            scored = await asyncio.wrap_future(engine.score_prompts(given, body.logprobs, limits.seconds, keep))
        if body.max_tokens != 0:
            for prompt in prompts:  # one by one, so that all are cancelled if one is refused
                answers.append(Answer(engine, prompt, limits, metrics))
        form = Completion(tokenizer, name)
        whole = form.head(chunk=False) | {"choices": []}
        for place, ids in enumerate(given):
            text = tokenizer.decode(ids) if body.echo else ""
            if body.max_tokens == 0:
                replies, noted = [Reply(ShownText(tokenizer, ()), finish_reason="length")] * body.replies, {}
            else:
                own = Completion(tokenizer, name)
                await _collect(answers[place], own)
                replies, noted = answers[place].replies, own.noted
            whole["choices"] += form.continued(place, text, scored[place], replies, noted)
    finally:
        for answer in answers:
            answer.leave()
    generated = sum(reply.tokens for answer in answers for reply in answer.replies)
    read = sum(map(len, given))
    return whole | {"usage": {"prompt_tokens": read, "completion_tokens": generated, "total_tokens": read + generated}}


def require_scorable(ids: Sequence[int], config: GPT2Config) -> None:
    """Raise a `DialogueError` unless the network can read a prompt."""
    if len(ids) > config.n_positions:
        raise DialogueError(
            f"the prompt has {len(ids):,} tokens and the network {config.n_positions:,} positions; shorten it"
        )
    if not all(0 <= token < config.vocab_size for token in ids):
        raise DialogueError(f"the prompt holds ids outside the vocabulary of {config.vocab_size:,} tokens")


async def _collect(answer: Answer, form: Form) -> bool:
    """Wait for all replies of a request."""
    while not answer.done:
        choice, _, event = await answer.next()
        if isinstance(event, Token):
            form.note(choice, event)
    return True


async def _whole(answer: Answer, form: Form, request: HTTPRequest) -> Response:
    """Wait for all replies, unless the client goes away."""
    try:
        there = await _unless_gone(_collect(answer, form), request)
    except DialogueError as error:
        raise as_refused(error) from None
    finally:
        answer.leave()
    return (
        JSONResponse(form.whole(answer.replies, answer.usage)) if there else Response(status_code=499)
    )  # nobody reads it


async def _unless_gone(work: Coroutine[Any, Any, Result], request: HTTPRequest) -> Result | None:
    """What comes of some work; None, and an end to it, if the client goes away before."""

    async def gone() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.2)

    working, leaving = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()


async def _stream(answer: Answer, form: Form, first: tuple[int, str, Token | End], counted: bool) -> AsyncIterator[str]:
    """Every event as a chunk; at the end the usage, if it was asked for."""
    unknown = {"usage": None} if counted else {}
    try:
        for choice in range(len(answer.replies)):
            for chunk in form.opening(choice):
                yield _event(chunk | unknown)
        event = first
        while True:
            for chunk in form.chunks(*event):
                yield _event(chunk | unknown)
            if answer.done:
                break
            event = await answer.next()
        if counted:
            yield _event(form.head(chunk=True) | {"choices": [], "usage": answer.usage})
    except DialogueError as error:
        yield _event({"error": error_object(str(error), "server_error")})
    finally:
        answer.leave()
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _page() -> tuple[bytes, str]:
    """The page, and what a browser may do with it: run its own script and style, and talk to this server alone."""
    page = (Path(__file__).parent / "static" / "page.html").read_bytes()
    allowed = {}
    for kind, tag in (("script", b"script"), ("style", b"style")):
        content = page.split(b"<" + tag + b">")[1].split(b"</" + tag + b">")[0]
        allowed[kind] = base64.b64encode(hashlib.sha256(content).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{allowed['script']}'; style-src 'sha256-{allowed['style']}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy
