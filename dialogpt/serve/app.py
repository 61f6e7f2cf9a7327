"""The application: middleware, error handlers and the endpoints of `dialogpt.serve.routes`."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from dialogpt.serve.engine import Engine
from dialogpt.serve.errors import RequestError, on_http_error, on_not_valid, on_request_error
from dialogpt.serve.metrics import Metrics
from dialogpt.serve.middleware import Gate
from dialogpt.serve.routes import completions, models, operations, page
from dialogpt.serve.schemas import Limits
from dialogpt.serve.service import Service


def create_app(
    engine: Engine,
    name: str,
    limits: Limits,
    *,
    api_key: str | None = None,
    origins: Sequence[str] = (),
    hosts: Sequence[str] | None = None,
) -> FastAPI:
    """Create the application.

    Args:
        engine: decodes; the caller closes it.
        name: what clients call the model.
        limits: what a request is granted.
        api_key: without it in the ``Authorization`` header, nothing under ``/v1`` is answered.
        origins: other origins whose pages may send requests.
        hosts: names by which the server may be called; None is any.
    """
    description = "A GPT-2 that talks, behind OpenAI's interface."
    # FastAPI's own documentation pages load scripts from elsewhere.
    app = FastAPI(title="dialogpt", description=description, docs_url=None, redoc_url=None)
    service = Service(engine, name, limits, Metrics(engine))
    app.add_middleware(Gate, api_key=api_key, hosts=hosts, metrics=service.metrics)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    app.add_exception_handler(RequestError, on_request_error)
    app.add_exception_handler(RequestValidationError, on_not_valid)
    app.add_exception_handler(HTTPException, on_http_error)
    page.add_routes(app)
    for routes in (completions, models, operations):
        routes.add_routes(app, service)
    return app
