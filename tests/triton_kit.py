"""Triton Inference Server's side of a model repository, in a few lines: its official configuration format, the checks that its ONNX Runtime
backend makes when it loads a model, and its sequence batcher with implicit state. Enough to see that a configuration means what it should.
"""

import importlib.util
from importlib.metadata import PackageNotFoundError, files

import numpy as np
import pytest

KINDS = {"TYPE_FP32": np.float32, "TYPE_FP16": np.float16, "TYPE_INT64": np.int64}
ORT = {"tensor(float)": "TYPE_FP32", "tensor(float16)": "TYPE_FP16", "tensor(int64)": "TYPE_INT64"}


def official():
    """The module of model_config.proto as NVIDIA's tritonclient package carries it (without that package's own imports)."""
    pytest.importorskip("google.protobuf")
    try:
        found = [f for f in files("tritonclient") or () if str(f).endswith("tritonclient/grpc/model_config_pb2.py")]
    except PackageNotFoundError:
        pytest.skip("tritonclient is not installed: pip install 'lm2[test]'")
    spec = importlib.util.spec_from_file_location("model_config_pb2", found[0].locate())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(text):
    """A config.pbtxt through the official message; text that does not fit raises."""
    from google.protobuf import text_format

    return text_format.Parse(text, official().ModelConfig())


class Refused(Exception):
    """The server would not load the model, or not run the request."""


class Server:
    """One model of a repository on the CPU. `sequences` holds the state of each conversation."""

    def __init__(self, folder, config=None, library=True):
        import onnxruntime as ort

        self.folder = folder
        self.config = parse((folder / "config.pbtxt").read_text()) if config is None else config
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        for name in self.config.model_operations.op_library_filename if library else ():
            options.register_custom_ops_library(name)
        self.session = ort.InferenceSession(str(folder / "1" / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = (
            {v.name: (ORT[v.type], v.shape) for v in vs} for vs in (self.session.get_inputs(), self.session.get_outputs())
        )
        self.sequences = {}
        self._check()

    def _type(self, value):
        return official().DataType.Name(value)

    def _check(self):
        c, batching = self.config, self.config.sequence_batching
        if c.backend != "onnxruntime" or c.name != self.folder.name or c.max_batch_size:
            raise Refused("backend, name or max_batch_size")
        if len(self.inputs) != len(c.input) + len(batching.state):
            raise Refused(f"configuration expects {len(c.input) + len(batching.state)} inputs, model provides {len(self.inputs)}")
        for entries, have, exact in ((c.input, self.inputs, False), (c.output, self.outputs, True)):
            for e in entries:
                if e.name not in have or have[e.name][0] != self._type(e.data_type):
                    raise Refused(f"{e.name}: name or type")
                model = [-1 if isinstance(n, str) else n for n in have[e.name][1]]
                if len(model) != len(e.dims) or any(a != b and (exact or a != -1) for a, b in zip(model, e.dims, strict=True)):
                    raise Refused(f"{e.name}: dims {list(e.dims)}, model {model}")
        for s in batching.state:
            if self.inputs[s.input_name] != self.outputs[s.output_name] or self.inputs[s.input_name][0] != self._type(s.data_type):
                raise Refused(f"{s.input_name}: not a state of this type")
            if len(s.initial_state) != 1 or not s.initial_state[0].name or list(s.initial_state[0].dims) != list(s.dims) or -1 in s.dims:
                raise Refused(f"{s.input_name}: initial_state must name itself and have the state's fixed dims")
            if s.initial_state[0].data_type != s.data_type or not s.initial_state[0].WhichOneof("state_data"):
                raise Refused(f"{s.input_name}: initial_state has no data of the state's type")
            model = [1 if n == "batch" else n for n in self.inputs[s.input_name][1]]
            if model != list(s.dims):
                raise Refused(f"{s.input_name}: dims {list(s.dims)}, model {model}")
        names = [s.input_name for s in batching.state]
        pairs = zip(sorted(names), sorted(s.output_name for s in batching.state), strict=True)
        want = {s.input_name: s.output_name for s in batching.state}
        if any(want[a] != b for a, b in pairs):  # the server pairs them by their order
            raise Refused("input and output names of states do not sort alike")

    def _begin(self):
        state = {}
        for s in self.config.sequence_batching.state:
            first, kind = s.initial_state[0], KINDS[self._type(s.data_type)]
            if first.zero_data:
                state[s.input_name] = np.zeros(list(s.dims), kind)
            else:
                raw = (self.folder / "initial_state" / first.data_file).read_bytes()
                count = int(np.prod(s.dims))
                if len(raw) < count * np.dtype(kind).itemsize:
                    raise Refused(f"{s.input_name}: {len(raw)} bytes of initial state")
                state[s.input_name] = np.frombuffer(raw, kind, count).reshape(list(s.dims)).copy()
        return state

    def infer(self, conversation, inputs, outputs=("logits",), start=False, end=False):
        """One request of a conversation: its outputs by name."""
        if start:
            if len(self.sequences) >= self.config.sequence_batching.oldest.max_candidate_sequences:
                raise Refused("no slot is free")
            self.sequences[conversation] = self._begin()
        elif conversation not in self.sequences:
            raise Refused(f"request for sequence {conversation} must specify the START flag on the first request")
        entries = {e.name: e for e in self.config.input}
        if set(inputs) != set(entries):
            raise Refused(f"expected inputs {sorted(entries)}, got {sorted(inputs)}")
        for name, value in inputs.items():
            dims = entries[name].dims
            if value.dtype != KINDS[self._type(entries[name].data_type)] or len(dims) != value.ndim:
                raise Refused(f"{name}: type or rank")
            if any(d not in (-1, n) for d, n in zip(dims, value.shape, strict=True)):
                raise Refused(f"{name}: shape {value.shape} is not {list(dims)}")
        if not set(outputs) <= {e.name for e in self.config.output}:
            raise Refused(f"unexpected inference output of {outputs}")
        states = self.config.sequence_batching.state
        names = [*outputs, *(s.output_name for s in states)]
        got = self.session.run(names, inputs | self.sequences[conversation])
        self.sequences[conversation] = dict(zip((s.input_name for s in states), got[len(outputs) :], strict=True))
        if end:
            del self.sequences[conversation]
        return dict(zip(outputs, got, strict=False))
