"""/v1/sessions: conversations with a name, their files, and what they remember. Ids are the server's; no request names a path."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..session.session import Session
from ..statefile.check import bytes_max
from ..statefile.keeping import expected
from ..statefile.record import SessionError
from . import asking
from .asking import SAMPLING, SEED
from .fields import Field, Table, text, whole
from .http import family_of, json_body, owner_of, raw_body, service_of, work
from .refusal import Refusal, refusal_of
from .rounds import Gone
from .scheduler import Ticket
from .service import Service, missing, named, new_id
from .store import Name
from .turns import check_text

if TYPE_CHECKING:
    from ..loading import Model

FILE = "application/octet-stream"
CREATE: Table = {"system": Field(text()), "seed": SEED, **SAMPLING}
NOTHING: Table = {}
READ: Table = {"text": Field(text(1 << 30, 1), need=True), "title": Field(text(200), "text")}
FORGET: Table = {"turn": Field(whole(1, 1 << 53), need=True)}


async def listing(request: Request) -> Response:
    """The owner's sessions."""
    names = service_of(request).shelf.names("session", owner_of(request))
    return JSONResponse({"object": "list", "data": [{"id": n.id, "object": "session"} for n in names]})


async def create(request: Request) -> Response:
    """A new session, in which nothing was said."""
    service, owner = service_of(request), owner_of(request)
    d = await json_body(request, CREATE)
    system, sampling = d["system"], asking.sampling_of(d)
    if system:
        check_text(system, "system")

    def job(ticket: Ticket) -> dict[str, Any]:
        service.check_room()
        session = service.turns.new(system, seed=d["seed"], sampling=replace(service.model.sampling, **sampling))
        name = Name("session", owner, new_id("session", family_of(request)))
        service.shelf.put(name, session)
        return about(name, session)

    return JSONResponse(await work(request, job), 201)


async def show(request: Request) -> Response:
    """What a session is, with its transcript."""
    return JSONResponse(await _with(request, lambda service, name, session: about(name, session)))


async def delete(request: Request) -> Response:
    """Forget a session and its file."""
    service, name = service_of(request), name_of(request)

    def job(ticket: Ticket) -> dict[str, Any]:
        service.drop(name)
        return {"id": name.id, "object": "session", "deleted": True}

    return JSONResponse(await work(request, job, name))


async def fork(request: Request) -> Response:
    """A second session that goes on from where this one stands."""
    await json_body(request, NOTHING)

    def job(service: Service, name: Name, session: Session) -> dict[str, Any]:
        service.check_room()
        other = Name(name.kind, name.owner, new_id("session", family_of(request)))
        service.shelf.put(other, forked := session.fork())
        return about(other, forked)

    return JSONResponse(await _with(request, job), 201)


async def undo(request: Request) -> Response:
    """Take back the last turn."""
    await json_body(request, NOTHING)

    def job(service: Service, name: Name, session: Session) -> dict[str, Any]:
        going = service.shelf.onward(session)
        going.undo()
        service.shelf.put(name, going)
        return about(name, going)

    return JSONResponse(await _with(request, job))


async def read(request: Request) -> Response:
    """Read a document into the memory, as a message that is not answered. A client that goes away leaves the session as it was."""
    service, name = service_of(request), name_of(request)
    d = await json_body(request, READ)
    if "\0" in d["text"] or not d["text"].strip():
        raise Refusal(400, "text is empty, or has a NUL character", "text", "invalid_value")

    def job(ticket: Ticket) -> dict[str, Any]:
        session = service.take(name)
        going = service.shelf.onward(session)
        tokens = going.read(d["text"], d["title"])
        if ticket.over:
            raise Gone
        service.shelf.put(name, going)
        return {**about(name, going), "read_tokens": tokens}

    return JSONResponse(await work(request, job, name))


async def held(request: Request) -> Response:
    """What the memory holds, turn by turn, most strongly first."""

    def job(service: Service, name: Name, session: Session) -> dict[str, Any]:
        turns = [{"turn": h.number, "share": h.share, "rows": h.rows, "text": h.text, "window_tokens": h.window} for h in session.held()]
        return {"object": "list", "data": turns}

    return JSONResponse(await _with(request, job))


async def forget(request: Request) -> Response:
    """Take a turn out of the memory, the window, the transcript and what can be undone."""
    d = await json_body(request, FORGET)

    def job(service: Service, name: Name, session: Session) -> dict[str, Any]:
        going = service.shelf.onward(session)
        gone = going.forget(d["turn"])
        service.shelf.put(name, going)
        return {**about(name, going), "forgotten": gone._asdict()}

    return JSONResponse(await _with(request, job))


async def get_file(request: Request) -> Response:
    """The session file (docs/session-file.md), with the ETag of what is in it."""
    raw, tag = await _with(request, lambda service, name, session: file_of(session))
    headers = {"etag": tag, "content-disposition": f'attachment; filename="{request.path_params["id"]}.lm2s"'}
    return Response(raw, media_type=FILE, headers=headers)


async def put_file(request: Request) -> Response:
    """Put a session file in the place of a session, checked before anything of it is used. If-Match: only in the place of this one, else 412."""
    service, name = service_of(request), name_of(request)
    if not service.shelf.has(name):
        raise missing(name.kind, name.id)
    raw = await raw_body(request, bytes_max(expected(service.model)), service.limits.patience)
    wanted = request.headers.get("if-match")

    def job(service: Service, name: Name, session: Session) -> tuple[dict[str, Any], str]:
        if wanted is not None and wanted.strip() != "*" and file_of(session)[1] not in [tag.strip() for tag in wanted.split(",")]:
            raise Refusal(412, "the session is not the one that If-Match names: read it again", code="precondition_failed")
        given = opened(service.model, raw)
        service.shelf.put(name, given)
        return about(name, given), file_of(given)[1]

    shown, tag = await _with(request, job)
    return JSONResponse(shown, headers={"etag": tag})


def about(name: Name, session: Session) -> dict[str, Any]:
    """A session as JSON."""
    return {
        "id": name.id, "object": "session", "model": session.model.name, "system": session.system, "seed": session.seed,
        "sampling": session.sampling.to_dict(), "turns": session.at.number, "tokens": session.at.seen, "memory_tokens": session.at.written,
        "window": session.feeder.size, "window_tokens": session.at.filled, "undo": len(session.snapshots),
        "forgotten_messages": session.forgotten_turns, "transcript": [dict(m) for m in session.transcript], "transcript_turns": list(session.numbers),
    }  # fmt: skip


def file_of(session: Session) -> tuple[bytes, str]:
    """A session's file, and its ETag: the digest of all but the dates."""
    folder = Path(tempfile.mkdtemp(prefix="lm2-serve-"))
    try:
        session.save(folder / "session.lm2s")
        raw = (folder / "session.lm2s").read_bytes()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    body = memoryview(raw)[8 + int.from_bytes(raw[:8], "little") :]
    digest = hashlib.sha256(body)
    digest.update(f"{session.seed} {session.at.draws} {session.at.seen} {session.at.memory.written}".encode())
    return raw, f'"{digest.hexdigest()}"'


def opened(model: "Model", raw: bytes) -> Session:
    """A session from the bytes of its file. Raises Refusal for what is not a whole session of this model."""
    folder = Path(tempfile.mkdtemp(prefix="lm2-serve-"))
    path = folder / "session.lm2s"
    try:
        path.write_bytes(raw)
        return Session.restore(model, path)
    except SessionError as error:
        raise refusal_of(error, {str(path): "the session file"}) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def name_of(request: Request) -> Name:
    return named("session", owner_of(request), request.path_params["id"])


async def _with(request: Request, job: Callable[[Service, Name, Session], Any]) -> Any:
    """Run a job with a session of the request's owner."""
    service, name = service_of(request), name_of(request)
    return await work(request, lambda ticket: job(service, name, service.take(name)), name)
