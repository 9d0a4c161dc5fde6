"""What an export holds in memory: a few rows of a matrix at a time, or one matrix in the type it is stored in; and that the pieces make the same file."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx_kit
import pytest
import tiny

onnx = pytest.importorskip("onnx")
from google.protobuf.message import DecodeError  # noqa: E402

from lm2.export import weights as weights_module  # noqa: E402
from lm2.export import wire  # noqa: E402
from lm2.export.export import export_model  # noqa: E402
from lm2.export.options import Options  # noqa: E402
from lm2.models.errors import ConvertError  # noqa: E402
from lm2.models.weights import random_model, save_folder  # noqa: E402

HIDDEN, INNER, LAYERS, VOCAB = 384, 768, 8, 2048
LARGEST = 4 * VOCAB * HIDDEN / 1e6  # MB of the embedding in float32
SLACK = 20  # MB: temporary arrays of the rows that are rounded together, blocks of files, and the graph
MEASURE = """
import json, sys
from pathlib import Path
from lm2.export import export, graph, weights
from lm2.export.options import Options

def now(what):
    return next(int(line.split()[1]) / 1e3 for line in open("/proc/self/status") if line.startswith(what))

warm, source, out, precision, form, fault = sys.argv[1:]
options = Options(precision, plain=form == "plain", portable=form == "portable")
export.export_model(Path(warm), Path(out + "-warm"), options, measure_cost=False)  # libraries are loaded as they are used
if fault == "kept":
    parts, kept = weights.Weights.parts, []
    weights.Weights.parts = lambda self, name: (kept.append(part) or part for part in parts(self, name))
if fault == "in the graph":
    export.Store = lambda side, location: graph.Store()
base = now("VmRSS")
export.export_model(Path(source), Path(out), options, measure_cost=False)
print(json.dumps(now("VmHWM") - base))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A small model, and one of many layers whose largest matrix, 3 MB in float32, is a fifteenth of it."""
    root = tmp_path_factory.mktemp("models")
    config = tiny.CELLS["gated"]
    wide = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "vocab_size": VOCAB, "head_dim": HIDDEN // 4}
    memory = replace(config.memory, layers=(2,))
    save_folder(random_model(config, seed=1), root / "small")
    save_folder(random_model(replace(config, memory=memory, **wide), seed=1), root / "large", "bfloat16")
    return root


def peak(models, out, precision, form="default", fault=""):
    """Megabytes above what the process had, at most, in an export in a process of its own."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    command = [sys.executable, "-c", MEASURE, str(models / "small"), str(models / "large"), str(out), precision, form, fault]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("precision", "form"),
    [("fp32", "default"), ("int4", "default"), *(pytest.param(p, f, marks=pytest.mark.slow) for p, f in [("fp16", "default"), ("int8", "default"), ("int8", "portable"), ("int4", "portable")])],
)
def test_a_matrix_is_held_and_not_the_model(models, tmp_path, precision, form):
    assert peak(models, tmp_path / "out", precision, form) <= LARGEST + SLACK


@pytest.mark.parametrize("fault", ["kept", "in the graph"])
def test_holding_the_model_is_seen(models, tmp_path, fault):
    assert peak(models, tmp_path / "out", "fp32", fault=fault) > 2 * LARGEST + SLACK


KINDS = [(p, f) for p in ("fp32", "fp16", "int8", "int4") for f in ("default", "plain", "portable") if p[0] == "i" or f == "default"]


def files(path):
    return {name: (path / name).read_bytes() for name in ("model.onnx", "model.onnx.data") if (path / name).exists()}


@pytest.mark.parametrize(("precision", "form"), KINDS)
def test_pieces_make_the_same_file(models, tmp_path, monkeypatch, precision, form):
    """Whole matrices, and a row or a few at a time: the same bytes, in one file and in two. Control: other rows."""
    options = Options(precision, plain=form == "plain", portable=form == "portable")
    for name, count in (("whole", 1 << 18), ("pieces", 100)):
        monkeypatch.setattr(weights_module, "AT_ONCE", count)
        export_model(models / "small", tmp_path / name, options, measure_cost=False)
        export_model(models / "small", tmp_path / f"{name} beside", options, inline_max=1, measure_cost=False)
    assert files(tmp_path / "pieces") == files(tmp_path / "whole") and len(files(tmp_path / "whole")) == 1
    assert files(tmp_path / "pieces beside") == files(tmp_path / "whole beside") and len(files(tmp_path / "whole beside")) == 2
    monkeypatch.setattr(weights_module, "cut", lambda rows, columns: iter([slice(1, rows), slice(0, 1)]))
    export_model(models / "small", tmp_path / "other", options, measure_cost=False)
    assert files(tmp_path / "other") != files(tmp_path / "whole")


@pytest.mark.parametrize("name", ["gated-topics", "released-causal"])
def test_one_file_is_what_protobuf_writes(tmp_path, name):
    """Read and written again, the same bytes; and every node and initializer, those of branches too, is that of the model with its weights beside it."""
    source, path = onnx_kit.exported(tmp_path, name, Options("int8"))
    export_model(source, tmp_path / "beside", Options("int8"), inline_max=1)
    body = (path / "model.onnx").read_bytes()
    one, two = onnx.load_from_string(body), onnx.load(tmp_path / "beside" / "model.onnx")
    assert one.SerializeToString() == body
    assert len(tensors(one.graph)) > 30
    for a, b in zip(tensors(one.graph), tensors(two.graph), strict=True):
        b.ClearField("data_location")  # the reader leaves it there, as that of a tensor which is not beside
        assert a == b, a.name
    assert one == two


def tensors(graph):
    """Initializers, those of branches first."""
    inner = [t for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH for t in tensors(a.g)]
    return [*inner, *graph.initializer]


@pytest.mark.parametrize("fault", ["order", "length", "branch"])
def test_a_file_joined_wrongly_is_seen(tmp_path, monkeypatch, fault):
    """Controls of the test above."""
    right = wire.chunks

    def wrong(message):
        made = right(message)
        if fault == "length" and isinstance(message, onnx.GraphProto):
            return made[:-1]
        if fault == "branch" and isinstance(message, onnx.GraphProto) and message.name == "rows_enter":
            return [message.SerializeToString()]
        if fault == "order" and isinstance(message, onnx.TensorProto) and len(made) > 1:
            return [*made[1:3], made[0]]
        return made

    monkeypatch.setattr(wire, "chunks", wrong)
    with pytest.raises((AssertionError, DecodeError, ConvertError, onnx.checker.ValidationError)):
        test_one_file_is_what_protobuf_writes(tmp_path, "gated-topics")
