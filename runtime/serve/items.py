"""Messages as the Responses API writes them: items with parts of text. Knows tables and JSON."""

from typing import Any

from .asking import content, messages_kind
from .chain import Message
from .fields import Field, Kind, Table, choice, only, text
from .refusal import unsupported
from .service import new_id

ITEM: Table = {
    "type": Field(text(60)),
    "role": Field(text(40), need=True),
    "content": Field(content(("input_text", "output_text", "text")), need=True),
    "id": Field(text(200)),
    "status": Field(choice("completed", "incomplete", "in_progress")),
    "phase": Field(only((), "not supported")),
}


def items_kind(least: int = 1) -> Kind:
    """A list of message items, read as messages. Others (tool calls, images, reasoning) are refused by name."""
    messages = messages_kind(ITEM, least=least)

    def reads(value: Any, where: str) -> list[Message]:
        for i, item in enumerate(value if isinstance(value, list) else ()):
            kind = item.get("type") if isinstance(item, dict) else None
            if kind not in (None, "message"):
                raise unsupported(f"{where}[{i}].type", f"{str(kind)[:40]!a} is not supported: this model reads messages alone")
        return list(messages.read(value, where))

    return Kind(reads, messages.schema)


def input_kind() -> Kind:
    """A response's input: a text, which is a user's message, or items."""
    items = items_kind()

    def reads(value: Any, where: str) -> list[Message]:
        return items.read([{"role": "user", "content": value}] if isinstance(value, str) else value, where)  # type: ignore[no-any-return]

    return Kind(reads, {"anyOf": [{"type": "string"}, items.schema]})


def item(message: Message, status: str = "completed", own: str | None = None, logprobs: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A message as an item."""
    part: dict[str, Any] = {"type": "input_text", "text": message.content}
    if message.role == "assistant":
        part = output_part(message.content, logprobs)
    return {"id": own or new_id("message"), "type": "message", "status": status, "role": message.role, "content": [part]}


def output_part(said: str, logprobs: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A part of an answer."""
    return {"type": "output_text", "text": said, "annotations": [], "logprobs": logprobs or []}
