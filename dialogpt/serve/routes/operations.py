"""For operators: `/health` and `/metrics`."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from prometheus_client import generate_latest

from dialogpt.serve.errors import RequestError
from dialogpt.serve.service import Service


def add_routes(app: FastAPI, service: Service) -> None:
    """Add health and metrics."""

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Tell whether the server works, and how much it has to do."""
        engine = service.engine
        if not engine.alive:
            raise RequestError(503, "decoding has ended; start the server again")
        return {"status": "ok", "model": service.name, "running": engine.running, "waiting": engine.waiting}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return the metrics in Prometheus' format."""
        content = generate_latest(service.metrics.registry)
        return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")
