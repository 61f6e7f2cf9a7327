"""`/v1/models`: the one model that is served."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from dialogpt.serve.service import Service


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the list of models, and the one model by its name."""

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the one model."""
        return {"object": "list", "data": [service.model_object]}

    @app.get("/v1/models/{asked:path}")
    async def model(asked: str) -> dict[str, Any]:
        """Describe the model of this name."""
        service.require_model(asked)
        return service.model_object
