"""What a session file is: its bytes, its checks, its lock, and how a session goes into it and comes back."""

from .file import read_session, write_session
from .record import Expected, Meta, Moment, Record, SessionError

__all__ = ["Expected", "Meta", "Moment", "Record", "SessionError", "read_session", "write_session"]
