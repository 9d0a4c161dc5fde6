"""A chunk's state in memory that ONNX Runtime reads and writes in place, and the binding of its names to it.

Knows arrays and addresses. Every past_X and its present_X are the same memory, bound once; a call then only changes a few numbers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from ...models.errors import BackendError

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
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


class Buffers:
    """The state of one chunk of `batch` sequences. `rows_of`: length of the chunk its rows were computed for."""

    def __init__(self, session: ort.InferenceSession, device: str, index: int, state: Mapping[str, str], arrays: Mapping[str, np.ndarray]):
        self.session, self.device, self.index, self.state = session, device, index, state
        self.tensors = {name: Tensor(array, device, index) for name, array in arrays.items()}
        self.numbers = {name: np.zeros(1, np.int64) for name in ("past_length", "past_chunks", "new_chunk", "logits_from")}
        self.ends = {name: np.zeros(1, np.int64) for name in ("present_length", "present_chunks")}
        self.rows_of = 0
        self._all = self._bound(None)

    def run(
        self, ids: np.ndarray, past: int, chunks: int, new: bool, first: int, vocabulary: int, sequence: int | None = None
    ) -> np.ndarray:
        """One call: ids (b, t) after `past` positions. Returns float32 logits of positions `first` .. of the call, (b, t or 1, v); -1 is the last."""
        for name, value in (("past_length", past), ("past_chunks", chunks), ("new_chunk", int(new)), ("logits_from", first)):
            self.numbers[name][0] = value
        binding = self._all if sequence is None else self._bound(sequence)
        return self._call(binding, ids, first, vocabulary)

    def bank_after(self, past: int, chunks: int, vocabulary: int) -> np.ndarray:
        """The bank (b, l, n, d) with the rows of the chunk's `past` positions in it. The state stays as it is: outputs have memory of their own."""
        for name, value in (("past_length", past), ("past_chunks", chunks), ("new_chunk", 2), ("logits_from", -1)):
            self.numbers[name][0] = value
        batch = self.tensors["past_bank"].shape[0]
        binding = self._bound(None, apart=True)
        self._call(binding, np.zeros((batch, 1), np.int64), -1, vocabulary)
        at = len(self.ends) + list(self.tensors).index("past_bank")  # outputs come in the order they were bound in
        bank: np.ndarray = binding.get_outputs()[at].numpy()
        return bank

    def _call(self, binding: Any, ids: np.ndarray, first: int, vocabulary: int) -> np.ndarray:
        b, t = ids.shape
        logits = np.empty((b, t if first == 0 else 1, vocabulary), np.float32)
        binding.bind_input("input_ids", "cpu", 0, np.int64, ids.shape, ids.ctypes.data)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:
            raise BackendError(f"ONNX Runtime {ort.__version__} could not run the model ({first_line(error)})") from None
        return logits

    def _bound(self, sequence: int | None, apart: bool = False) -> Any:
        binding = self.session.io_binding()
        for name, array in self.numbers.items():
            binding.bind_input(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)
        for name, array in self.ends.items():
            binding.bind_output(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)
        for name, tensor in self.tensors.items():
            address, shape = tensor.part(sequence)
            kind = tensor.dtype.type
            binding.bind_input(name, self.device, self.index, kind, shape, address)
            if apart:
                binding.bind_output(self.state[name], self.device, self.index)
            else:
                binding.bind_output(self.state[name], self.device, self.index, kind, shape, address)
        return binding


def first_line(error: Exception) -> str:
    """The telling part of an ONNX Runtime error, on one line."""
    text = " ".join(str(error).split())
    text = text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text
    return text if len(text) <= 240 else f"{text[:240]}..."
