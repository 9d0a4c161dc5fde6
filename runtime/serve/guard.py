"""What stands before every endpoint: the key, the origin, the host's name, the model being loaded; and errors in the shape clients read. Pure ASGI.

A page of somebody else's, open in a browser on this machine, must not reach a server without a key: other origins than localhost are refused, and names
other than this machine's too (a name that a page's owner lets point here).
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .http import refused, request_id
from .page import PATHS
from .refusal import Refusal
from .service import Service

OPEN = ("/health", *PATHS)


class Guard:
    """local: the server listens on this machine alone, and knows itself by no other name."""

    def __init__(self, app: ASGIApp, service: Service, local: bool):
        self.app, self.service, self.local = app, service, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, began, status = Headers(scope=scope), False, 500
        origin, own = headers.get("origin"), request_id()

        async def sending(message: Message) -> None:
            nonlocal began, status
            if message["type"] == "http.response.start":
                began, status = True, message["status"]
                out = MutableHeaders(raw=message["headers"])
                out["x-request-id"] = own
                out["x-content-type-options"] = "nosniff"
                out["cache-control"] = "no-store"
                if origin is not None and is_local(origin):
                    out["access-control-allow-origin"] = origin
                    out["access-control-expose-headers"] = "x-lm2-reuse, x-lm2-recalled, x-lm2-seed, x-request-id, etag, retry-after"
                    out["vary"] = "origin"
            await send(message)

        try:
            answer = self._before(scope, headers)
            await (answer or self.app)(scope, receive, sending)
        except Refusal as refusal:
            if not began:
                await refused(refusal)(scope, receive, sending)
        finally:
            self.service.metrics.request(scope.get("lm2.path", "other"), status)

    def _before(self, scope: Scope, headers: Headers) -> Response | None:
        """An answer that is given at once. Raises Refusal."""
        if self.local and not self.service.owners.closed and not is_loopback(_host(headers.get("host", ""))):
            raise Refusal(403, "this server answers to localhost: use that name, or serve with --api-key", code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and not is_local(origin):
            raise Refusal(403, "pages of this origin may not ask here", code="wrong_origin")
        if scope["method"] == "OPTIONS" and origin is not None:
            methods = "GET, POST, PUT, DELETE"
            asked = Request(scope).headers.get("access-control-request-headers", "")
            return Response(status_code=204, headers={"access-control-allow-methods": methods, "access-control-allow-headers": asked, "access-control-max-age": "600"})
        if scope["path"] in OPEN:  # says nothing that only some may know
            return None
        scope["lm2.owner"] = self.service.owners.of(headers.get("authorization"))
        if not self.service.ready:
            raise Refusal(503, "the model is being loaded", code="loading", retry_after=2)
        return None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host's name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_local(origin: str) -> bool:
    """Whether a page's origin is this machine, whatever its port."""
    try:
        return urlsplit(origin).scheme in ("http", "https") and is_loopback(urlsplit(origin).hostname or "")
    except ValueError:
        return False


def _host(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
