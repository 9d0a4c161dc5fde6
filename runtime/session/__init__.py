"""What a session is: where it stands, how tokens get in, how an answer is chosen, what was said. Names are looked up when they are used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .session import MAX_TOKENS as MAX_TOKENS
    from .session import UNDO_BANKS as UNDO_BANKS
    from .session import UNDO_TURNS as UNDO_TURNS
    from .session import Session as Session

__all__ = ["MAX_TOKENS", "UNDO_BANKS", "UNDO_TURNS", "Session"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".session", __name__), name)
