"""One token for each of several windows in one run: their states lie side by side in one set of arrays, and a run takes the first so many of them.

Knows Buffers and the names of docs/onnx.md; checks no token and no room. Windows come with arrays of their own and are moved in when they are first stepped
together; those that are stepped now lie first, without a gap, so that no place is run that is not stepped and would have to write somewhere. Who must make
room gets arrays of its own again. A move copies what is filled. For graphs where each sequence has its own past_length, on a CPU.

Axes: b windows of a run, W positions of a window, v vocabulary.
"""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from .onnx_buffers import ENDS, At, Buffers, Shape, bind, number_counts, past_of, run_bound, zeros

PLACES = 16
FIRST = "past_key.0"


class Stand(NamedTuple):
    """A window that is to be stepped: its buffers, of one sequence, and where it stands."""

    buffers: Buffers
    at: At


class Places:
    """The arrays of PLACES sequences, (PLACES, ...) each, and whose they are."""

    def __init__(self, session: ort.InferenceSession, state: Mapping[str, str], like: Buffers):
        self.session, self.state = session, state
        self.arrays = zeros({name: ((PLACES, *tensor.shape[1:]), tensor.dtype) for name, tensor in like.tensors.items()})
        self.numbers = {name: np.zeros(count, np.int64) for name, count in number_counts(session, PLACES).items()}
        self.ends = {name: np.zeros(PLACES, np.int64) for name in ENDS if past_of(name) in self.numbers}
        self._blank = [True] * PLACES  # whether nobody was there
        self._owners: list[weakref.ref[Buffers] | None] = [None] * PLACES
        self._bindings: dict[int, Any] = {}

    def owner(self, place: int) -> Buffers | None:
        """Whose state lies at a place: nobody's any more where it was moved on."""
        held = self._owners[place]
        buffers = None if held is None else held()
        here = buffers is not None and buffers.tensors[FIRST].address == self.arrays[FIRST][place : place + 1].ctypes.data
        return buffers if here else None

    @property
    def in_use(self) -> bool:
        """Whether a window is there that somebody holds; else the memory may go."""
        return any(self.owner(place) is not None for place in range(PLACES))

    def gather(self, wanted: Sequence[Buffers]) -> list[Buffers]:
        """Have the states of `wanted`, PLACES at most, in the first places. Returns them in the order in which they lie."""
        count, ids = len(wanted), {id(b) for b in wanted}
        inside = {id(b) for place in range(count) if (b := self.owner(place)) is not None}
        missing = [b for b in wanted if id(b) not in inside]
        for place in range(count):
            owner = self.owner(place)
            if owner is None or id(owner) not in ids:
                self._take(missing.pop(), place)
        return [owner for place in range(count) if (owner := self.owner(place)) is not None]

    def _take(self, buffers: Buffers, place: int) -> None:
        """Move the state of `buffers` to a place, whose owner gets arrays of its own."""
        before = self.owner(place)
        if before is not None:
            before.move(zeros({name: ((1, *array.shape[1:]), array.dtype) for name, array in self.arrays.items()}), blank=True)
        buffers.move({name: array[place : place + 1] for name, array in self.arrays.items()}, self._blank[place])
        self._blank[place] = False
        self._owners[place] = weakref.ref(buffers)

    def run(self, ids: np.ndarray, stands: Sequence[At], vocabulary: int) -> np.ndarray:
        """One call of one token each, ids (b, 1), for the first b places, which stand at `stands`: logits (b, 1, v) float32."""
        count = len(stands)
        for array in self.numbers.values():
            array[:] = 0
        self.numbers["logits_from"][:] = -1
        for place, at in enumerate(stands):
            for name, number in (("past_length", at.length), ("past_written", at.written), ("past_folded", at.folded)):
                self.numbers[name][place] = number
        logits = run_bound(self.session, self._bound(count), ids, vocabulary)
        for place in range(count):
            owner = self.owner(place)
            if owner is not None:
                for name, array in self.ends.items():
                    owner.ends[name][0] = array[place]
        return logits

    def _bound(self, count: int) -> Any:
        """The first `count` places bound to their names."""
        if count not in self._bindings:
            binding = self.session.io_binding()
            for name, array in self.numbers.items():
                bind(binding, name, array[:count])
            for name, array in self.ends.items():
                bind(binding, name, array[:count], made=True)
            for name, array in self.arrays.items():
                bind(binding, name, array[:count])
                bind(binding, self.state[name], array[:count], made=True)
            self._bindings[count] = binding
        return self._bindings[count]


class Together:
    """The places of a model's windows, by the windows' size."""

    def __init__(self, session: ort.InferenceSession, state: Mapping[str, str], vocabulary: int):
        self.session, self.state, self.vocabulary = session, state, vocabulary
        self._sets: dict[Shape, list[Places]] = {}

    def step(self, ids: Sequence[int], stands: Sequence[Stand]) -> np.ndarray:
        """One token for each of several windows that have nothing else to do first, no two with the same buffers: logits (b, v) float32."""
        self._sets = {shape: left for shape, sets in self._sets.items() if (left := [places for places in sets if places.in_use])}
        logits = np.empty((len(ids), self.vocabulary), np.float32)  # (b, v)
        sizes: dict[Shape, list[int]] = {}
        for i, stand in enumerate(stands):
            sizes.setdefault(stand.buffers.tensors[FIRST].shape, []).append(i)
        for shape, members in sizes.items():
            sets = self._sets.setdefault(shape, [])
            where = {id(stands[i].buffers): i for i in members}
            for number, buffers in enumerate(self._dealt(sets, [stands[i].buffers for i in members])):
                order = [where[id(b)] for b in sets[number].gather(buffers)]
                given = np.array([[ids[i]] for i in order], np.int64)  # (b, 1)
                logits[order] = sets[number].run(given, [stands[i].at for i in order], self.vocabulary)[:, 0]
        return logits

    def _dealt(self, sets: list[Places], wanted: list[Buffers]) -> list[list[Buffers]]:
        """Which of `wanted` go to which set: as many as there must be, those that lie in one stay there where they can."""
        count = -(-len(wanted) // PLACES)
        sets += [Places(self.session, self.state, wanted[0]) for _ in range(count - len(sets))]
        homes = {id(b): n for n, places in enumerate(sets) for place in range(PLACES) if (b := places.owner(place)) is not None}
        dealt: list[list[Buffers]] = [[] for _ in range(count)]
        rest: list[Buffers] = []
        for buffers in wanted:
            home = homes.get(id(buffers), count)
            (dealt[home] if home < count and len(dealt[home]) < PLACES else rest).append(buffers)
        for part in dealt:
            while rest and len(part) < PLACES:
                part.append(rest.pop())
        return dealt

