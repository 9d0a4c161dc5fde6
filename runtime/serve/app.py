"""The ASGI application: which path is which endpoint. Knows the others by name only."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from . import about, chat, conversations, responses, sessions
from .guard import Guard
from .http import LEFT, Endpoint, Left, answer_of, refused
from .refusal import Refusal
from .service import Service

ROUTES: tuple[tuple[str, str, Endpoint], ...] = (
    ("GET", "/health", about.health),
    ("GET", "/metrics", about.metrics),
    ("GET", "/props", about.props),
    ("GET", "/v1/models", about.models),
    ("GET", "/v1/models/{id}", about.model),
    ("POST", "/v1/chat/completions", chat.chat),
    ("POST", "/v1/completions", chat.completion),
    ("GET", "/v1/sessions", sessions.listing),
    ("POST", "/v1/sessions", sessions.create),
    ("GET", "/v1/sessions/{id}", sessions.show),
    ("DELETE", "/v1/sessions/{id}", sessions.delete),
    ("POST", "/v1/sessions/{id}/fork", sessions.fork),
    ("POST", "/v1/sessions/{id}/undo", sessions.undo),
    ("POST", "/v1/sessions/{id}/read", sessions.read),
    ("GET", "/v1/sessions/{id}/held", sessions.held),
    ("POST", "/v1/sessions/{id}/forget", sessions.forget),
    ("GET", "/v1/sessions/{id}/file", sessions.get_file),
    ("PUT", "/v1/sessions/{id}/file", sessions.put_file),
    ("POST", "/v1/responses", responses.create),
    ("GET", "/v1/responses/{id}", responses.show),
    ("DELETE", "/v1/responses/{id}", responses.delete),
    ("POST", "/v1/conversations", conversations.create),
    ("GET", "/v1/conversations/{id}", conversations.show),
    ("POST", "/v1/conversations/{id}", conversations.update),
    ("DELETE", "/v1/conversations/{id}", conversations.delete),
    ("GET", "/v1/conversations/{id}/items", conversations.items),
    ("POST", "/v1/conversations/{id}/items", conversations.add),
    ("GET", "/v1/conversations/{id}/items/{item}", conversations.one),
)


def build(service: Service, local: bool = True) -> ASGIApp:
    """The application over a service, which is started with it. local: see Guard."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.start()
        yield

    routes = [Route(path, _counted(path, endpoint), methods=[method]) for method, path, endpoint in ROUTES]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _http_error})
    app.router.redirect_slashes = False
    app.state.service = service
    return Guard(app, service, local)


def _counted(path: str, endpoint: Endpoint) -> Endpoint:
    """The endpoint under its path's name, for the metrics; what it raises as an answer."""

    async def named(request: Request) -> Response:
        request.scope["lm2.path"] = path
        try:
            return await endpoint(request)
        except Left:
            return Response(status_code=LEFT)
        except Exception as error:
            return answer_of(error, request.method, path, request.app.state.service.hide)

    return named


async def _http_error(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    what = {404: "there is no such path", 405: f"{request.method} is not for this path"}.get(status, "the request cannot be served")
    return refused(Refusal(status, f"{request.url.path[:80]}: {what}", code="not_found" if status == 404 else None))
