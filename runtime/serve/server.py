"""Running it: a socket, uvicorn, and an end at a whole turn when Ctrl-C or SIGTERM asks for one. Knows no endpoint."""

import logging
import socket
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from ...models.errors import LM2Error, PromptError
from .app import build
from .connection import connections
from .guard import is_loopback
from .limits import Limits
from .owners import Owners
from .service import Service
from .store import Store

if TYPE_CHECKING:
    from ..loading import Model

CONNECTIONS = 1024
GRACE = 10  # seconds that answers have to end after the model's thread ended


class ServeError(LM2Error):
    """The server cannot listen where it was asked to."""


class Server(uvicorn.Server):
    """uvicorn's, which tells the model's thread of an end first, so that the answer under way ends at a whole turn."""

    def __init__(self, config: uvicorn.Config, service: Service, listening: socket.socket):
        super().__init__(config)
        self.service, self.listening = service, listening
        self.failure: BaseException | None = None
        host, port = listening.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.start()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.scheduler.stop()
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens. port 0: any free one. Raises ServeError."""
    try:
        kind = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(kind[0], kind[1])
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(kind[4])
        listening.listen(128)
    except (OSError, OverflowError, UnicodeError) as error:
        what = getattr(error, "strerror", None) or error
        raise ServeError(f"cannot listen on {host} port {port}: {what}: choose another with --host or --port") from None
    listening.setblocking(False)
    return listening


def prepared(
    load: Callable[[], "Model"], host: str, port: int, owners: Owners, limits: Limits, store: Store | None = None, window: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Server:  # fmt: skip
    """A server that listens and does not answer yet: `serve_on` runs it. Raises as `serve` does."""
    local = is_loopback(host)
    if not local and not owners.closed:
        raise PromptError(f"--host {host} can be reached by others: give --api-key or --api-key-file, or leave --host out")
    listening = bound(host, port)

    def ended(error: BaseException | None) -> None:
        server.failure, server.should_exit = error, True

    def ready(model: "Model") -> None:
        about = model.backend.describe()
        say(f"{model.name} is ready ({about.backend}, {about.device}, {about.dtype}); Ctrl-C stops")

    service = Service(load, owners, limits, store, window, ready, ended)
    config = uvicorn.Config(
        build(service, local), http=connections(limits.patience), ws="none", loop="asyncio", log_config=None, access_log=False, server_header=False, lifespan="off",
        limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=GRACE, timeout_keep_alive=30, h11_max_incomplete_event_size=64 << 10,
    )  # fmt: skip
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    server = Server(config, service, listening)
    return server


def serve_on(server: Server) -> None:
    """Answer until the server is told to end, then until everything is saved. Raises what loading the model, or saving, raised."""
    server.run([server.listening])
    scheduler = server.service.scheduler
    scheduler.stop()
    if server.service.ready or server.failure is not None:
        scheduler.join()  # a model that is still being loaded is not waited for
    if server.failure is not None:
        raise server.failure


def serve(
    load: Callable[[], "Model"], host: str, port: int, owners: Owners, limits: Limits, store: Store | None, window: int | None,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Serve until Ctrl-C or SIGTERM. say(line) hears where it listens and when the model is there. Raises what loading the model raised, or ServeError.

    Raises PromptError for a host that others can reach, without an API key.
    """
    server = prepared(load, host, port, owners, limits, store, window, say)
    say(f"listening on {server.url}, loading the model")
    serve_on(server)
