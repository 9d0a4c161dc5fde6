"""Where two backends part: the first layer and tensor that differ by more than rounding.

Knows the backend contract and the optional `trace`. Both sides start every chunk from the reference's bank, so that what differs was
computed in that chunk; after the layers come the same tokens fed in parts, and the bank that the chunk leaves. Where all chunks agree a window
with folds and carried tokens follows (window.py): its logits call by call, and the bank after each fold.
Axes: t positions of the chunk, d width, v vocabulary, l banks, n rows of a bank.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from ..backend import Backend, MemoryState
from .forced import first_state
from .inputs import Fed, Inputs
from .measures import SMALL, relative_l2
from .window import feed, script

CHUNKS_MAX = 4
_PARTS = {
    "attention": "attention output",
    "memory.read": "what was read from the memory",
    "memory.add": "what the memory adds to the attention output",
    "memory.rows": "new memory rows",
    "memory.bank": "bank after the chunk",
    "memory.topics.bank": "bank of topics after the chunk",
    "output": "output of the layer",
}


class Tracing(Protocol):
    """The optional part of a backend that says what its layers computed."""

    def trace(self, tokens: Sequence[int] | np.ndarray, state: MemoryState) -> list[tuple[str, np.ndarray]]: ...


@dataclass(frozen=True)
class Difference:
    """One tensor on both sides. chunk from 0. at: position (or row) of the largest difference. agrees: relative L2 within the gate."""

    chunk: int
    name: str
    relative_l2: float
    max_abs: float
    at: int
    agrees: bool

    @property
    def words(self) -> str:
        """The tensor for people: `layer 3, new memory rows`."""
        return describe(self.name)

    @property
    def place(self) -> str:
        """Where it was computed: a chunk counted from 1, or the window with folds that follows them."""
        return "window" if self.name.startswith("window.") else f"chunk {self.chunk + 1}"


@dataclass(frozen=True)
class Explanation:
    """Tensors in the order they were computed, up to the end of the first chunk that has one that disagrees."""

    gate: float
    traced: bool
    tensors: list[Difference]

    @property
    def first(self) -> Difference | None:
        return next((d for d in self.tensors if not d.agrees), None)

    @property
    def sentence(self) -> str:
        """The outcome in one line."""
        first = self.first
        if first is None:
            worst = max(self.tensors, key=lambda d: d.relative_l2)
            return (
                f"all {len(self.tensors)} tensors agree (relative L2 at most {self.gate:g}); the largest difference is "
                f"{worst.relative_l2:.2g}, {worst.place}, {worst.words}"
            )
        before = [d.relative_l2 for d in self.tensors[: self.tensors.index(first)]]
        rest = f"; the {len(before)} tensors before it agree (at most {max(before):.2g})" if before else "; it is the first of all"
        return (
            f"first disagreement: {first.place}, {first.words} ({first.name}): relative L2 {first.relative_l2:.2g}, "
            f"largest difference {first.max_abs:.2g} at position {first.at}{rest}"
        )


def explain(reference: Backend, other: Backend, inputs: Inputs, chunks: int, gate: float) -> Explanation:
    """Compare tensor by tensor over at most CHUNKS_MAX chunks; stops after the first chunk with a disagreement."""
    traced = hasattr(reference, "trace") and hasattr(other, "trace")
    tensors: list[Difference] = []
    bank, count = reference.to_host(first_state(reference)), 0  # (l, 1, n, d)
    start = other.to_host(first_state(other))
    tensors.append(_difference(0, "first bank", bank, start, gate, axis=2))
    for c in range(min(chunks, CHUNKS_MAX)):
        fed = inputs.chunk(c)
        a, b = reference.from_host(bank, count), other.from_host(bank, count)
        if traced:
            layers = [cast(Tracing, side).trace(fed.tokens, state) for side, state in ((reference, a), (other, b))]
            tensors += _compare(c, layers[0], layers[1], gate)
        (p, x), (q, y) = _fed(reference, fed, a), _fed(other, fed, b)
        tensors.append(_difference(c, "logits in parts", p, q, gate, axis=0))
        mine, theirs = reference.to_host(x), other.to_host(y)
        for j, layer in enumerate(bank_layers(reference)):
            tensors.append(_difference(c, f"{layer}bank", mine[j], theirs[j], gate, axis=1))
        bank, count = mine, x.written
        if any(not d.agrees for d in tensors):
            break
    else:
        if reference.config.memory.cell == "gated":
            tensors += _window(reference, other, inputs, min(chunks, CHUNKS_MAX), (bank, count), gate)
    return Explanation(gate, traced, tensors)


def _window(reference: Backend, other: Backend, inputs: Inputs, c: int, state: tuple[np.ndarray, int], gate: float) -> Iterator[Difference]:
    """A window with folds and carried tokens from the same bank, after the chunks."""
    given, fold = script(reference.config, inputs), 0
    both = (feed(side, side.from_host(*state), given) for side in (reference, other))
    for (p, mine), (q, theirs) in zip(*both, strict=True):
        yield _difference(c, f"window.{fold}.logits", p, q, gate, axis=0)
        if mine is not None and theirs is not None:
            fold += 1
            for j, layer in enumerate(bank_layers(reference)):
                yield _difference(c, f"window.{fold}.{layer}bank", mine[j], theirs[j], gate, axis=1)


def bank_layers(backend: Backend) -> Iterator[str]:
    """Name prefix of each bank: the layer it belongs to, or nothing for the one that passes through all layers; that of topics is with the first layer."""
    memory = backend.config.memory
    yield from [""] if memory.cell == "released" else (f"layers.{i}.memory." for i in memory.layers)
    if memory.topics:
        yield f"layers.{memory.layers[0]}.memory.topics."


def describe(name: str) -> str:
    """A tensor's name in words."""
    inside = re.fullmatch(r"window\.(\d+)\.(.*)", name)
    if inside is not None:
        fold, part = inside.groups()
        when = f"after fold {fold}" if fold != "0" else "before its first fold"
        return f"{describe(part).replace(' after the chunk', '')} {when}"
    found = re.fullmatch(r"layers\.(\d+)\.(.*)", name)
    if found is None:
        words = {
            "norm": "final norm",
            "logits in parts": "logits of the same tokens fed in parts",
            "bank": "bank after the chunk",
            "first bank": "bank before the first word",
        }
        return words.get(name, name)
    layer, part = found.groups()
    return f"layer {layer}, {_PARTS.get(part, part)}"


def _fed(backend: Backend, fed: Fed, state: MemoryState) -> tuple[np.ndarray, MemoryState]:
    """Logits (t, v) of a chunk fed in its calls, and the state after it."""
    chunk, out = backend.start(1, state), []
    for piece in fed.pieces():
        logits, chunk = backend.extend(piece, chunk, True)  # (1, t, v)
        out.append(logits[0])
    return np.concatenate(out), backend.commit(chunk)


def _compare(c: int, mine: list[tuple[str, np.ndarray]], theirs: list[tuple[str, np.ndarray]], gate: float) -> Iterator[Difference]:
    other = dict(theirs)
    for name, value in mine:
        yield _difference(c, name, value, other.get(name, np.zeros((0,), np.float32)), gate, axis=1)


def _difference(c: int, name: str, mine: np.ndarray, theirs: np.ndarray, gate: float, axis: int) -> Difference:
    """`axis` is the one that positions or rows run along."""
    distance = relative_l2(mine, theirs, SMALL)
    if mine.shape != theirs.shape:
        return Difference(c, name, float("inf"), float("inf"), 0, False)
    if not mine.size:
        return Difference(c, name, 0.0, 0.0, 0, True)
    diff = np.abs(theirs - mine)
    each = diff.max(axis=tuple(i for i in range(diff.ndim) if i != axis))  # (t,) or (n,)
    each = np.where(np.isnan(each), np.inf, each)
    return Difference(c, name, distance, float(diff.max()), int(each.argmax()), distance <= gate)
