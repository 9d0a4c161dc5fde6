"""LM2: a Llama with a gated memory bank, and the runtime that carries its memory across chunks, sessions and backends.

    import lm2
    chat = lm2.Session(lm2.load("smollm2"))
    print(chat.say("What is the capital of France?"))

Importing this package imports no ML library: names are looked up when they are first used (PEP 562).
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .models.config import LM2Config as LM2Config
    from .models.config import MemoryConfig as MemoryConfig
    from .models.errors import LM2Error as LM2Error
    from .runtime.loading import Model as Model
    from .runtime.loading import load as load
    from .runtime.session.sampling import Sampling as Sampling
    from .runtime.session.session import Session as Session

__version__ = "0.1.0"

# ONNX Runtime reports to its maker otherwise, and keeps a number for that in the home folder; it asks when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_WHERE = {
    "LM2Config": "models.config",
    "MemoryConfig": "models.config",
    "LM2Error": "models.errors",
    "Model": "runtime.loading",
    "load": "runtime.loading",
    "Sampling": "runtime.session.sampling",
    "Session": "runtime.session.session",
}
__all__ = ["LM2Config", "LM2Error", "MemoryConfig", "Model", "Sampling", "Session", "load"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'lm2' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
