"""OpenAI's interface over HTTP: chat and text completions, streamed or whole; models, health, metrics.

Errors have OpenAI's shape and status, and name no path of this machine. What a body means is left to
`dialogpt.serve.requests`, decoding to `dialogpt.serve.engine`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fastapi import FastAPI
from fastapi import Request as HTTPRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dialogpt.decoder import NotFinite, Stop, fresh_generator
from dialogpt.errors import DialogueError
from dialogpt.generate import Reply as Said
from dialogpt.rerank import ranked
from dialogpt.serve.engine import Busy, Closed, End, Engine, Event, Failed, Job, OutOfTime, Token
from dialogpt.serve.requests import SAID_BY, ChatRequest, CompletionRequest, Limits, Request, settings_of
from dialogpt.tokenizer import StreamDecoder, Tokenizer

logger = logging.getLogger(__name__)
MOST_BYTES = 512 << 10  # of a body; 32,000 characters, each escaped as two surrogates, are 384 KB
STATUS: dict[type[DialogueError], int] = {Busy: 429, Closed: 503, OutOfTime: 503, Failed: 500, NotFinite: 500}
Result = TypeVar("Result")
RETRY_AFTER = "1"  # seconds
MOST_SECONDS = 5  # for a body to come
MOST_PROBLEMS = 5  # of a body that are told
UNIONS = {  # what is expected of fields that take several kinds of values
    "content": "expected text, or a list of parts that are text",
    "prompt": "expected one text, or the ids of one",
    "stop": "expected a text, or a list of at most 4",
}


class Refused(Exception):
    """A request that is not answered: status, and what OpenAI's error object holds."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers or {}


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


class ShownText:
    """The text of a reply as a client is shown it: whole characters, and nothing of what ends it."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._decoder, self._stops = StreamDecoder(tokenizer), stops
        self._held, self._stopped = "", False

    def feed(self, token: int) -> str:
        """The text that a token makes sure of; the beginning of a stop string is held back."""
        self._held += self._decoder.feed(token)
        return self._release(last=False)

    def finish(self) -> str:
        """What was held back and is no stop string."""
        self._held += self._decoder.finish()
        return self._release(last=True)

    def _release(self, last: bool) -> str:
        if self._stopped:
            return ""
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self._stopped = True
            return self._held[: min(found)]
        begun = 0 if last else max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - begun], self._held[len(self._held) - begun :]
        return shown


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of a stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


@dataclass
class Reply:
    """One choice, as far as it is known."""

    text: ShownText
    whole: str = ""
    tokens: int = 0
    finish_reason: str | None = None


class Answer:
    """One request on its way: its events, and what they have made of its replies."""

    def __init__(self, engine: Engine, request: Request, limits: Limits, metrics: Metrics) -> None:
        """Check the request, and hand it to the engine.

        Raises:
            DialogueError: it cannot be answered.
        """
        tokenizer = engine.tokenizer
        config = settings_of(request, limits, tokenizer.eos_id)
        window = config.prompt_room(limits.positions)
        self.prompt = request.prompt(tokenizer, limits.history_tokens, window)
        self.tokenizer, self.metrics, self.engine = tokenizer, metrics, engine
        self.start = time.perf_counter()
        self.replies = [Reply(ShownText(tokenizer, request.stops)) for _ in range(request.replies)]
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody listens
                loop.call_soon_threadsafe(self.events.put_nowait, event)

        seeds = [None if request.seed is None else (request.seed + k) % (1 << 63) for k in range(request.replies)]
        generators = [fresh_generator(engine.model.device, seed) for seed in seeds]
        tries = request.tries if config.do_sample else 1
        choose = None if not request.rerank else self._judge(request, limits)
        self.job = Job(self.prompt.ids, config, generators, tell, limits.seconds, request.alternatives, tries, choose)
        engine.submit(self.job)
        metrics.prompt.inc(len(self.prompt.ids))

    def _judge(self, request: Request, limits: Limits) -> Callable[[list[Said], Stop], list[Said]]:
        """What chooses the best of several candidates; those of white space only come last."""
        turns, tokenizer, reranker = request.turns(self.tokenizer), self.tokenizer, limits.reranker
        assert reranker is not None  # or `settings_of` has refused it

        def choose(candidates: list[Said], stop: Stop) -> list[Said]:
            judged = ranked(reranker, turns, candidates, stop)
            return sorted(judged, key=lambda said: not tokenizer.decode(said.ids).strip())[: request.replies]

        return choose

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
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _not_found)
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
        """Go on with a text."""
        return await _answered(body, request, Completion(engine.tokenizer, name))

    async def _answered(body: Request, request: HTTPRequest, form: Form) -> Response:
        if body.model not in (None, "", name):
            raise Refused(404, f"there is no model {body.model!r} here; there is {name!r}", "model_not_found", "model")
        try:
            answer = Answer(engine, body, limits, metrics)
        except DialogueError as error:
            raise _as_refused(error) from None
        if not body.stream:
            return await _whole(answer, form, request)
        try:
            first = await _unless_gone(answer.next(), request)
        except BaseException as error:
            answer.leave()
            raise (_as_refused(error) if isinstance(error, DialogueError) else error) from None
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


async def _whole(answer: Answer, form: Form, request: HTTPRequest) -> Response:
    """Wait for all replies, unless the client goes away."""

    async def collect() -> bool:
        while not answer.done:
            choice, _, event = await answer.next()
            if isinstance(event, Token):
                form.note(choice, event)
        return True

    try:
        there = await _unless_gone(collect(), request)
    except DialogueError as error:
        raise _as_refused(error) from None
    finally:
        answer.leave()
    return JSONResponse(form.whole(answer)) if there else Response(status_code=499)  # nobody reads it


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
        yield _event({"error": _error_object(str(error), "server_error")})
    finally:
        answer.leave()
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


class Form:
    """How one endpoint writes what is said; an instance writes one answer."""

    kind, chunk_kind, prefix = "", "", ""

    def __init__(self, tokenizer: Tokenizer, model: str) -> None:
        """Begin an answer."""
        self.tokenizer, self.model = tokenizer, model
        self.id, self.created = f"{self.prefix}-{uuid.uuid4().hex}", int(time.time())
        self.noted: dict[int, list[Token]] = {}

    def head(self, chunk: bool) -> dict[str, Any]:
        """What every object begins with."""
        return {
            "id": self.id,
            "object": self.chunk_kind if chunk else self.kind,
            "created": self.created,
            "model": self.model,
        }

    def note(self, choice: int, token: Token) -> None:
        """Remember a token for the probabilities of a whole answer."""
        if token.log_probability is not None:
            self.noted.setdefault(choice, []).append(token)

    def opening(self, choice: int) -> list[dict[str, Any]]:
        """The chunks before the first token."""
        return []

    def chunks(self, choice: int, text: str, event: Token | End) -> list[dict[str, Any]]:
        """What a token, or the end, is in a stream."""
        found = []
        if text or (isinstance(event, Token) and event.log_probability is not None):
            found.append(self._chunk(choice, text, [event] if isinstance(event, Token) else [], None))
        if isinstance(event, End):
            found.append(self._chunk(choice, None, [], event.finish_reason))
        return found

    def whole(self, answer: Answer) -> dict[str, Any]:
        """An answer that is not streamed."""
        choices = [
            self._choice(place, reply.whole, self.noted.get(place, []), reply.finish_reason)
            for place, reply in enumerate(answer.replies)
        ]
        return self.head(chunk=False) | {"choices": choices, "usage": answer.usage}

    def _chunk(self, choice: int, text: str | None, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        raise NotImplementedError

    def _choice(self, choice: int, text: str, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        raise NotImplementedError


class Chat(Form):
    """``chat.completion``."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def opening(self, choice: int) -> list[dict[str, Any]]:
        """Who speaks."""
        return [self._delta(choice, {"role": "assistant", "content": ""}, None, None)]

    def _chunk(self, choice: int, text: str | None, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        return self._delta(choice, {} if text is None else {"content": text}, self._log_probabilities(tokens), reason)

    def _delta(
        self, choice: int, delta: dict[str, Any], log_probabilities: dict[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        one = {"index": choice, "delta": delta, "logprobs": log_probabilities, "finish_reason": reason}
        return self.head(chunk=True) | {"choices": [one]}

    def _choice(self, choice: int, text: str, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {
            "index": choice,
            "message": message,
            "logprobs": self._log_probabilities(tokens),
            "finish_reason": reason,
        }

    def _log_probabilities(self, tokens: list[Token]) -> dict[str, Any] | None:
        told = [token for token in tokens if token.log_probability is not None]
        if not told:
            return None
        return {
            "content": [
                self._described(token.id, token.log_probability)
                | {"top_logprobs": [self._described(*each) for each in token.alternatives]}
                for token in told
            ],
            "refusal": None,
        }

    def _described(self, token: int, log_probability: float | None) -> dict[str, Any]:
        spelled = self.tokenizer.bytes_of(token)
        return {"token": self.tokenizer.decode([token]), "logprob": log_probability, "bytes": list(spelled)}


class Completion(Form):
    """``text_completion``."""

    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, tokenizer: Tokenizer, model: str) -> None:
        """Begin an answer."""
        super().__init__(tokenizer, model)
        self._read: dict[int, tuple[StreamDecoder, int]] = {}  # of each choice, and its characters so far

    def _chunk(self, choice: int, text: str | None, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        return self.head(chunk=True) | {"choices": [self._choice(choice, text or "", tokens, reason)]}

    def _choice(self, choice: int, text: str, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        return {
            "index": choice,
            "text": text,
            "logprobs": self._log_probabilities(choice, tokens),
            "finish_reason": reason,
        }

    def _log_probabilities(self, choice: int, tokens: list[Token]) -> dict[str, Any] | None:
        told = [token for token in tokens if token.log_probability is not None]
        if not told:
            return None
        offsets = []
        for token in told:
            decoder, length = self._read.get(choice, (StreamDecoder(self.tokenizer), 0))
            offsets.append(length)
            self._read[choice] = decoder, length + len(decoder.feed(token.id))
        return {
            "tokens": [self._spelled(token.id) for token in told],
            "token_logprobs": [token.log_probability for token in told],
            "top_logprobs": [
                {self._spelled(n): value for n, value in (*token.alternatives, (token.id, token.log_probability))}
                for token in told
            ],
            "text_offset": offsets,
        }

    def _spelled(self, token: int) -> str:
        """A token's text; of one that holds half a character its bytes, as OpenAI writes them."""
        spelled = self.tokenizer.bytes_of(token)
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


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

        host = _host_of(headers.get("host", ""))
        scheme, _, given = headers.get("authorization", "").partition(" ")
        keyed = scheme.lower() == "bearer" and hmac.compare_digest(
            given.encode("latin-1"), (self.api_key or "").encode()
        )
        refused = None
        if self.hosts is not None and host not in self.hosts:  # a page elsewhere whose name leads here
            refused = Refused(
                403,
                f"this server answers this machine alone, and is not known as {str(host)[:80]!r}; start it with "
                "--allowed-host for a proxy's name, or with --host for other machines",
            )
        elif self.api_key is not None and path.startswith("/v1/") and not keyed:
            refused = Refused(401, "the API key is missing or wrong; send it as a Bearer token", "invalid_api_key")
        if refused is not None:
            await _as_response(refused)(scope, receive, counted)
            return
        try:
            body = await asyncio.wait_for(_body(receive), MOST_SECONDS)
        except Refused as error:
            await _as_response(error)(scope, receive, counted)
            return
        except asyncio.TimeoutError:
            late = Refused(408, f"the body did not come within {MOST_SECONDS} seconds; send it again")
            await _as_response(late)(scope, receive, counted)
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
            refused = Refused(500, f"the server failed ({type(error).__name__}); its log says more")
            await _as_response(refused)(scope, receive, counted)


def _host_of(header: str) -> str | None:
    """The name in a Host header, without port and brackets; None if it is no name."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


async def _body(receive: Receive) -> bytes:
    """The whole body of a request.

    Raises:
        Refused: it is larger than may be.
    """
    body, more = b"", True
    while more and len(body) <= MOST_BYTES:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    if len(body) > MOST_BYTES:
        raise Refused(413, f"the body is larger than {MOST_BYTES >> 10} KB")
    return body


def _page() -> tuple[bytes, str]:
    """The page, and what a browser may do with it: run its own script and style, and talk to this server alone."""
    page = (Path(__file__).parent / "page.html").read_bytes()
    allowed = {}
    for kind, tag in (("script", b"script"), ("style", b"style")):
        content = page.split(b"<" + tag + b">")[1].split(b"</" + tag + b">")[0]
        allowed[kind] = base64.b64encode(hashlib.sha256(content).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{allowed['script']}'; style-src 'sha256-{allowed['style']}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy


def _as_refused(error: DialogueError) -> Refused:
    status, message = STATUS.get(type(error), 400), str(error)
    for setting, name in (*SAID_BY.items(), ("max_new_tokens", "max_tokens")):
        message = message.replace(setting, name)
    return Refused(status, message, {429: "rate_limit_exceeded", 503: "overloaded"}.get(status))


def _as_response(refused: Refused) -> JSONResponse:
    kind = "invalid_request_error" if refused.status < 429 else "server_error"
    kind = "rate_limit_error" if refused.status == 429 else kind
    headers = {"Retry-After": RETRY_AFTER} if refused.status in (429, 503) else dict(refused.headers)
    if refused.status == 500:  # OpenAI's client would ask again, and again
        headers["x-should-retry"] = "false"
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    content = {"error": _error_object(refused.message, kind, refused.code, refused.param)}
    return JSONResponse(content, refused.status, headers)


def _error_object(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    return {"message": message, "type": kind, "param": param, "code": code}


async def _refused(_: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _as_response(error)


async def _not_valid(request: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    kind = request.headers.get("content-type", "none")
    if "json" not in kind:
        return _as_response(Refused(400, f"the body's type is {kind[:50]}; say Content-Type: application/json"))
    problems = dict(map(_problem, error.errors()[: 4 * MOST_PROBLEMS]))  # a union has one for each of its kinds
    told = [f"{place or 'the body'}: {sentence}" for place, sentence in problems.items()][:MOST_PROBLEMS]
    return _as_response(Refused(400, "; ".join(told), param=next(iter(problems)) or None))


def _problem(problem: dict[str, Any]) -> tuple[str, str]:
    """Where something is wrong in a body, and what was found and expected."""
    place = [str(part) for part in problem["loc"] if part != "body"]
    if problem["type"] == "json_invalid":
        return "", f"no JSON ({problem['ctx']['error']}, at character {place[0]}); send an object"
    union = next((depth for depth, part in enumerate(place, 1) if part in UNIONS), None)
    found = problem["input"]
    seen = "" if problem["type"] == "missing" else f"; found {_shown(found)}"
    if union is not None and len(place) > union:
        return ".".join(place[:union]), UNIONS[place[union - 1]]
    return ".".join(place), problem["msg"] + seen


def _shown(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value):,}"
    return repr(value)[:50]


async def _not_found(request: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    if error.status_code == 400:  # FastAPI's, before anything is checked
        message = "the body cannot be read as JSON (not UTF-8, or nested too deep); send an object"
    return _as_response(Refused(error.status_code, message, headers=error.headers))
