"""What is answered where a request is refused or fails: OpenAI's error object, a status, and a sentence.

It says what was found, what is expected and what to do, and names no path of this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Request as HTTPRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from dialogpt.decoding.loop import NotFinite
from dialogpt.errors import DialogueError, SettingsError
from dialogpt.serve.engine import Busy, Closed, Failed, OutOfTime
from dialogpt.serve.schemas import MOST_PROMPTS, SAID_BY

STATUS: dict[type[DialogueError], int] = {Busy: 429, Closed: 503, OutOfTime: 503, Failed: 500, NotFinite: 500}
BODY_NAMES = {**SAID_BY, "max_new_tokens": "max_tokens"}  # what a body calls settings
RETRY_AFTER = "1"  # seconds
MOST_PROBLEMS = 5  # of a body that are told
UNIONS = {  # what is expected of fields that take several kinds of values
    "content": "expected text, or a list of parts that are text",
    "prompt": f"expected a text, the ids of one, or a list of up to {MOST_PROMPTS} of either",
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


def as_refused(error: DialogueError) -> Refused:
    """The answer to what is wrong with a request, or with the server; settings are named as a body names them."""
    status = STATUS.get(type(error), 400)
    message = error.worded(lambda name: BODY_NAMES.get(name, name)) if isinstance(error, SettingsError) else str(error)
    return Refused(status, message, {429: "rate_limit_exceeded", 503: "overloaded"}.get(status))


def as_response(refused: Refused) -> JSONResponse:
    """The answer, with the headers that tell a client whether to ask again."""
    kind = "invalid_request_error" if refused.status < 429 else "server_error"
    kind = "rate_limit_error" if refused.status == 429 else kind
    headers = {"Retry-After": RETRY_AFTER} if refused.status in (429, 503) else dict(refused.headers)
    if refused.status == 500:  # OpenAI's client would ask again, and again
        headers["x-should-retry"] = "false"
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    content = {"error": error_object(refused.message, kind, refused.code, refused.param)}
    return JSONResponse(content, refused.status, headers)


def error_object(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"message": message, "type": kind, "param": param, "code": code}


async def on_refused(_: HTTPRequest, error: Exception) -> Response:
    """Answer `Refused`."""
    assert isinstance(error, Refused)
    return as_response(error)


async def on_not_valid(request: HTTPRequest, error: Exception) -> Response:
    """Answer a body that pydantic refuses, or that is none."""
    assert isinstance(error, RequestValidationError)
    kind = request.headers.get("content-type", "none")
    if "json" not in kind:
        return as_response(Refused(400, f"the body's type is {kind[:50]}; say Content-Type: application/json"))
    problems = dict(map(_problem, error.errors()[: 4 * MOST_PROBLEMS]))  # a union has one for each of its kinds
    told = [f"{place or 'the body'}: {sentence}" for place, sentence in problems.items()][:MOST_PROBLEMS]
    return as_response(Refused(400, "; ".join(told), param=next(iter(problems)) or None))


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


async def on_http_error(request: HTTPRequest, error: Exception) -> Response:
    """Answer what there is not, and what the framework refuses."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    if error.status_code == 400:  # FastAPI's, before anything is checked
        message = "the body cannot be read as JSON (not UTF-8, or nested too deep); send an object"
    return as_response(Refused(error.status_code, message, headers=error.headers))
