"""Which of several servers a request belongs to: its family, eight hexadecimal digits that depend on what the request says alone, so that whoever passes
requests on needs no table. Knows paths and bodies; no server, no session.

Ids begin with the family of the request that made them, so a session, what is forked from it, a conversation, its responses and what goes on from a response
are one family. Whole transcripts are of the family of how they begin: owner, system prompt, first message. What names nothing is of any family.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

DIGITS = 8
SCOPE = "lm2.family"  # where an ASGI scope has it
_ID = re.compile(r"^/v1/(?:sessions|conversations|responses)/([^/]+)")
_BRANCHING = ("/v1/chat/completions", "/v1/completions", "/v1/responses")


class Belongs(NamedTuple):
    """repeats: whether to ask twice is as good as to ask once, as it is where something is read, or gone on from, and nothing with a name changes."""

    family: str
    repeats: bool


def new_family() -> str:
    """A family that nothing belongs to yet, but by chance."""
    return secrets.token_hex(DIGITS // 2)


def belongs(method: str, path: str, session: str | None, owner: str, body: bytes) -> Belongs:
    """Where a request belongs. session: of its header. body: as it came; one that nothing can be read in is of any family, and refused by who gets it."""
    reads = method in ("GET", "HEAD", "OPTIONS")
    found = _ID.match(path)
    if found:
        return Belongs(of_id(found[1]), reads)
    said = _object(body)
    named = next((g for g in (session, said.get("session_id"), _conversation(said.get("conversation"))) if isinstance(g, str) and g), None)
    repeats = reads or (path in _BRANCHING and named is None)
    before = named or said.get("previous_response_id")
    if isinstance(before, str) and before:
        return Belongs(of_id(before), repeats)
    begins = _begin(said.get("instructions"), said.get("messages", said.get("input"))) if path in _BRANCHING else None
    return Belongs(new_family() if begins is None else _hash(owner, *begins), repeats)


def of_id(given: str) -> str:
    """The family of an id; of what is no id of this server's too, which all servers refuse."""
    digits = given.partition("_")[2][:DIGITS]
    return digits if len(digits) == DIGITS and set(digits) <= set("0123456789abcdef") else _hash(given)


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _conversation(given: Any) -> Any:
    return given.get("id") if isinstance(given, dict) else given


def _begin(instructions: Any, messages: Any) -> tuple[str, str] | None:
    """System prompt and first message of a transcript; None where there is none."""
    if isinstance(messages, str):
        return _text(instructions), messages
    if not isinstance(messages, list):
        return None
    rows = [m for m in messages if isinstance(m, dict)]
    system = next((_text(m.get("content")) for m in rows if m.get("role") in ("system", "developer")), _text(instructions))
    first = next((m for m in rows if m.get("role") == "user"), None)
    return None if first is None else (system, _text(first.get("content")))


def _text(content: Any) -> str:
    """A message's text, of one part or of several."""
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) if isinstance(part, dict) else "" for part in content)
    return content if isinstance(content, str) else ""


def _hash(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:DIGITS]
