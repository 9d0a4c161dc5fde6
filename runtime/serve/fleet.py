"""Several servers on Ray Serve: replicas that hold the model and share a folder, and a front that passes each request to the replica of its family. Knows Ray;
what a server does it leaves to the others.

`application` is for `serve run lm2.runtime.serve.fleet:application model=lm2-tiny store=/shared/chats replicas=2` and for Ray's config files; `run` is
`lm2 serve --ray`.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError, RequestCancelledError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Message

from ...models.errors import LM2Error, PromptError
from .front import Asked, Front, Lost, answered
from .limits import Limits
from .owners import Owners, check_key, read_keys
from .refusal import Refusal

NAME = "lm2"
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
STRICT = {"num_fallback_replicas": 0}  # else a busy replica's sessions go to others
GRACE = 30.0  # seconds that answers have to end, and moments to be written
ENDING = (RayActorError, ReplicaUnavailableError)
AWAY = (BackPressureError, DeploymentUnavailableError)


@dataclass(frozen=True)
class Settings:
    """What a fleet is made of; names and defaults are those of `lm2 serve`'s options. store: a folder that all replicas see. cpus, gpus: what Ray keeps for a
    replica. health: seconds between two looks at a replica."""

    model: str = "smollm2"
    store: str = ""
    replicas: int = 2
    fronts: int = 1
    api_key_file: str = ""
    api_keys: str = ""
    backend: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    memory: bool = True
    window: int = 0
    store_bytes: int = 10 << 30
    session_bytes: int = 1 << 30
    max_sessions: int = 256
    max_tokens: int = 2048
    max_queue: int = 64
    max_running: int = 8
    max_body: int = 4 << 20
    cpus: float = 1.0
    gpus: float = 0.0
    health: float = 5.0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Settings":
        """Settings from a config file's or a command line's words. Raises PromptError naming what is wrong."""
        kinds = {field.name: type(field.default) for field in fields(cls)}
        for name in given:
            if name not in kinds:
                raise PromptError(f"{name}: a fleet has no such setting; it has {', '.join(kinds)}")
        made = cls(**{name: _read(name, value, kinds[name]) for name, value in given.items()})
        if not made.store:
            raise PromptError("store: replicas need a folder that they all see: give one")
        if made.replicas < 1 or made.fronts < 1:
            raise PromptError(f"replicas {made.replicas} and fronts {made.fronts} must be 1 or more")
        return made

    @property
    def limits(self) -> Limits:
        return Limits(self.max_body, self.max_tokens, self.max_queue, self.max_running, self.max_sessions, self.session_bytes)

    @property
    def owners(self) -> Owners:
        """Who may ask. Raises PromptError."""
        keys = [check_key(key, "api_keys") for key in self.api_keys.split()]
        return Owners(keys + (read_keys(Path(self.api_key_file)) if self.api_key_file else []))


def application(given: dict[str, Any]) -> serve.Application:
    """The Serve application of a fleet with these settings. Raises PromptError."""
    settings = Settings.of(given)
    limits = settings.limits
    replicas = serve.deployment(Replica).options(
        name="Replica", num_replicas=settings.replicas, max_ongoing_requests=limits.queue + limits.running + 32, max_queued_requests=limits.queue,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus}, health_check_period_s=settings.health, health_check_timeout_s=30,
        graceful_shutdown_timeout_s=GRACE, request_router_config=RequestRouterConfig(request_router_class=ROUTER, request_router_kwargs=STRICT),
    )  # fmt: skip
    front = serve.deployment(serve.ingress()(Ingress)).options(
        name="Front", num_replicas=settings.fronts, max_ongoing_requests=1024, ray_actor_options={"num_cpus": 0}, graceful_shutdown_timeout_s=GRACE
    )
    return front.bind(settings, replicas.bind(settings))


class Replica:
    """A server without a port."""

    async def __init__(self, settings: Settings):  # type: ignore[misc]  # Ray awaits it
        from ..loading import load
        from .app import build
        from .ray_metrics import RayMetrics
        from .service import Service
        from .store import Store

        def model() -> Any:
            return load(settings.model, settings.backend, settings.device, settings.dtype, settings.threads, memory=settings.memory)

        self._ended: BaseException | bool | None = False
        store = Store(Path(settings.store), settings.store_bytes, shared=True)
        owners = settings.owners
        self.service = Service(model, owners, settings.limits, store, settings.window or None, ended=self._end, metrics=RayMetrics)
        self.app: ASGIApp = build(self.service, local=not owners.closed)
        self.service.start()
        while not self.service.ready and self._ended is False:
            await asyncio.sleep(0.02)
        self.check_health()

    def _end(self, error: BaseException | None) -> None:
        self._ended = error

    def check_health(self) -> None:
        """Raise where the model's thread ended without being asked to."""
        if isinstance(self._ended, BaseException):
            raise RuntimeError(str(self._ended)) from self._ended

    async def ask(self, scope: dict[str, Any], body: bytes) -> AsyncGenerator[Message, None]:
        """The ASGI messages of an answer."""
        async for message in answered(self.app, scope, body):
            yield message

    async def end(self) -> None:
        """Answers end at a whole turn, and everything is written."""
        self.service.scheduler.stop()
        await asyncio.to_thread(self.service.scheduler.join, GRACE)

    async def __del__(self) -> None:
        await self.end()


class Ingress:
    """The front's deployment."""

    def __init__(self, settings: Settings, replicas: DeploymentHandle[Any]):
        self.settings, self.replicas = settings, replicas

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return Front(self._ask, self.settings.owners, self.settings.limits)

    async def _ask(self, asked: Asked) -> AsyncGenerator[Message, None]:
        answer = self.replicas.options(stream=True, session_id=asked.at.family).ask.remote(asked.scope, asked.body)
        try:
            async for message in answer:
                yield message
        except (*ENDING, RequestCancelledError) as error:
            raise Lost(str(error)) from None
        except AWAY:
            raise Refusal(503, "no replica is there to answer, or all are busy: try again later", code="queue_full", retry_after=2) from None
        finally:
            answer.cancel()


def run(settings: Settings, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM: on the cluster that RAY_ADDRESS names, else on one of this machine's own. Raises PromptError; LM2Error where Ray does not
    start, or a replica."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    made, stop = application(vars(settings)), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        _connect(settings)
        serve.start(http_options={"host": host, "port": port})
        say(f"{settings.replicas} replicas on Ray Serve, loading the model")
        serve.run(made, name=NAME, route_prefix="/")
        say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}; Ctrl-C stops")
        while not stop.wait(0.2):
            pass
        _end()
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        raise LM2Error(f"Ray Serve did not start: {' '.join(str(error).split())[:400]}") from None
    finally:
        if ray.is_initialized():
            serve.shutdown()
            ray.shutdown()


def _connect(settings: Settings) -> None:
    import ray

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        cpus = max(os.cpu_count() or 1, int(settings.replicas * settings.cpus + 0.99))
        ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, object_store_memory=256 << 20)


def _end() -> None:
    """Tell every replica to end its answers at a whole turn and to write."""
    try:
        serve.get_deployment_handle("Replica", NAME).broadcast("end").results(timeout_s=GRACE)
    except Exception as error:
        raise LM2Error(f"a replica did not end at a whole turn: {error}") from None


def _read(name: str, value: Any, kind: type) -> Any:
    if kind is bool and str(value).lower() in ("true", "false", "1", "0"):
        return str(value).lower() in ("true", "1")
    try:
        if kind is bool or value is None:
            raise ValueError
        return kind(value)
    except (TypeError, ValueError):
        raise PromptError(f"{name} must be {kind.__name__}, it is {str(value)[:40]!a}") from None
