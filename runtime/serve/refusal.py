"""What a request is refused with, in the shape OpenAI's clients read: {"error": {"message", "type", "param", "code"}}. Knows no server."""

import os
import re
from typing import Any

from ...models.errors import LM2Error, PromptError, TokenizerError, WriteError
from ..statefile.record import (
    SessionError,
    SessionLockedError,
    SessionMissingError,
    SessionModelError,
    SessionReadError,
    SessionTokenizerError,
    SessionTooLargeError,
)

NEW = (", or start fresh with `--new`", " or start fresh with `--new`")
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(LM2Error):
    """A request that is not served. status: HTTP. param: the field it is about. retry_after: seconds, for what may be tried again."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None, retry_after: int | None = None):
        super().__init__(_printable(message))
        self.status, self.param, self.code, self.retry_after = status, None if param is None else _printable(param), code, retry_after

    def body(self) -> dict[str, Any]:
        """The JSON object of the answer."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers that go with it."""
        out = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return out | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def _printable(text: str) -> str:
    """What a request was called by may hold half of a surrogate pair, which no answer can."""
    return text.encode("utf-8", "backslashreplace").decode()


def unsupported(param: str, what: str) -> Refusal:
    """The refusal of something that other servers have and this one does not."""
    return Refusal(400, f"{param}: {what}", param, "unsupported_parameter")


def refusal_of(error: BaseException, hide: dict[str, str] | None = None) -> Refusal:
    """The refusal that tells of `error`. hide: texts, such as paths on this machine, and what is said in their place."""
    if isinstance(error, Refusal):
        return error
    if not isinstance(error, LM2Error):
        return Refusal(500, f"the server failed ({type(error).__name__}): its log says more", code="server_error")
    text = str(error)
    for old, new in (hide or {}).items():
        text = text.replace(old, new) if os.path.isabs(old) else re.sub(rf"(?<![\w.-]){re.escape(old)}(?=[/\\])", new, text)
    for words in NEW:
        text = text.replace(words, "")
    if isinstance(error, (PromptError, TokenizerError)):
        return Refusal(400, text)
    if isinstance(error, WriteError):
        return Refusal(507, text, code="storage")
    if isinstance(error, SessionReadError):
        return Refusal(500, text, code="storage")
    if isinstance(error, SessionError):
        known = {SessionMissingError: 404, SessionLockedError: 409, SessionModelError: 409, SessionTokenizerError: 409, SessionTooLargeError: 413}
        return Refusal(known.get(type(error), 422), text, code="session_file")
    return Refusal(500, text, code="server_error")
