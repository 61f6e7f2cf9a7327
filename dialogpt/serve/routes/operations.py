"""For operators: `/health` and `/metrics`."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import generate_latest

from dialogpt.serve.service import Service


def add_routes(app: FastAPI, service: Service) -> None:
    """Add health and metrics."""

    @app.get("/health")
    async def health() -> JSONResponse:
        """Report whether the server is alive and accepts requests, and its load."""
        engine = service.engine
        status = "ok" if engine.ready else "shutting down" if engine.alive else "decoding has ended; start it again"
        content = {"status": status, "alive": engine.alive, "ready": engine.ready, "model": service.name}
        content |= {"running": engine.running, "waiting": engine.waiting}
        return JSONResponse(content, 200 if engine.ready else 503)

    @app.get("/health/live")
    async def live() -> Response:
        """Return 200 while the decoding thread runs; otherwise the process should be restarted."""
        return Response(status_code=200 if service.engine.alive else 503)

    @app.get("/health/ready")
    async def ready() -> Response:
        """Return 200 while requests are accepted; otherwise they should be routed elsewhere."""
        return Response(status_code=200 if service.engine.ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return the metrics in Prometheus' format."""
        content = generate_latest(service.metrics.registry)
        return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")
