"""OpenAI's `/v1/responses`, for text: whole, or streamed as typed events.

Nothing is stored: a client sends the whole dialogue as `input`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from fastapi import FastAPI
from fastapi import Request as HTTPRequest
from fastapi.responses import Response
from pydantic import BeforeValidator, Field

from dialogpt.errors import DialogueError
from dialogpt.serve.engine import End, Token
from dialogpt.serve.errors import requested
from dialogpt.serve.fields import Fields
from dialogpt.serve.responses import Choice, ResponseFormat, compact_json
from dialogpt.serve.schemas import ChatRequest, Message
from dialogpt.serve.sending import respond
from dialogpt.serve.service import Service
from dialogpt.tokenizer import Tokenizer

NOT_STORED = ("previous_response_id", "conversation", "background", "prompt")
OTHERWISE_NAMED = {"messages", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "n", "stream_options"}
PASSED_ON = sorted({*ChatRequest.known_fields()} - OTHERWISE_NAMED - {"model", "stream"})
WITHOUT_EFFECT = (
    *("truncation", "max_tool_calls", "stream_options"),
    *("include", "top_logprobs"),  # of what is not generated: calls of tools, reasoning; see `logprobs` of a chat
)


class InputPart(Fields):
    """A part of an input item."""

    also_known = ("annotations", "logprobs")

    type: Literal["input_text", "output_text", "text"]
    text: str


class InputItem(Fields):
    """A message of the dialogue."""

    also_known = ("id", "status", "phase")

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputPart]


class TextOptions(Fields):
    """How the text is written; it is always plain."""

    also_known = ("verbosity",)

    format: dict[str, Any] | None = None


class ReasoningOptions(Fields):
    """How much is reasoned before the reply; it is always nothing."""

    also_known = ("summary", "generate_summary")

    effort: str | None = None


def _as_items(given: Any) -> Any:
    """Return a text as the one message that it is."""
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


class ResponsesRequest(Fields):
    """The body of ``POST /v1/responses``."""

    also_known: ClassVar = (*NOT_STORED, *PASSED_ON, *WITHOUT_EFFECT)

    model: str | None = None
    input: Annotated[list[InputItem], BeforeValidator(_as_items), Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None

    def request(self) -> ChatRequest:
        """Return the same request as a chat completion.

        Raises:
            DialogueError: it asks for what is not implemented.
        """
        for name in NOT_STORED:
            if getattr(self, name, None):
                raise DialogueError(f"{name} is not implemented, as nothing is stored; send the dialogue as input")
        if self.text and self.text.format not in (None, {"type": "text"}):
            raise DialogueError("text.format is not implemented; omit it")
        if self.reasoning and self.reasoning.effort not in (None, "none"):
            raise DialogueError("reasoning is not implemented; omit it")
        messages = [Message(role="system", content=self.instructions)] if self.instructions else []
        for item in self.input:
            text = item.content if isinstance(item.content, str) else "".join(part.text for part in item.content)
            messages.append(Message(role=item.role, content=text))
        given = {name: value for name in PASSED_ON if (value := getattr(self, name, None)) is not None}
        return ChatRequest(messages=messages, max_tokens=self.max_output_tokens, stream=self.stream, **given)


class ResponsesFormat(ResponseFormat):
    """A `response` object with one message, and the events that build it up."""

    prefix, end_of_stream = "resp", ""

    def __init__(self, tokenizer: Tokenizer, model: str, body: ResponsesRequest) -> None:
        """Start a response."""
        super().__init__(tokenizer, model)
        self._body, self._events, self._text = body, 0, ""
        self._item_id = self.id.replace("resp", "msg")
        self._place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def frame(self, content: Any) -> str:
        """Return a typed event."""
        numbered = content | {"sequence_number": self._events}
        self._events += 1
        return f"event: {content['type']}\ndata: {compact_json(numbered)}\n\n"

    def error_chunk(self, sentence: str) -> Any:
        """See `ResponseFormat`."""
        return {"type": "error", "message": sentence, "code": "server_error", "param": None}

    def opening(self, choice: int) -> list[Any]:
        """See `ResponseFormat`."""
        response = self._response("in_progress", [], None)
        return [
            {"type": "response.created", "response": response},
            {"type": "response.in_progress", "response": response},
            {"type": "response.output_item.added", "output_index": 0, "item": self._item("in_progress", [])},
            {"type": "response.content_part.added", **self._place, "part": _part("")},
        ]

    def chunks(self, choice: int, text: str, event: Token | End) -> list[Any]:
        """See `ResponseFormat`."""
        return [{"type": "response.output_text.delta", **self._place, "delta": text, "logprobs": []}] if text else []

    def closing(self, choices: Sequence[Choice], usage: dict[str, int]) -> list[Any]:
        """See `ResponseFormat`."""
        text = choices[0].text
        response = self.whole(choices, usage)
        return [
            {"type": "response.output_text.done", **self._place, "text": text, "logprobs": []},
            {"type": "response.content_part.done", **self._place, "part": _part(text)},
            {"type": "response.output_item.done", "output_index": 0, "item": response["output"][0]},
            {"type": f"response.{response['status']}", "response": response},
        ]

    def whole(self, choices: Sequence[Choice], usage: dict[str, int]) -> dict[str, Any]:
        """See `ResponseFormat`."""
        status = "completed" if choices[0].finish_reason == "stop" else "incomplete"
        counts = {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }
        return self._response(status, [self._item(status, [_part(choices[0].text)])], counts)

    def _item(self, status: str, content: list[Any]) -> dict[str, Any]:
        return {"id": self._item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _response(self, status: str, output: list[Any], usage: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": self._body.instructions,
            "max_output_tokens": self._body.max_output_tokens,
            "model": self.model,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": self._body.temperature,
            "tool_choice": "none",
            "tools": [],
            "top_p": self._body.top_p,
            "usage": usage,
            "metadata": {},
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the endpoint."""

    @app.post("/v1/responses")
    async def responses(body: ResponsesRequest, request: HTTPRequest) -> Response:
        """Reply to a dialogue, as OpenAI's Responses interface has it."""
        service.require_model(body.model)
        with requested():
            asked = body.request()
        form = ResponsesFormat(service.engine.tokenizer, service.name, body)
        return await respond(service, asked, request, form, body)
