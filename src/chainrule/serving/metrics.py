"""What a server tells of itself, in the form of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Counters of one server; no two servers of a process share them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Counter("chainrule_requests", "Answered requests.", ("path", "status"), registry=registry)
        self.seconds = Histogram(
            "chainrule_request_seconds",
            "From the head of a request to the end of its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.open = Gauge("chainrule_requests_open", "Requests that are being answered.", registry=registry)
        self.waiting = Gauge(
            "chainrule_rows_waiting", "Rows in the queue and in the model.", ("queue",), registry=registry
        )
        self.rows = Counter("chainrule_rows", "Rows that a model has answered.", ("model",), registry=registry)
        self.batch = Histogram(
            "chainrule_batch_rows", "Rows of a batch.", ("model",), buckets=_SIZES, registry=registry
        )
        self.forward = Histogram(
            "chainrule_batch_seconds", "Time of the model for a batch.", ("model",), buckets=_SECONDS, registry=registry
        )
        self.written = Counter(
            "chainrule_tokens_written", "Tokens that a model has written.", ("model",), registry=registry
        )
        self.dropped = Counter("chainrule_requests_dropped", "Requests nobody waits for any more.", registry=registry)
        self.alarms = Counter("chainrule_alarms", "Alarms of the monitor.", ("model",), registry=registry)
        self.unwatched = Counter(
            "chainrule_rows_unwatched", "Answered rows that the monitor could not write.", registry=registry
        )
        self.arms = Counter(
            "chainrule_arm_requests", "Requests that a split has sent to a model.", ("model",), registry=registry
        )
        self.shadows = Counter(
            "chainrule_shadow_rows",
            "Rows a shadow was asked of, by what came of it.",
            ("model", "said"),
            registry=registry,
        )
        self.reloads = Counter(
            "chainrule_reloads", "New versions of a model, by what came of it.", ("model", "outcome"), registry=registry
        )
        self._count_loads()

    def _count_loads(self) -> None:
        registry = self._registry
        self.bytes = Gauge(
            "chainrule_model_bytes",
            "Weights of a model in memory; 0 while they are not.",
            ("model",),
            registry=registry,
        )
        self.loads = Counter(
            "chainrule_model_loads",
            "Models loaded because requests waited for them, by what came of it.",
            ("model", "outcome"),
            registry=registry,
        )
        self.load_seconds = Histogram(
            "chainrule_model_load_seconds", "Time of loading one.", ("model",), buckets=_SECONDS, registry=registry
        )
        self.evictions = Counter(
            "chainrule_model_evictions", "Models that made room for others.", ("model",), registry=registry
        )

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)
