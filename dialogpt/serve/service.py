"""State that all endpoints share: the engine, the model's name, the limits and the metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from dialogpt.serve.access import Client
from dialogpt.serve.engine import Engine
from dialogpt.serve.errors import RequestError
from dialogpt.serve.metrics import Metrics
from dialogpt.serve.schemas import Limits


@dataclass(frozen=True, eq=False)
class Service:
    """One served model.

    Attributes:
        engine: generates replies.
        name: the name of the model for clients.
        limits: the limits and defaults of requests.
        metrics: the metrics of the server.
        isolate_cache: whether clients without keys share no cached prefixes.
        inspects: whether `/inspect` is served.
        created: when the server started, in seconds since 1970.
    """

    engine: Engine
    name: str
    limits: Limits
    metrics: Metrics
    isolate_cache: bool = False
    inspects: bool = True
    created: int = field(default_factory=lambda: int(time.time()))

    def require_model(self, asked: str | None) -> None:
        """Raise a `RequestError` if a request names another model; one that names none gets this one."""
        if asked not in (None, "", self.name):
            sentence = f"there is no model {asked!r} here; there is {self.name!r}"
            raise RequestError(404, sentence, "model_not_found", "model")

    def cache_owner(self, client: Client, user: str | None) -> str:
        """Return who owns the prefixes that a request may use: its key or, if isolated, its `user` or connection."""
        if client.has_key:
            return f"key {client.name}"
        return f"user {user or client.connection}" if self.isolate_cache else ""

    @property
    def model_object(self) -> dict[str, Any]:
        """OpenAI's description of a model, with its window and its default settings."""
        limits, settings = self.limits, self.limits.settings
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "dialogpt",
            "context_length": limits.positions,
            "max_completion_tokens": limits.new_tokens,
            "history_tokens": limits.history_tokens,
            "inspect": self.inspects,
            "defaults": {
                "temperature": settings.temperature if settings.do_sample else 0,
                "top_k": settings.top_k,
                "top_p": settings.top_p,
                "repetition_penalty": settings.repetition_penalty,
                "max_tokens": settings.max_new_tokens,
            },
        }
