"""Who asks: an API key is an owner, whose memory nobody else sees. Knows keys; no HTTP, no sessions."""

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

from ...models.errors import PromptError
from .refusal import Refusal

ANYBODY = "open"  # the one owner where no key is asked for
KEY_BYTES_MAX = 1024
FILE_BYTES_MAX = 1 << 20


class Owners:
    """keys: those that are let in; none: everybody is, as one owner."""

    def __init__(self, keys: Sequence[str] = ()):
        self._names = {key.encode(): owner_of(key) for key in keys}

    @property
    def closed(self) -> bool:
        """Whether a key is asked for."""
        return bool(self._names)

    def of(self, authorization: str | None) -> str:
        """The owner behind an `Authorization: Bearer KEY` header. Raises Refusal 401. Compared in constant time."""
        if not self._names:
            return ANYBODY
        kind, _, key = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not key.strip():
            raise Refusal(401, "no API key: send `Authorization: Bearer KEY`", code="missing_api_key")
        given, found = key.strip().encode("utf-8", "replace"), None
        for known, name in self._names.items():
            if hmac.compare_digest(known, given):
                found = name
        if found is None:
            raise Refusal(401, "this API key is not known here", code="invalid_api_key")
        return found


def owner_of(key: str) -> str:
    """The name that an owner's files lie under: 32 hexadecimal digits that do not give the key away."""
    return hashlib.sha256(b"lm2 owner\0" + key.encode()).hexdigest()[:32]


def read_keys(path: Path) -> list[str]:
    """API keys of a file, one a line; empty lines and lines that begin with # are left out. Raises PromptError naming the file."""
    try:
        with open(path, "rb") as f:
            raw = f.read(FILE_BYTES_MAX + 1)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise PromptError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise PromptError(f"{path} is not valid UTF-8: give one API key a line") from None
    found = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not found or len(raw) > FILE_BYTES_MAX:
        raise PromptError(f"{path} has no API key, or more than {FILE_BYTES_MAX} bytes: give one key a line")
    return [check_key(key, str(path)) for key in found]


def check_key(key: str, where: str) -> str:
    """A key that a header can carry. Raises PromptError naming `where`, without the key."""
    if not key or len(key) > KEY_BYTES_MAX or not key.isascii() or not key.isprintable() or " " in key:
        raise PromptError(f"{where}: an API key must be 1 to {KEY_BYTES_MAX} printable ASCII characters without spaces")
    return key
