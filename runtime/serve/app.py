"""The ASGI application: which path is which endpoint. Knows the others by name only."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from .guard import Guard
from .http import LEFT, Endpoint, Left, answer_of, refused
from .openapi import document
from .refusal import Refusal
from .routes import ROUTES
from .service import Service


def build(service: Service, local: bool = True) -> ASGIApp:
    """The application over a service that somebody else starts. local: see Guard."""
    routes = [Route(row.path, _counted(row.path, row.endpoint), methods=[row.method]) for row in ROUTES]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
    app.router.redirect_slashes = False
    app.state.service, app.state.openapi = service, document(ROUTES)
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
    answer = refused(Refusal(status, f"{request.scope['path'][:80]}: {what}", code="not_found" if status == 404 else None))
    answer.headers.update(getattr(error, "headers", None) or {})  # Allow, of a 405
    return answer
