"""The metrics of a server, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from dialogpt.serve.engine import Engine


class Metrics:
    """The counters of one server."""

    def __init__(self, engine: Engine) -> None:
        """Create all metrics, starting at zero."""
        self.registry = CollectorRegistry()
        self.requests = Counter("dialogpt_requests", "Requests by status.", ["status"], registry=self.registry)
        self.key_requests = Counter(
            "dialogpt_key_requests", "Requests by the name of their API key.", ["key"], registry=self.registry
        )
        self.prompt = Counter("dialogpt_prompt_tokens", "Tokens of prompts.", registry=self.registry)
        self.generated = Counter("dialogpt_tokens", "Generated tokens.", registry=self.registry)
        self.first = Histogram("dialogpt_first_token_seconds", "From request to first token.", registry=self.registry)
        running = Gauge("dialogpt_replies_running", "Replies that are being generated.", registry=self.registry)
        running.set_function(lambda: engine.running)
        waiting = Gauge("dialogpt_requests_waiting", "Requests in the queue.", registry=self.registry)
        waiting.set_function(lambda: engine.waiting)
