"""/v1/conversations: a session, and the items that were said in it. Responses named one go on in it. Knows HTTP and items."""

import json
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..session.session import Session
from . import asking
from .fields import Field, Table, labels
from .http import family_of, json_body, owner_of, service_of, work
from .items import item, items_kind
from .refusal import Refusal, unsupported
from .scheduler import Ticket
from .service import Service, missing, named, new_id
from .store import Name

ITEMS_MAX = 2000  # the newest ones; the memory is not touched by what leaves the list
ITEMS_BYTES_MAX = 8 << 20
PAGE_MAX = 100
CREATE: Table = {"items": Field(items_kind(0)), "metadata": Field(labels(), {})}
UPDATE: Table = {"metadata": Field(labels(), {}, need=True)}
ADD: Table = {"items": Field(items_kind(), need=True)}


async def create(request: Request) -> Response:
    """A new conversation; items given are heard."""
    service, owner = service_of(request), owner_of(request)
    d = await json_body(request, CREATE)
    given = d["items"] or []
    system, messages = asking.split(given, "items", ends=False)

    def job(ticket: Ticket) -> dict[str, Any]:
        service.check_room()
        session = service.turns.new(system)
        service.turns.hear(session, messages, ticket)
        service.check_room()  # others were made meanwhile
        name = Name("conversation", owner, new_id("conversation", family_of(request)))
        record = {"id": name.id, "created_at": int(time.time()), "metadata": d["metadata"], "items": []}
        keep(service, name, session, record, [item(m) for m in given])
        return shown(record)

    return JSONResponse(await work(request, job))


async def show(request: Request) -> Response:
    """A conversation, without its items."""
    return JSONResponse(shown(record_of(service_of(request), _name(request))))


async def update(request: Request) -> Response:
    """Replace the metadata."""
    service, name = service_of(request), _name(request)
    d = await json_body(request, UPDATE)

    def job(ticket: Ticket) -> dict[str, Any]:
        record = {**record_of(service, name), "metadata": d["metadata"]}
        service.records.put(name, record)
        return shown(record)

    return JSONResponse(await work(request, job, name))


async def delete(request: Request) -> Response:
    """Forget a conversation, its memory and its items."""
    service, name = service_of(request), _name(request)
    await work(request, lambda ticket: service.drop(name), name)
    return JSONResponse({"id": name.id, "object": "conversation.deleted", "deleted": True})


async def items(request: Request) -> Response:
    """Items, newest first unless order=asc, a page at a time: limit (1 to 100, 20), after (an item's id)."""
    query = dict(request.query_params)
    for key in query:
        if key not in ("limit", "order", "after"):
            raise Refusal(400, f"{key[:40]}: this server does not know the parameter", key[:40], "unknown_parameter")
    limit, order = query.get("limit", "20"), query.get("order", "desc")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= PAGE_MAX):
        raise Refusal(400, f"limit must be a whole number from 1 to {PAGE_MAX}", "limit", "invalid_value")
    if order not in ("asc", "desc"):
        raise Refusal(400, "order must be asc or desc", "order", "invalid_value")
    found = record_of(service_of(request), _name(request))["items"]
    found = found if order == "asc" else found[::-1]
    if "after" in query:
        at = next((i for i, one in enumerate(found) if one["id"] == query["after"]), None)
        if at is None:
            raise Refusal(400, "after must be the id of an item of this conversation", "after", "invalid_value")
        found = found[at + 1 :]
    return JSONResponse(_page(found[: int(limit)], len(found) > int(limit)))


async def add(request: Request) -> Response:
    """Hear more items: user's messages, with their answers or without."""
    service, name = service_of(request), _name(request)
    d = await json_body(request, ADD)
    system, messages = asking.split(d["items"], "items", ends=False)
    if system is not None:
        raise unsupported("items[0]", "what the conversation began with stays: a system message is given when it is made")

    def job(ticket: Ticket) -> dict[str, Any]:
        going = service.shelf.onward(service.take(name))
        service.turns.hear(going, messages, ticket)
        said = [item(m) for m in messages]
        keep(service, name, going, record_of(service, name), said)
        return _page(said, False)

    return JSONResponse(await work(request, job, name))


async def one(request: Request) -> Response:
    """One item."""
    given = request.path_params["item"]
    found = record_of(service_of(request), _name(request))["items"]
    for there in found:
        if there["id"] == given:
            return JSONResponse(there)
    raise Refusal(404, f"there is no item {given[:60]!a} in this conversation", code="item_not_found")


def keep(service: Service, name: Name, session: Session, record: dict[str, Any], said: list[dict[str, Any]]) -> None:
    """Put a session in a conversation's place, and the items that were said in it after the record's. Raises WriteError; nothing was said then."""
    record = {**record, "turns": session.at.turns, "items": newest([*record["items"], *said])}
    service.records.put_with(name, record, lambda: service.shelf.put(name, session))


def newest(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest items, within their number and their bytes; the last one always."""
    size, first = 0, max(0, len(items) - ITEMS_MAX)
    for i in range(len(items) - 1, first - 1, -1):
        size += len(json.dumps(items[i], ensure_ascii=False).encode())
        if size > ITEMS_BYTES_MAX and i < len(items) - 1:
            return items[i + 1 :]
    return items[first:]


def record_of(service: Service, name: Name) -> dict[str, Any]:
    """A conversation's record. Raises Refusal 404."""
    found = service.records.get(name)
    if found is None:
        raise missing(name.kind, name.id)
    return found


def shown(record: dict[str, Any]) -> dict[str, Any]:
    """A conversation as JSON, without its items."""
    return {"id": record["id"], "object": "conversation", "created_at": record["created_at"], "metadata": record["metadata"]}


def _page(found: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    ends = {"first_id": found[0]["id"] if found else "", "last_id": found[-1]["id"] if found else ""}
    return {"object": "list", "data": found, "has_more": more, **ends}


def _name(request: Request) -> Name:
    return named("conversation", owner_of(request), request.path_params["id"])
