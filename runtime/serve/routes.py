"""Every path: its endpoint, what it reads and what it gives. The application and its OpenAPI document are both made from this table."""

from typing import NamedTuple

from . import about, answered, chat, conversations, page, responses, sessions
from .fields import Table
from .http import Endpoint


class Row(NamedTuple):
    """reads: the fields of the body, None where there is none. gives: the name of a schema, or a media type. stream: it can answer in events."""

    method: str
    path: str
    endpoint: Endpoint
    gives: str
    reads: Table | None = None
    status: int = 200
    stream: bool = False


SESSION, CONVERSATION = "/v1/sessions/{id}", "/v1/conversations/{id}"
PLAIN = "text/plain"

ROUTES: tuple[Row, ...] = (
    *(Row("GET", path, page.file, kind) for path, kind in page.PATHS.items()),
    Row("GET", "/health", about.health, "Health"),
    Row("GET", "/metrics", about.metrics, PLAIN),
    Row("GET", "/props", about.props, "Props"),
    Row("GET", "/openapi.json", about.openapi, "application/json"),
    Row("GET", "/v1/models", about.models, "Models"),
    Row("GET", "/v1/models/{id}", about.model, "Model"),
    Row("POST", "/v1/chat/completions", chat.chat, "ChatCompletion", chat.CHAT, stream=True),
    Row("POST", "/v1/completions", chat.completion, "Completion", chat.COMPLETION, stream=True),
    Row("POST", "/v1/responses", responses.create, "Response", responses.CREATE, stream=True),
    Row("GET", "/v1/responses/{id}", responses.show, "Response"),
    Row("DELETE", "/v1/responses/{id}", responses.delete, "Deleted"),
    Row("POST", "/v1/conversations", conversations.create, "Conversation", conversations.CREATE),
    Row("GET", CONVERSATION, conversations.show, "Conversation"),
    Row("POST", CONVERSATION, conversations.update, "Conversation", conversations.UPDATE),
    Row("DELETE", CONVERSATION, conversations.delete, "Deleted"),
    Row("GET", f"{CONVERSATION}/items", conversations.items, "Items"),
    Row("POST", f"{CONVERSATION}/items", conversations.add, "Items", conversations.ADD),
    Row("GET", f"{CONVERSATION}/items/{{item}}", conversations.one, "Item"),
    Row("GET", "/v1/sessions", sessions.listing, "Sessions"),
    Row("POST", "/v1/sessions", sessions.create, "Session", sessions.CREATE, 201),
    Row("GET", SESSION, sessions.show, "Session"),
    Row("DELETE", SESSION, sessions.delete, "Deleted"),
    Row("POST", f"{SESSION}/fork", sessions.fork, "Session", sessions.NOTHING, 201),
    Row("POST", f"{SESSION}/undo", sessions.undo, "Session", sessions.NOTHING),
    Row("POST", f"{SESSION}/read", sessions.read, "SessionRead", sessions.READ),
    Row("GET", f"{SESSION}/held", sessions.held, "Held"),
    Row("GET", f"{SESSION}/answered", answered.show, "Answered"),
    Row("POST", f"{SESSION}/forget", sessions.forget, "SessionForgotten", sessions.FORGET),
    Row("GET", f"{SESSION}/file", sessions.get_file, sessions.FILE),
    Row("PUT", f"{SESSION}/file", sessions.put_file, "Session"),
)
