"""Module names that moved into rooms, for programs that import them as they were called. Knows names alone; nothing here imports them."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "answer": ".session.answer",
    "cursor": ".session.cursor",
    "dialogue": "..models.text.dialogue",
    "keeping": ".statefile.keeping",
    "lock": ".statefile.lock",
    "pieces": "..models.text.pieces",
    "reading": ".session.reading",
    "sampling": ".session.sampling",
    "sandbox": "..models.text.sandbox",
    "statecheck": ".statefile.check",
    "statejson": ".statefile.text",
    "staterecord": ".statefile.record",
    "streaming": "..models.text.streaming",
    "template": "..models.text.template",
    "tokenizer": "..models.text.tokenizer",
    "transcript": ".session.transcript",
}


class Formerly(MetaPathFinder, Loader):
    """Finds `lm2.runtime.OLD` as the very module that stands elsewhere now."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if package == __package__ and name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(MOVED[spec.name.rpartition(".")[2]], __package__)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It ran when it was imported by its own name, and keeps that one."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def install() -> None:
    """Look moved names up after everything else; once."""
    if not any(isinstance(finder, Formerly) for finder in sys.meta_path):
        sys.meta_path.append(Formerly())
