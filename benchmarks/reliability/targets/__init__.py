"""What is fuzzed, by name. Each module makes valid seeds, mutates them, and says what accepted and wrong means for its format."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

TARGETS = ("session", "safetensors", "gguf", "tokenizer", "template", "config", "folder", "adapter", "export")


@dataclass
class Target:
    """seeds: valid inputs. mutate: another input from one. check: whether it is accepted; raises for whatever must not be. said: the last refusal."""

    name: str
    seeds: list[bytes]
    mutate: Callable[[Random, bytes], bytes]
    check: Callable[[bytes], bool]
    said: str = ""


@contextmanager
def open_target(name: str, place: Path) -> Iterator[Target]:
    """The target `name`, working in the folder `place`."""
    target = importlib.import_module(f"{__name__}.{name}").target(place)
    inner = target.check

    def check(data: bytes) -> bool:
        answer = inner(data)
        target.said = answer
        return not answer

    target.check = check
    yield target
