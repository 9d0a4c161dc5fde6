"""A window's state in memory that ONNX Runtime reads and writes in place, and the binding of its names to it.

Knows arrays and addresses. Every past_X and its present_X are the same memory, bound once; a call then only changes a few numbers.
"""

import mmap
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from ...models.errors import BackendError

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
NUMBERS = ("past_length", "past_written", "past_folded", "new_chunk", "carry", "logits_from")
ENDS = ("present_length", "present_written", "present_folded")
BANK = ("past_bank", "past_memory_")
LINE = 64
Shape = tuple[int, ...]


class Tensor:
    """One state tensor, batch first, on the CPU (a NumPy array) or on a device (ONNX Runtime's memory)."""

    def __init__(self, array: np.ndarray, device: str, index: int):
        self.shape, self.dtype = array.shape, array.dtype
        self._array = array if device == "cpu" else None
        self._value = None if device == "cpu" else ort.OrtValue.ortvalue_from_numpy(array, device, index)
        self.address = array.ctypes.data if self._value is None else self._value.data_ptr()

    def numpy(self) -> np.ndarray:
        """The values on the host: the memory itself on the CPU, a copy from a device."""
        return self._array if self._array is not None else self._value.numpy()  # type: ignore[union-attr,return-value]

    def part(self, sequence: int | None) -> tuple[int, Shape]:
        """Address and shape of all sequences, or of one."""
        if sequence is None:
            return self.address, self.shape
        step = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        return self.address + sequence * step, (1, *self.shape[1:])


class At(NamedTuple):
    """Where a call stands. length: positions before it; written: tokens in the bank; folded: positions that are in it; carry: of a new window."""

    length: int
    written: int
    folded: int = 0
    carry: int = 0


class Buffers:
    """The state of one window of `batch` sequences.

    What it holds is read from the numbers that ONNX Runtime wrote with it (`length`, `written`, `folded`): a caller interrupted right after a call
    cannot believe otherwise. A window that says it has more in the bank was folded since, which the next call will do.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        device: str,
        index: int,
        state: Mapping[str, str],
        arrays: Mapping[str, np.ndarray],
        written: int,
        folded: int,
        blank: bool = False,
    ):
        """blank: the bank, and what is read of it, are zeros."""
        self.session, self.device, self.index, self.state = session, device, index, state
        self.tensors = {name: Tensor(array, device, index) for name, array in arrays.items()}
        counts = number_counts(session, len(next(iter(arrays.values()))))
        self.numbers = {name: np.zeros(count, np.int64) for name, count in counts.items()}
        self.ends = {name: np.full(counts[past_of(name)], n, np.int64) for name, n in zip(ENDS, (0, written, folded), strict=True) if past_of(name) in counts}
        self.spoiled = False  # a fold failed half-way
        self._blank = blank
        self.spare: dict[str, Tensor] = {}
        self._all = self._bound(None)

    @property
    def length(self) -> int:
        """Positions of the window after the last call."""
        return int(self.ends["present_length"][0])

    @property
    def written(self) -> int:
        """Tokens in the bank, ever."""
        return int(self.ends["present_written"][0])

    @property
    def folded(self) -> int:
        """Positions of the window that are in the bank."""
        return int(self.ends["present_folded"][0]) if "present_folded" in self.ends else 0

    @property
    def blank(self) -> bool:
        """Whether the bank, and what is read of it, are zeros still."""
        return self._blank and self.written == 0 and not self.spoiled

    def run(self, ids: np.ndarray, new: int, at: At, first: int, vocabulary: int, sequence: int | None = None) -> np.ndarray:
        """One call: ids (b, t), `new` as new_chunk. Returns float32 logits of positions `first` .. of the call, (b, t or 1, v); -1 is the last."""
        self._set(new, at, first)
        binding = self._all if sequence is None else self._bound(sequence)
        return self._call(binding, ids, first, vocabulary)

    def move(self, arrays: Mapping[str, np.ndarray], blank: bool = False) -> None:
        """Have the state of one sequence in `arrays` from now on, (1, ...) each, on a CPU. What is filled is copied; nothing else is looked at. blank: those
        of the bank, and of what is read of it, are zeros already."""
        self._fill(arrays, blank)
        self.tensors = {name: Tensor(array, self.device, self.index) for name, array in arrays.items()}
        self.spare.clear()
        self._all = self._bound(None)

    def copied(self) -> "Buffers":
        """The same state in memory of its own, on a CPU. What is filled is copied."""
        arrays = zeros({name: (tensor.shape, tensor.dtype) for name, tensor in self.tensors.items()})
        self._fill(arrays, blank=True)
        other = Buffers(self.session, self.device, self.index, self.state, arrays, self.written, self.folded, self._blank)
        other.opened(self.length)
        return other

    def _fill(self, arrays: Mapping[str, np.ndarray], blank: bool) -> None:
        for name, array in arrays.items():
            if self.blank and name.startswith(BANK):
                if not blank:
                    array[:] = 0
                continue
            filled = None  # all of it
            if name.startswith(("past_key.", "past_value.")):
                filled = self.length
            elif name == "past_writes":
                filled = max(0, self.length - self.folded)
            array[:, :, :filled] = self.tensors[name].numpy()[:, :, :filled]

    def begin(self, at: At, opened: int, vocabulary: int) -> None:
        """Make what a window reads of its bank, with keys and values of its first `opened` positions there already: the next call goes on after them.

        The graph does that with a first token at position 0: it is fed beside the window's keys and values, and carried, so it leaves nothing behind.
        """
        self._set(1, at, -1)
        batch = self.tensors["past_key.0"].shape[0]
        self._call(self._bound(None, beside=True), np.zeros((batch, 1), np.int64), -1, vocabulary)
        self.spare.clear()
        self.opened(opened)

    def opened(self, positions: int) -> None:
        """The keys and values of its first `positions` are there."""
        self.ends["present_length"][:] = positions

    def bank_after(self, at: At, vocabulary: int) -> np.ndarray:
        """The bank (b, l, n, d) with the rows of positions `at.folded` .. `at.length` - 1 in it. The state stays as it is."""
        self._set(2, at._replace(carry=1), -1)  # its one token is carried, so it leaves nothing behind
        batch = self.tensors["past_bank"].shape[0]
        binding = self._bound(None, apart=True)
        self._call(binding, np.zeros((batch, 1), np.int64), -1, vocabulary)
        at_output = len(self.ends) + list(self.tensors).index("past_bank")  # outputs come in the order they were bound in
        bank: np.ndarray = binding.get_outputs()[at_output].numpy()
        return bank

    def _set(self, new: int, at: At, first: int) -> None:
        values = {"new_chunk": new, "carry": at.carry, "logits_from": first}
        values |= {"past_length": at.length, "past_written": at.written, "past_folded": at.folded}
        for name, array in self.numbers.items():
            array[:] = values[name]

    def _call(self, binding: Any, ids: np.ndarray, first: int, vocabulary: int) -> np.ndarray:
        try:
            return run_bound(self.session, binding, ids, vocabulary, first == 0)
        except BackendError:
            self.spoiled = int(self.numbers["new_chunk"][0]) == 3
            raise

    def _bound(self, sequence: int | None, apart: bool = False, beside: bool = False) -> Any:
        """Every name bound to its memory: of all sequences, or of one. beside: keys and values get memory that is not the window's. apart: so does the
        bank that is made, and the numbers too."""
        binding = self.session.io_binding()
        for name, array in self.numbers.items():
            bind(binding, name, array)
        for name, array in self.ends.items():
            if apart:
                binding.bind_output(name, "cpu")
            else:
                bind(binding, name, array, made=True)
        for name, tensor in (self.tensors | (self._spare() if apart or beside else {})).items():
            address, shape = tensor.part(sequence)
            kind = tensor.dtype.type
            binding.bind_input(name, self.device, self.index, kind, shape, address)
            if apart and name == "past_bank":
                binding.bind_output(self.state[name], self.device, self.index)
            else:
                binding.bind_output(self.state[name], self.device, self.index, kind, shape, address)
        return binding

    def _spare(self) -> dict[str, Tensor]:
        """Keys and values for one call that is not the window's: of one position, where the file takes as many as it is given."""
        if not self.spare:
            shapes = {i.name: i.shape for i in self.session.get_inputs() if i.name.startswith(("past_key.", "past_value."))}
            for name, (_, k, w, e) in shapes.items():
                tensor = self.tensors[name]
                self.spare[name] = Tensor(
                    np.zeros((tensor.shape[0], k, 1 if isinstance(w, str) else w, e), tensor.dtype), self.device, self.index
                )
        return self.spare


def zeros(shapes: Mapping[str, tuple[Shape, np.dtype]]) -> dict[str, np.ndarray]:
    """Arrays of zeros in one piece of memory, which the system gives page by page as it is written: what is never filled costs nothing, neither bytes nor time."""
    places: dict[str, int] = {}
    end = 0
    for name, (shape, dtype) in shapes.items():
        places[name] = end
        end += -(-int(np.prod(shape)) * dtype.itemsize // LINE) * LINE
    own = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if hasattr(mmap, "MAP_ANONYMOUS") else 0  # read before it is written, all of it is one page
    taken = mmap.mmap(-1, max(end, 1), flags=own) if own else mmap.mmap(-1, max(end, 1))
    memory = np.frombuffer(taken, np.uint8)
    out: dict[str, np.ndarray] = {}
    for name, (shape, dtype) in shapes.items():
        size = int(np.prod(shape)) * dtype.itemsize
        out[name] = memory[places[name] : places[name] + size].view(dtype).reshape(shape)
    return out


def bind(binding: Any, name: str, array: np.ndarray, made: bool = False) -> None:
    """Bind an input, or an output that is `made`, to an array in host memory."""
    (binding.bind_output if made else binding.bind_input)(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def run_bound(session: ort.InferenceSession, binding: Any, ids: np.ndarray, vocabulary: int, every: bool = False) -> np.ndarray:
    """One call of ids (b, t) with everything else bound: float32 logits (b, 1, v), with `every` of all positions. Raises BackendError."""
    b, t = ids.shape
    logits = np.empty((b, t if every else 1, vocabulary), np.float32)
    bind(binding, "input_ids", ids)
    bind(binding, "logits", logits, made=True)
    try:
        session.run_with_iobinding(binding)
    except Exception as error:
        raise BackendError(f"ONNX Runtime {ort.__version__} could not run the model ({first_line(error)})") from None
    return logits


def number_counts(session: ort.InferenceSession, batch: int) -> dict[str, int]:
    """How many of each number a call of `batch` sequences takes: one for each of them, or one for all."""
    return {i.name: batch if isinstance(i.shape[0], str) else 1 for i in session.get_inputs() if i.name in NUMBERS}


def past_of(name: str) -> str:
    """The input that output `name` is fed back as."""
    return name.replace("present_", "past_", 1)


def first_line(error: Exception) -> str:
    """The telling part of an ONNX Runtime error, on one line."""
    text = " ".join(str(error).split())
    text = text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text
    return text if len(text) <= 240 else f"{text[:240]}..."
