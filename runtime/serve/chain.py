"""Which conversation a transcript is: a chain of hashes over its text, so that a client that sends everything each time finds what was heard already.

key(0) = H(owner, model, what the session begins with); key(i + 1) = H(key(i), role, content). Text, not tokens: a sampled answer is seldom tokenised
again as it was made. Of an answer the spaces at its ends do not count, as clients trim them. Knows no session.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple


class Message(NamedTuple):
    """role: user or assistant."""

    role: str
    content: str


def root(owner: str, fingerprint: str, system: str | None, window: int) -> str:
    """The key of a conversation in which nothing was said yet: 64 hexadecimal digits."""
    return _hash("root", owner, fingerprint, system, window)


def following(key: str, message: Message) -> str:
    """The key after one more message."""
    return _hash("next", key, message.role, message.content.strip() if message.role == "assistant" else message.content)


def keys(first: str, messages: Sequence[Message]) -> list[str]:
    """Keys after 0, 1, ... all messages."""
    out = [first]
    for message in messages:
        out.append(following(out[-1], message))
    return out


def _hash(*parts: str | int | None) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()
