"""Ollama's interface, as far as chat clients use it: `/api/tags`, `/api/chat`, `/api/generate`, `/api/version`.

Open WebUI and editors look for models and talk there. A stream is a JSON object on each line.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Annotated, Any

from fastapi import FastAPI
from fastapi import Request as HTTPRequest
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from dialogpt.errors import DialogueError
from dialogpt.serve.engine import End, Token
from dialogpt.serve.errors import as_request_error
from dialogpt.serve.responses import Choice, ResponseFormat, compact_json
from dialogpt.serve.schemas import ChatRequest, CompletionRequest, GenerationRequest, Message, unknown_fields
from dialogpt.serve.sending import respond
from dialogpt.serve.service import Service
from dialogpt.tokenizer import Tokenizer

VERSION = "0.5.0"  # of the interface that clients find here, not of this package
OPTIONS = {"num_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}  # Ollama's names, and ours
RUNTIME_OPTIONS = {  # of Ollama's runtime, which change no reply here
    *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "use_mmap", "numa", "low_vram"),
    *("repeat_last_n", "mirostat", "mirostat_tau", "mirostat_eta", "tfs_z", "penalize_newline"),
}


class OllamaRequest(BaseModel):
    """What both kinds of request have in common."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    stream: bool = True
    options: dict[str, Any] | None = None
    format: Any = None
    keep_alive: Any = None
    think: bool | str | None = None

    def settings(self) -> dict[str, Any]:
        """Return the options by our names, without those of Ollama's runtime.

        Raises:
            DialogueError: the request needs what is not implemented.
        """
        for name in ("format", "tools", "suffix", "images"):
            if getattr(self, name, None):
                raise DialogueError(f"{name} is not implemented; omit it")
        given = {OPTIONS.get(name, name): value for name, value in (self.options or {}).items()}
        if isinstance(given.get("max_tokens"), int) and given["max_tokens"] < 1:  # -1 is "no limit" there
            del given["max_tokens"]
        given = {name: value for name, value in given.items() if name not in RUNTIME_OPTIONS}
        return given | {"stream": self.stream}


class OllamaChatRequest(OllamaRequest):
    """The body of ``POST /api/chat``."""

    messages: Annotated[list[Message], Field(min_length=1)]

    def request(self) -> GenerationRequest:
        """Return the same request as OpenAI's interface has it."""
        return ChatRequest(messages=self.messages, **self.settings())


class OllamaGenerateRequest(OllamaRequest):
    """The body of ``POST /api/generate``: one turn, or with `raw` a text that is continued."""

    prompt: str = ""
    system: str | None = None
    raw: bool = False

    def request(self) -> GenerationRequest:
        """Return the same request as OpenAI's interface has it."""
        if self.raw:
            return CompletionRequest.model_validate({"prompt": self.prompt} | self.settings())
        system = [Message(role="system", content=self.system)] if self.system else []
        return ChatRequest(messages=[*system, Message(role="user", content=self.prompt)], **self.settings())


class OllamaFormat(ResponseFormat):
    """Ollama's objects: of a chat with a message, else with a `response`."""

    media_type, end_of_stream = "application/x-ndjson", ""

    def __init__(self, tokenizer: Tokenizer, model: str, chat: bool) -> None:
        """Start a response."""
        super().__init__(tokenizer, model)
        self._chat, self._start = chat, time.perf_counter_ns()

    def frame(self, content: Any) -> str:
        """See `ResponseFormat`."""
        return compact_json(content) + "\n"

    def error_chunk(self, sentence: str) -> Any:
        """See `ResponseFormat`."""
        return {"error": sentence}

    def chunks(self, choice: int, text: str, event: Token | End) -> list[Any]:
        """See `ResponseFormat`."""
        return [self._object(text) | {"done": False}] if text else []

    def closing(self, choices: Sequence[Choice], usage: dict[str, int]) -> list[Any]:
        """Return the last object, with what was counted."""
        return [self._object("") | self._totals(choices, usage)]

    def whole(self, choices: Sequence[Choice], usage: dict[str, int]) -> dict[str, Any]:
        """See `ResponseFormat`."""
        return self._object(choices[0].text) | self._totals(choices, usage)

    def _object(self, text: str) -> dict[str, Any]:
        now = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
        content = {"message": {"role": "assistant", "content": text}} if self._chat else {"response": text}
        return {"model": self.model, "created_at": now, **content}

    def _totals(self, choices: Sequence[Choice], usage: dict[str, int]) -> dict[str, Any]:
        nanoseconds = time.perf_counter_ns() - self._start
        return {
            "done": True,
            "done_reason": choices[0].finish_reason,
            "total_duration": nanoseconds,
            "load_duration": 0,
            "prompt_eval_count": usage["prompt_tokens"],
            "prompt_eval_duration": 0,
            "eval_count": usage["completion_tokens"],
            "eval_duration": nanoseconds,
        }


def add_routes(app: FastAPI, service: Service) -> None:
    """Add Ollama's endpoints."""

    @app.post("/api/chat")
    async def chat(body: OllamaChatRequest, request: HTTPRequest) -> Response:
        """Reply to a dialogue."""
        return await answered(body, request, chat=True)

    @app.post("/api/generate")
    async def generate(body: OllamaGenerateRequest, request: HTTPRequest) -> Response:
        """Reply to one turn, or continue a raw text."""
        return await answered(body, request, chat=False)

    async def answered(body: OllamaChatRequest | OllamaGenerateRequest, request: HTTPRequest, chat: bool) -> Response:
        service.require_model((body.model or "").removesuffix(":latest"))
        try:
            asked = body.request()
        except ValueError as error:  # an option out of range; pydantic's error is one
            raise as_request_error(DialogueError(_first_line(error))) from None
        form = OllamaFormat(service.engine.tokenizer, body.model or service.name, chat)
        return await respond(service, asked, request, form, unknown_fields(body))

    @app.get("/api/tags")
    async def tags() -> dict[str, Any]:
        """List the one model."""
        created = datetime.fromtimestamp(service.created, timezone.utc).isoformat()
        details = {"format": "safetensors", "family": "gpt2", "families": ["gpt2"], "parameter_size": ""}
        size = sum(parameter.nbytes for parameter in service.engine.model.parameters())
        model = {"name": f"{service.name}:latest", "model": f"{service.name}:latest", "modified_at": created}
        return {"models": [model | {"size": size, "digest": "", "details": details | {"quantization_level": ""}}]}

    @app.get("/api/version")
    async def version() -> dict[str, str]:
        """Return the version of the interface."""
        return {"version": VERSION}


def _first_line(error: ValueError) -> str:
    """Return an error of pydantic's as one sentence: the field, and what is wrong with it."""
    lines = str(error).splitlines()
    return f"{lines[1]}: {lines[2].strip()}" if len(lines) > 2 else lines[0]
