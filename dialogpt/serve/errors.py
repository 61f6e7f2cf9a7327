"""Error responses: a status, and OpenAI's error object with a sentence.

The sentence says what was found, what was expected and what to do; it names no path of this machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi import Request as HTTPRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from dialogpt.decoding.sequence import NotFinite
from dialogpt.errors import DialogueError, SettingsError
from dialogpt.serve.engine import Busy, Closed, Failed, TimedOut
from dialogpt.serve.schemas import MAX_PROMPTS, OPENAI_NAMES, ContextLengthExceeded

STATUS: dict[type[DialogueError], int] = {Busy: 429, Closed: 503, TimedOut: 503, Failed: 500, NotFinite: 500}
BODY_NAMES = {**OPENAI_NAMES, "max_new_tokens": "max_tokens"}  # what a body calls settings
RETRY_AFTER = "1"  # seconds
OLLAMA = "/api/"  # its clients expect a string where OpenAI's expect an object
MAX_PROBLEMS = 5  # reported per body
CODES = {"literal_error": "invalid_value", "missing": "missing_required_parameter", "no_content": "invalid_value"}
UNION_FIELDS = {  # what is expected of fields that take several types
    "content": "expected text, or a list of parts that are text",
    "prompt": f"expected a text, the ids of one, or a list of up to {MAX_PROMPTS} of either",
    "stop": "expected a text, or a list of at most 4",
}


class RequestError(Exception):
    """A request that gets an error response: its status, and the fields of OpenAI's error object."""

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


def as_request_error(error: DialogueError) -> RequestError:
    """Turn an error of the library into a response; settings are named as in a body."""
    status = STATUS.get(type(error), 400)
    message = error.worded(lambda name: BODY_NAMES.get(name, name)) if isinstance(error, SettingsError) else str(error)
    if isinstance(error, ContextLengthExceeded):
        return RequestError(status, message, "context_length_exceeded", error.param)
    return RequestError(status, message, {429: "rate_limit_exceeded", 503: "overloaded"}.get(status))


def as_response(refused: RequestError, path: str) -> JSONResponse:
    """Return the response as the clients of a path expect it, with headers that say whether to retry."""
    kind = "invalid_request_error" if refused.status < 429 else "server_error"
    kind = "rate_limit_error" if refused.status == 429 else kind
    headers = {"Retry-After": RETRY_AFTER} if refused.status in (429, 503) else {}
    headers |= refused.headers
    if refused.status == 500:  # OpenAI's client would retry
        headers["x-should-retry"] = "false"
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    error = error_object(refused.message, kind, refused.code, refused.param)
    content = {"error": refused.message if path.startswith(OLLAMA) else error}
    return JSONResponse(content, refused.status, headers)


def error_object(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Return OpenAI's error object."""
    return {"message": message, "type": kind, "param": param, "code": code}


async def on_request_error(request: HTTPRequest, error: Exception) -> Response:
    """Answer `RequestError`."""
    assert isinstance(error, RequestError)
    return as_response(error, request.url.path)


async def on_not_valid(request: HTTPRequest, error: Exception) -> Response:
    """Answer a body that is not valid."""
    assert isinstance(error, RequestValidationError)
    kind = request.headers.get("content-type", "none")
    if "json" not in kind:
        return as_response(
            RequestError(400, f"the body's Content-Type is {kind[:50]}; send application/json"), request.url.path
        )
    return as_response(_not_valid(error.errors()), request.url.path)


@contextmanager
def requested(names: Mapping[str, str] | None = None) -> Iterator[None]:
    """Within it, what a body comes to in another interface is refused as the body itself is.

    Args:
        names: what the other interface calls fields of OpenAI's.

    Raises:
        RequestError: it cannot be answered.
    """
    try:
        yield
    except ValidationError as error:
        named = names or {}
        problems = [{**each, "loc": [named.get(str(part), part) for part in each["loc"]]} for each in error.errors()]
        raise _not_valid(problems) from None
    except DialogueError as error:
        raise as_request_error(error) from None


def _not_valid(errors: Sequence[Any]) -> RequestError:
    """Return the error for pydantic's list of what is not valid."""
    found = errors[: 4 * MAX_PROBLEMS]
    problems = dict(map(_problem, found))  # a union has one for each of its kinds
    reported = [f"{location or 'the body'}: {sentence}" for location, sentence in problems.items()][:MAX_PROBLEMS]
    return RequestError(400, "; ".join(reported), CODES.get(found[0]["type"]), next(iter(problems)) or None)


def _problem(problem: dict[str, Any]) -> tuple[str, str]:
    """Return where a body is not valid, and what was found and expected."""
    location = [str(part) for part in problem["loc"] if part != "body"]
    if problem["type"] == "json_invalid":
        return "", f"no JSON ({problem['ctx']['error']}, at character {location[0]}); send an object"
    union = next((depth for depth, part in enumerate(location, 1) if part in UNION_FIELDS), None)
    found = problem["input"]
    found_suffix = "" if problem["type"] in ("missing", "no_content") else f"; found {_abbreviated(found)}"
    if union is not None and len(location) > union:
        return _path(location[:union]), UNION_FIELDS[location[union - 1]]
    return _path(location), problem["msg"] + found_suffix


def _path(location: Sequence[str]) -> str:
    """Write a place in a body as OpenAI does: messages[0].role."""
    return "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in location).removeprefix(".")


def _abbreviated(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value):,}"
    return repr(value)[:50]


async def on_http_error(request: HTTPRequest, error: Exception) -> Response:
    """Answer unknown paths and methods, and what the framework refuses."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    if error.status_code == 400:  # FastAPI's, before anything is checked
        message = "the body cannot be read as JSON (not UTF-8, or nested too deep); send an object"
    return as_response(RequestError(error.status_code, message, headers=error.headers), request.url.path)
