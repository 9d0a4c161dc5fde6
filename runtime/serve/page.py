"""The chat page at `/`: files of the package, as they are. What they show they ask of the endpoints that everybody has. Knows no session."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parent / "static"
FILES = {"/": "index.html"} | {f"/page/{name}": name for name in ("page.css", "page.js", "api.js", "chat.js", "memory.js", "icon.svg")}
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PATHS = {path: KINDS[Path(name).suffix] for path, name in FILES.items()}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


async def file(request: Request) -> Response:
    """A file of the chat page. Needs no key."""
    path = request.scope["path"]
    headers = {"content-security-policy": POLICY, "referrer-policy": "no-referrer", "cross-origin-resource-policy": "same-origin"}
    return Response((FOLDER / FILES[path]).read_bytes(), media_type=PATHS[path], headers=headers)
