"""The server's counts as Ray's: each node of a cluster tells them at its metrics port, with the replica's name. Knows Ray's metrics, and what is counted."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ray.serve import metrics

from .metrics import SECONDS, Metrics

if TYPE_CHECKING:
    from .turns import Outcome


class RayMetrics(Metrics):
    """As Metrics, which it also is; what changes by itself is told with each request."""

    def __init__(self, size: Callable[[], tuple[int, int]], queue: Callable[[], tuple[int, int]]):
        super().__init__(size, queue)
        self._size_now, self._queue_now = size, queue
        self._ray_requests = metrics.Counter("lm2_requests", "Requests answered, by path and status.", ("path", "status"))
        self._ray_tokens = metrics.Counter("lm2_tokens", "Tokens of prompts, those of them not computed again, and of answers.", ("kind",))
        self._ray_first = metrics.Histogram("lm2_first_token_seconds", "From an answer's begin to the end of its prompt.", list(SECONDS))
        self._ray_answer = metrics.Histogram("lm2_answer_seconds", "From an answer's begin to its end.", list(SECONDS))
        self._ray_reuse = metrics.Counter("lm2_transcripts", "Whole transcripts: begun anew, or found in a memory.", ("memory",))
        self._ray_dropped = metrics.Counter("lm2_sessions_dropped", "Moments dropped from memory without a file.")
        self._ray_gauges = [
            metrics.Gauge("lm2_sessions_in_memory", "Sessions in memory."),
            metrics.Gauge("lm2_session_bytes", "Bytes of the sessions in memory."),
            metrics.Gauge("lm2_queue_waiting", "Requests that wait."),
            metrics.Gauge("lm2_queue_running", "Requests that run."),
        ]

    def request(self, path: str, status: int) -> None:
        super().request(path, status)
        self._ray_requests.inc(tags={"path": path, "status": str(status)})
        for gauge, value in zip(self._ray_gauges, (*self._size_now(), *self._queue_now()), strict=True):
            gauge.set(value)

    def answered(self, outcome: "Outcome") -> None:
        super().answered(outcome)
        began = outcome.began
        for kind, count in (("prompt", began.prompt_tokens), ("cached", began.cached_tokens), ("completion", outcome.completion_tokens)):
            if count:
                self._ray_tokens.inc(count, tags={"kind": kind})
        if began.reuse is not None:
            self._ray_reuse.inc(tags={"memory": "found" if began.reuse else "none"})
        self._ray_first.observe(max(outcome.first_seconds, 1e-6))
        self._ray_answer.observe(max(outcome.seconds, 1e-6))

    def dropped(self) -> None:
        super().dropped()
        self._ray_dropped.inc()
