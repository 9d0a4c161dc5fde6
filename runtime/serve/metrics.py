"""What the server counts, for Prometheus. Knows names and numbers; a registry of its own, so that two servers of one process do not share."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from .turns import Outcome

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """size() gives sessions in memory and their bytes; queue() requests that wait, and that run."""

    def __init__(self, size: Callable[[], tuple[int, int]], queue: Callable[[], tuple[int, int]]):
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("lm2_requests", "Requests answered, by path and status.", ("path", "status"), registry=registry)
        self._tokens = Counter("lm2_tokens", "Tokens of prompts, those of them not computed again, and of answers.", ("kind",), registry=registry)
        self._first = Histogram("lm2_first_token_seconds", "From an answer's begin to the end of its prompt.", buckets=SECONDS, registry=registry)
        self._answer = Histogram("lm2_answer_seconds", "From an answer's begin to its end.", buckets=SECONDS, registry=registry)
        self._reuse = Counter("lm2_transcripts", "Whole transcripts: begun anew, or found in a memory.", ("memory",), registry=registry)
        self._dropped = Counter("lm2_sessions_dropped", "Moments dropped from memory without a file.", registry=registry)
        for name, text, read in (
            ("lm2_sessions_in_memory", "Sessions in memory.", lambda: size()[0]),
            ("lm2_session_bytes", "Bytes of the sessions in memory.", lambda: size()[1]),
            ("lm2_queue_waiting", "Requests that wait.", lambda: queue()[0]),
            ("lm2_queue_running", "Requests that run.", lambda: queue()[1]),
        ):
            Gauge(name, text, registry=registry).set_function(read)

    def request(self, path: str, status: int) -> None:
        """A request was answered. path: of the route, without ids."""
        self._requests.labels(path, str(status)).inc()

    def answered(self, outcome: "Outcome") -> None:
        began = outcome.began
        for kind, count in (("prompt", began.prompt_tokens), ("cached", began.cached_tokens), ("completion", outcome.completion_tokens)):
            self._tokens.labels(kind).inc(count)
        if began.reuse is not None:
            self._reuse.labels("found" if began.reuse else "none").inc()
        self._first.observe(outcome.first_seconds)
        self._answer.observe(outcome.seconds)

    def dropped(self) -> None:
        self._dropped.inc()

    def text(self) -> bytes:
        """All of it in Prometheus' text format, version 0.0.4."""
        return generate_latest(self._registry)
