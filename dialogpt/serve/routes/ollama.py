"""Ollama's interface, as far as chat clients use it: `/api/chat`, `/api/generate`, and what they ask about the model.

Open WebUI and editors look for models and talk there. A stream is a JSON object on each line.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any, ClassVar

from fastapi import FastAPI
from fastapi import Request as HTTPRequest
from fastapi.responses import JSONResponse, Response

from dialogpt.errors import DialogueError
from dialogpt.serve.engine import End, Token
from dialogpt.serve.errors import requested
from dialogpt.serve.fields import Fields
from dialogpt.serve.responses import Choice, ResponseFormat, compact_json
from dialogpt.serve.schemas import SETTINGS, ChatRequest, CompletionRequest, GenerationRequest, Message
from dialogpt.serve.sending import respond
from dialogpt.serve.service import Service
from dialogpt.tokenizer import Tokenizer

FAR_FUTURE = "2100-01-01T00:00:00+00:00"  # when the model is unloaded
VERSION = "0.5.0"  # of the interface that clients find here, not of this package
OPTIONS = {"num_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}  # Ollama's names, and ours
OUR_OPTIONS = ("max_tokens", "stop", "seed", "logit_bias", "history_tokens", "rerank", "num_candidates", *SETTINGS)
RUNTIME_OPTIONS = (  # of Ollama's runtime, which change no reply here
    *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "use_mmap", "use_mlock", "numa"),
    *("low_vram", "f16_kv", "vocab_only", "logits_all"),
)
NOT_IMPLEMENTED = ("format", "tools", "suffix", "images", "template", "context", "think")


class Options(Fields):
    """Settings, by Ollama's names or by ours."""

    also_known = (*OPTIONS, *OUR_OPTIONS, *RUNTIME_OPTIONS)

    def settings(self) -> dict[str, Any]:
        """Return them by our names, without those of Ollama's runtime."""
        given = {OPTIONS.get(name, name): value for name, value in (self.model_extra or {}).items()}
        if isinstance(given.get("max_tokens"), int) and given["max_tokens"] < 1:  # -1 is "no limit" there
            del given["max_tokens"]
        return {name: value for name, value in given.items() if name in OUR_OPTIONS}


class OllamaMessage(Message):
    """One turn."""

    also_known: ClassVar = (*Message.also_known, "images", "thinking", "tool_name")


class OllamaRequest(Fields):
    """What both kinds of request have in common."""

    also_known: ClassVar = (*NOT_IMPLEMENTED, "keep_alive")

    model: str | None = None
    stream: bool = True
    options: Options | None = None

    @property
    def loads(self) -> bool:
        """Whether it says nothing, which is how clients load a model and, with a `keep_alive` of 0, unload it."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Return the options as fields of OpenAI's.

        Raises:
            DialogueError: the request needs what is not implemented.
        """
        for name in NOT_IMPLEMENTED:
            if getattr(self, name, None):
                raise DialogueError(f"{name} is not implemented; omit it")
        return (self.options.settings() if self.options else {}) | {"stream": self.stream}


class OllamaChatRequest(OllamaRequest):
    """The body of ``POST /api/chat``."""

    messages: list[OllamaMessage]

    @property
    def loads(self) -> bool:
        """See `OllamaRequest`."""
        return not self.messages

    def request(self) -> GenerationRequest:
        """Return the same request as OpenAI's interface has it.

        Raises:
            DialogueError: it needs what is not implemented.
            ValidationError: an option is out of range.
        """
        if any(getattr(message, "images", None) for message in self.messages):
            raise DialogueError("images are not implemented; omit them")
        return ChatRequest(messages=[*self.messages], **self.settings())


class OllamaGenerateRequest(OllamaRequest):
    """The body of ``POST /api/generate``: one turn, or with `raw` a text that is continued."""

    prompt: str = ""
    system: str | None = None
    raw: bool = False

    @property
    def loads(self) -> bool:
        """See `OllamaRequest`."""
        return not self.prompt

    def request(self) -> GenerationRequest:
        """Return the same request as OpenAI's interface has it; raises as `OllamaChatRequest.request`."""
        if self.raw:
            return CompletionRequest.model_validate({"prompt": self.prompt} | self.settings())
        system = [Message(role="system", content=self.system)] if self.system else []
        return ChatRequest(messages=[*system, Message(role="user", content=self.prompt)], **self.settings())


class ShowRequest(Fields):
    """The body of ``POST /api/show``; `name` is the older name of its field."""

    model: str | None = None
    name: str | None = None


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

    def loaded(self, unloads: bool) -> dict[str, Any]:
        """Return the answer to a request that says nothing."""
        return self._object("") | {"done": True, "done_reason": "unload" if unloads else "load"}

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
        require_model(body.model)
        form = OllamaFormat(service.engine.tokenizer, body.model or service.name, chat)
        if body.loads:  # the model is always loaded, and stays so
            return JSONResponse(form.loaded(getattr(body, "keep_alive", None) == 0))
        with requested({ours: theirs for theirs, ours in OPTIONS.items()}):
            asked = body.request()
        return await respond(service, asked, request, form, body)

    @app.get("/api/tags")
    async def tags() -> dict[str, Any]:
        """List the one model."""
        modified_at = datetime.fromtimestamp(service.created, timezone.utc).isoformat()
        return {"models": [_model_object(service) | {"modified_at": modified_at}]}

    @app.get("/api/ps")
    async def running_models() -> dict[str, Any]:
        """List the one model as loaded."""
        expires = {"expires_at": FAR_FUTURE, "size_vram": 0, "context_length": service.limits.positions}
        return {"models": [_model_object(service) | expires]}

    @app.post("/api/show")
    async def show(body: ShowRequest) -> dict[str, Any]:
        """Describe the model."""
        require_model(body.model or body.name)
        config = service.engine.model.config
        information = {
            "general.architecture": "gpt2",
            "gpt2.context_length": config.n_positions,
            "gpt2.embedding_length": config.n_embd,
            "gpt2.block_count": config.n_layer,
            "gpt2.attention.head_count": config.n_head,
        }
        details = _model_object(service)["details"]
        shown = {"modelfile": "", "parameters": "", "template": "", "license": "", "details": details}
        return shown | {"model_info": information, "capabilities": ["completion"]}

    @app.get("/api/version")
    async def version() -> dict[str, str]:
        """Return the version of the interface."""
        return {"version": VERSION}

    def require_model(named: str | None) -> None:
        service.require_model((named or "").removesuffix(":latest"))


def _model_object(service: Service) -> dict[str, Any]:
    """Return Ollama's description of the one model."""
    model = service.engine.model
    details = {"parent_model": "", "format": "safetensors", "family": "gpt2", "families": ["gpt2"]}
    details |= {"parameter_size": "", "quantization_level": ""}
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    name = f"{service.name}:latest"
    return {"name": name, "model": name, "size": size, "digest": "", "details": details}
