"""The application: middleware, error handlers and the endpoints of `dialogpt.serve.routes`."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from dialogpt.serve.access import Access
from dialogpt.serve.engine import Engine
from dialogpt.serve.errors import RequestError, on_http_error, on_not_valid, on_request_error
from dialogpt.serve.metrics import Metrics
from dialogpt.serve.middleware import AccessMiddleware
from dialogpt.serve.routes import completions, inspect, models, ollama, operations, page, responses_api
from dialogpt.serve.schemas import Limits
from dialogpt.serve.service import Service


def create_app(
    engine: Engine,
    name: str,
    limits: Limits,
    *,
    access: Access | None = None,
    origins: Sequence[str] = (),
    isolate_cache: bool = False,
    inspects: bool = True,
) -> FastAPI:
    """Create the application.

    Args:
        engine: generates replies; the caller closes it.
        name: the name of the model for clients.
        limits: the limits and defaults of requests.
        access: who may connect; None admits everyone.
        origins: allowed CORS origins.
        isolate_cache: whether clients without keys share no cached prefixes.
        inspects: whether `/inspect` is served.
    """
    description = "A GPT-2 that talks, behind OpenAI's interface."
    # FastAPI's documentation pages load scripts from a CDN, so they are disabled.
    app = FastAPI(title="dialogpt", description=description, docs_url=None, redoc_url=None)
    service = Service(engine, name, limits, Metrics(engine), isolate_cache, inspects)
    app.add_middleware(AccessMiddleware, access=access or Access(), metrics=service.metrics)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    app.add_exception_handler(RequestError, on_request_error)
    app.add_exception_handler(RequestValidationError, on_not_valid)
    app.add_exception_handler(HTTPException, on_http_error)
    page.add_routes(app)
    if inspects:
        inspect.add_routes(app, service)
    for routes in (completions, responses_api, ollama, models, operations):
        routes.add_routes(app, service)
    return app
