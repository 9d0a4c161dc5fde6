"""Requests and answers: a body read within its limits, waiting for a job without holding a place for a client that left, events as they come. Knows
Starlette and tickets; no model."""

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ...models.errors import LM2Error
from . import fields
from .family import SCOPE
from .refusal import Refusal, refusal_of
from .scheduler import Ticket
from .service import Service
from .store import Name
from .turns import Began, Outcome, Piece

LEFT = 499  # the client went away: nobody reads the answer
log = logging.getLogger("lm2.serve")
PING: tuple[str, Any] = ("ping", None)
Endpoint = Callable[[Request], Awaitable[Response]]


class Left(Exception):
    """The client went away."""


class Voice(Protocol):
    """How an endpoint tells of an answer as events; each a text of whole events."""

    def begin(self) -> str: ...

    def piece(self, piece: Piece) -> str: ...

    def done(self, outcome: Outcome) -> str: ...

    def failed(self, refusal: Refusal) -> str: ...


def service_of(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


def owner_of(request: Request) -> str:
    found: str = request.scope["lm2.owner"]
    return found


def family_of(request: Request) -> str | None:
    """The family that what the request makes is to be of; None where it is one server that answers."""
    found: str | None = request.scope.get(SCOPE)
    return found


async def raw_body(request: Request, most: int, patience: float) -> bytes:
    """The body. Raises Refusal 413 for more than `most` bytes, as soon as it is known, and 408 where it takes more than `patience` seconds."""
    said = request.headers.get("content-length", "")
    too_large = Refusal(413, f"the body has more than {most} bytes, the most of such a request", code="body_too_large")
    if said.isascii() and said.isdigit() and int(said[:20]) > most:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(patience):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise Refusal(408, f"the body did not come within {patience:g} seconds", code="timeout") from None
    except ClientDisconnect:
        raise Left from None
    return b"".join(parts)


async def json_body(request: Request, table: fields.Table) -> dict[str, Any]:
    """The fields of the body. Raises Refusal."""
    limits = service_of(request).limits
    return fields.read(fields.parse(await raw_body(request, limits.body, limits.patience)), table)


async def finished(request: Request, ticket: Ticket) -> Any:
    """What the job returns. A client that goes away gives up its place. Raises the job's error, or Left."""
    leaving = asyncio.create_task(_left(request.receive))
    result = asyncio.create_task(ticket.result())
    try:
        await asyncio.wait({leaving, result}, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise Left
        return result.result()
    finally:
        ticket.cancel()
        leaving.cancel()
        result.cancel()


async def work(request: Request, job: Callable[[Ticket], Any], name: Name | None = None) -> Any:
    """Run a job beside others, but none on the same `name`, and wait for it."""
    return await finished(request, service_of(request).scheduler.submit(job, name))


def told_of(began: Began) -> dict[str, str]:
    """Headers of an answer: its seed, how many of a transcript's turns were heard already, or `none`, and which turns it was recalled from, if any."""
    reuse = {} if began.reuse is None else {"x-lm2-reuse": str(began.reuse) if began.reuse else "none"}
    recalled = {"x-lm2-recalled": ", ".join(map(str, began.recalled))} if began.recalled else {}
    return {"x-lm2-seed": str(began.seed), **reuse, **recalled}


def event(data: Any, name: str | None = None) -> str:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return (f"event: {name}\n" if name else "") + f"data: {text}\n\n"


class Events(Response):
    """An answer as server-sent events. What fails before the first of them is an answer with its own status; later it is an event, and the stream ends.

    ping: seconds between comments while nothing is said.
    """

    def __init__(self, ticket: Ticket, voice: Voice, ping: float, hide: dict[str, str]):
        super().__init__()
        self.ticket, self.voice, self.ping, self.hide = ticket, voice, ping, hide

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        leaving = asyncio.create_task(_left(receive))
        said: asyncio.Task[tuple[str, Any]] = asyncio.create_task(self.ticket.next())
        started = False
        try:
            while True:
                await asyncio.wait({leaving, said}, timeout=self.ping, return_when=asyncio.FIRST_COMPLETED)
                if leaving.done():
                    return
                kind, value = said.result() if said.done() else PING
                if kind == "failed" and not started:
                    refusal = refusal_of(value, self.hide)
                    await refused(refusal)(scope, receive, send)
                    return
                if not started:
                    started = True
                    headers = {"x-accel-buffering": "no", **(told_of(value) if kind == "began" else {})}
                    await send({"type": "http.response.start", "status": 200, "headers": _raw({"content-type": "text/event-stream", **headers})})
                    await _write(send, self.voice.begin())
                await _write(send, self._text(kind, value))
                if kind in ("done", "failed"):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    return
                if kind != "ping":
                    said = asyncio.create_task(self.ticket.next())
        finally:
            self.ticket.cancel()
            leaving.cancel()
            said.cancel()

    def _text(self, kind: str, value: Any) -> str:
        if kind == "ping":
            return ": ping\n\n"
        if kind == "piece":
            return self.voice.piece(value)
        if kind == "failed":
            return self.voice.failed(refusal_of(value, self.hide))
        if kind == "done" and value.finish == "interrupted":
            return self.voice.failed(Refusal(503, "the server is stopping: the answer ends here", code="stopping"))
        return self.voice.done(value) if kind == "done" else ""


def refused(refusal: Refusal) -> JSONResponse:
    """The answer that tells of a refusal."""
    return JSONResponse(refusal.body(), refusal.status, refusal.headers())


def answer_of(error: Exception, method: str, path: str, hide: dict[str, str]) -> JSONResponse:
    """The answer that tells of an error; one that nobody meant to raise goes to the log."""
    refusal = refusal_of(error, hide)
    if not isinstance(error, LM2Error):
        log.error("%s %s failed", method, path, exc_info=error)
    return refused(refusal)


def whole(outcome: Outcome) -> Outcome:
    """An outcome that is an answer. Raises Refusal 503 where the server's end cut it off."""
    if outcome.finish == "interrupted":
        raise Refusal(503, "the server is stopping: the answer was cut off", code="stopping", retry_after=5)
    return outcome


def request_id() -> str:
    return f"req_{secrets.token_hex(12)}"


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _write(send: Send, text: str) -> None:
    if text:
        await send({"type": "http.response.body", "body": text.encode("utf-8", "replace"), "more_body": True})


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
