"""What is counted, for Prometheus. Every app has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from karma_electric.models.engines.live import Load

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters and gauges of one server. Labels have few values: routes, status codes and words of our own."""

    def __init__(self, load: Callable[[], Load], ready: Callable[[], bool]) -> None:
        """`load()` and `ready()` are asked when the metrics are read."""
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Counter(
            "karma_http_requests",
            "Requests, by route and status (499: the client left).",
            ["route", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "karma_http_request_seconds",
            "Time from request to the last byte.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.first_token = Histogram(
            "karma_first_token_seconds", "Time from request to the first token.", buckets=_SECONDS, registry=registry
        )
        self.tokens = Counter("karma_tokens", "Tokens of prompts and of answers.", ["kind"], registry=registry)
        self.finished = Counter("karma_answers_finished", "Answers, by why they ended.", ["reason"], registry=registry)
        self.cap_rate = Histogram(
            "karma_cap_rate", "Share of (token, capped block) pairs that the cap moved, by answer.",
            buckets=[n / 10 for n in range(11)], registry=registry,
        )  # fmt: skip
        answers = Gauge("karma_answers", "Answers being given, and waiting.", ["state"], registry=registry)
        answers.labels("active").set_function(lambda: load().active)
        answers.labels("waiting").set_function(lambda: load().waiting)
        Gauge("karma_ready", "1 if requests are taken.", registry=registry).set_function(lambda: float(ready()))

    def text(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self._registry)
