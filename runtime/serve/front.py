"""What stands before several servers of one folder: it reads a request, and passes it to the server that its family is at. Pure ASGI; knows how a server is
asked by a function that it is given, so neither Ray nor any balancer.

A request that a server's end cut off before a word of the answer is passed on once more where that changes nothing but the answer. In a named session or a
conversation it could be said twice, so there the client decides.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from .family import SCOPE, Belongs, belongs
from .http import Left, event, raw_body, refused
from .limits import Limits
from .owners import Owners
from .refusal import Refusal

FILE_BYTES_MAX = 1 << 30  # of a session file that is put; the server knows how large one of its model can be
HEALTH_SECONDS = 5.0
KEPT = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers", "client", "server")
START, BODY = "http.response.start", "http.response.body"


class Asked(NamedTuple):
    """A request on its way: what of its ASGI scope can travel, with its family; its whole body; and where it belongs."""

    scope: dict[str, Any]
    body: bytes
    at: Belongs


Ask = Callable[[Asked], AsyncGenerator[Message, None]]


class Lost(Exception):
    """The server that was to answer, or was answering, has ended."""


class Front:
    """ask(asked) gives the ASGI messages of an answer, from the server of the request's family; closing it takes the request back. It raises Lost, or Refusal
    where nobody can be asked."""

    def __init__(self, ask: Ask, owners: Owners, limits: Limits):
        self.ask, self.owners, self.limits = ask, owners, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        if scope["type"] != "http":
            return
        try:
            asked = await self._asked(Request(scope, receive))
            await self._pass_on(asked, receive, send)
        except Left:
            return
        except Refusal as refusal:
            await refused(refusal)(scope, receive, send)

    async def _asked(self, request: Request) -> Asked:
        """The request, read. Raises Refusal: a key that is not known, before anything is read."""
        path, method, headers = request.scope["path"], request.method, request.headers
        if path == "/metrics":
            raise Refusal(404, "several servers answer here: what each counts is at the metrics port of its node", code="not_found")
        open_to_all = path in ("/", "/health") or method == "OPTIONS"
        owner = "" if open_to_all else self.owners.of(headers.get("authorization"))
        most = FILE_BYTES_MAX if method == "PUT" and path.endswith("/file") else self.limits.body
        body = await raw_body(request, most, self.limits.patience)
        at = belongs(method, path, headers.get("x-session-id") or None, owner, body)
        return Asked({key: request.scope[key] for key in KEPT if key in request.scope} | {SCOPE: at.family}, body, at)

    async def _pass_on(self, asked: Asked, receive: Receive, send: Send) -> None:
        """Ask, and hand on what is said. Raises Refusal, or Left, before the answer began; what breaks off later is told in the stream."""
        leaving = asyncio.create_task(_left(receive))
        start: Message | None = None
        try:
            for last in (False, True):
                try:
                    async for message in self._said(asked, leaving):
                        start = start or message
                        await send(message)
                    return
                except Lost:
                    if last or start is not None or not asked.at.repeats:
                        raise _lost(asked.at) from None
        except Refusal as refusal:
            if start is None:
                raise
            if _is_stream(start):
                await send({"type": BODY, "body": event(refusal.body()).encode(), "more_body": False})
        finally:
            leaving.cancel()

    async def _said(self, asked: Asked, leaving: "asyncio.Task[None]") -> AsyncGenerator[Message, None]:
        """What the server says until it has answered. Raises Left; Refusal 503 where /health has no answer in time."""
        answer = self.ask(asked)
        seconds = HEALTH_SECONDS if asked.scope["path"] == "/health" else None
        try:
            while True:
                said = asyncio.ensure_future(anext(answer, None))
                await asyncio.wait({leaving, said}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                if not said.done():
                    said.cancel()
                    await asyncio.wait({said})
                    raise Left if leaving.done() else Refusal(503, "no server is there to answer", code="loading", retry_after=2)
                message = said.result()
                if message is None:
                    return
                yield message
        finally:
            await answer.aclose()


def _lost(at: Belongs) -> Refusal:
    what = "send the request again" if at.repeats else "what it had not said to its end was not said: look at what the session heard before you send it again"
    return Refusal(503, f"the server that answered has ended, another goes on from here: {what}", code="replica_lost", retry_after=1)


def _is_stream(start: Message) -> bool:
    return any(name.lower() == b"content-type" and value.startswith(b"text/event-stream") for name, value in start.get("headers", ()))


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


async def answered(app: Callable[..., Any], scope: Mapping[str, Any], body: bytes) -> AsyncGenerator[Message, None]:
    """The ASGI messages with which an application answers a request that has travelled. Closing it is the client's leaving."""
    said: asyncio.Queue[Message | None] = asyncio.Queue()
    gone = asyncio.Event()
    parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if parts:
            return parts.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(dict(scope), receive, said.put)
        finally:
            said.put_nowait(None)

    running = asyncio.create_task(run())
    try:
        while (message := await said.get()) is not None:
            yield message
        await running
    finally:
        gone.set()
        if not running.done():
            await asyncio.wait({running}, timeout=30)
