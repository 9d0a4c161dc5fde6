"""/v1/sessions/{id}/answered: where the last answer came from: turns it was recalled from, and what it read of the memory, with pictures."""

from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...models.errors import BackendError, ModelFileError
from ..inspection.last_answer import Attention, look_at_answer
from ..inspection.pixels import RED, data_uri, png
from ..session.session import Session
from .http import service_of, work
from .scheduler import Ticket
from .sessions import name_of
from .shared import done

LINES = 192  # of a picture; a larger memory has several rows in one


async def show(request: Request) -> Response:
    """What the last answer came from: turns it was recalled from, and what it read of the memory. The window is run again for it; the session stays as it is."""
    service, name = service_of(request), name_of(request)

    def job(ticket: Ticket) -> dict[str, Any]:
        return about(service.take(name))

    return JSONResponse(await work(request, job, name))


def about(session: Session) -> dict[str, Any]:
    """Where a session's last answer came from, as JSON."""
    note: str | None = None
    try:
        seen = look_at_answer(session, done)
        note = None if seen is not None else "the last turn is no answer"
    except (BackendError, ModelFileError) as error:
        seen, note = None, str(error)
    recalled = [{"turn": p.number, "text": p.text} for p in session.recalled]
    return {"object": "answered", "turn": session.at.number, "recalled": recalled, "note": note, "attention": None if seen is None else _attention(seen)}


def _attention(seen: Attention) -> dict[str, Any]:
    layers = []
    for bank, layer in enumerate(seen.layers):
        mass = seen.mass[bank].T[: max(1, seen.written)]  # (n, t), rows that were written
        together = -(-len(mass) // LINES)
        lines = np.stack([mass[i : i + together].max(axis=0) for i in range(0, len(mass), together)])  # (lines, t)
        most = float(lines.max())
        layers.append({"layer": layer, "rows_a_line": together, "most": most, "picture": data_uri(png(lines, 0.0, most, RED))})
    return {
        "memory_tokens": seen.written, "tokens": list(seen.pieces), "turns": [{"turn": t, "share": s} for t, s in seen.turns],
        "rows": [row._asdict() for row in seen.rows], "layers": layers if seen.written else [],
    }  # fmt: skip
