"""`lm2 export`: the graph is valid, says what it is, takes what the docs say, and carries the precision asked for."""

import json
import re
from pathlib import Path

import numpy as np
import onnx_kit
import pytest
import tiny
from click.testing import CliRunner

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from lm2.cli import group  # noqa: E402
from lm2.export.export import export_model  # noqa: E402
from lm2.export.options import Options  # noqa: E402
from lm2.models.errors import ConvertError, ModelFileError  # noqa: E402
from lm2.models.exported import Export  # noqa: E402
from lm2.models.layout import open_folder  # noqa: E402

DOCS = Path(__file__).parent.parent.parent / "docs" / "onnx.md"


def nodes(graph):
    """Every node, those of branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes(attribute.g)


def load(path):
    return onnx.load(path / "model.onnx")


@pytest.mark.parametrize("form", list(onnx_kit.FORMS))
@pytest.mark.parametrize("name", ["gated", "gated-topics", "released-causal", "released-chunk"])
def test_operators_are_those_asked_for(tmp_path, name, form):
    """portable: ONNX's own and the custom node; plain: no custom node; both: nothing but ONNX. Otherwise the fused ones are there."""
    options = onnx_kit.FORMS[form]
    _, path = onnx_kit.exported(tmp_path, name, options)
    model = load(path)
    onnx.checker.check_model(model, full_check=True)
    domains = {node.domain for node in nodes(model.graph)}
    assert ("ai.lm2" in domains) == (not options.plain)
    assert ("com.microsoft" in domains) == (not options.portable and name != "released-chunk")
    attends = [] if options.portable or name == "released-chunk" else ["ChunkAttention"]
    assert [f.name for f in model.functions] == ([] if options.plain else ["GatedMemoryUpdate", *attends])
    fused = {node.op_type for node in nodes(model.graph)} & {"ChunkAttention", "GroupQueryAttention"}
    assert fused == (set() if options.portable or name == "released-chunk" else {"GroupQueryAttention" if options.plain else "ChunkAttention"})
    versions = {o.domain: o.version for o in model.opset_import}
    assert versions[""] == options.opset and domains - {""} <= set(versions)
    scatter = {node.op_type for node in nodes(model.graph)} & {"TensorScatter", "ScatterND"}
    assert scatter == {"TensorScatter" if options.opset >= 24 else "ScatterND"}


def test_metadata_names_the_model(tmp_path):
    source, path = onnx_kit.exported(tmp_path, "gated")
    folder = open_folder(source)
    meta = {p.key: p.value for p in load(path).metadata_props}
    assert meta["lm2.fingerprint"] == folder.fingerprint and json.loads(meta["lm2.config"]) == folder.config.to_dict()
    assert meta["lm2.precision"] == "fp32"
    opened = open_folder(path, exported=True)
    assert opened.fingerprint == folder.fingerprint and opened.config == folder.config
    with pytest.raises(ModelFileError, match="--backend onnx"):
        open_folder(path)


@pytest.mark.parametrize("name", ["gated", "gated-topics", "released-causal", "released-chunk"])
def test_every_input_and_output_is_documented(tmp_path, name):
    """Name, type and number of axes in docs/onnx.md are the file's; state goes around unchanged in shape."""
    _, path = onnx_kit.exported(tmp_path, name)
    text = DOCS.read_text(encoding="utf-8")
    rows = {m[1]: (m[2], m[3]) for m in re.finditer(r"^\| `([a-z_.{}]+)` \| (\w+) \| \(([^)]*)\)", text, re.M)}
    kinds = {"int64": onnx.TensorProto.INT64, "float32": onnx.TensorProto.FLOAT, "T": onnx.TensorProto.FLOAT}
    graph = load(path).graph
    for value in [*graph.input, *graph.output]:
        key = re.sub(r"\.\d+$", ".{i}", value.name).replace("present_", "past_")
        kind, axes = rows[key]
        assert value.type.tensor_type.elem_type == kinds[kind], value.name
        assert len(value.type.tensor_type.shape.dim) == len([a for a in axes.split(",") if a.strip()]), value.name
    inputs = {v.name: v.type for v in graph.input}
    for value in graph.output:
        if value.name != "logits":
            assert inputs[value.name.replace("present_", "past_")] == value.type


KINDS = {"default": "QLinear", "portable": "DequantizeLinear", "plain": "MatMulNBits"}


@pytest.mark.parametrize("form", list(KINDS))
@pytest.mark.parametrize("precision,bits", [("int8", 8), ("int4", 4)])
def test_quantised_matrices(tmp_path, precision, bits, form):
    """Everything linear of the backbone and what a memory reads with; gates, norms, content and bank in float32, but for the output gate where QLinear keeps
    16 bits of what it takes."""
    options = Options(precision, portable=form == "portable", plain=form == "plain")
    _, path = onnx_kit.exported(tmp_path, "gated", options)
    model = load(path)
    packed = [n for n in nodes(model.graph) if n.op_type == KINDS[form]]
    assert not {n.op_type for n in nodes(model.graph)} & ({"BlockSums", *KINDS.values()} - {KINDS[form]})
    assert ("QLinear" in [f.name for f in model.functions]) == (form == "default")
    per_layer = {"q_proj+k_proj+v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    inputs = {name for n in packed for name in n.input if name.endswith(".q")}
    for i in range(3):
        assert {f"model.layers.{i}.{'mlp' if 'proj' in p and p[0] in 'gud' else 'self_attn'}.{p}.q" for p in per_layer} <= inputs
    assert {f"model.layers.{i}.memory.{p}.q" for i in (0, 2) for p in ("q_proj", "k_proj+v_proj", "o_proj")} <= inputs
    tensors = {t.name: t for n in [model.graph, *branches(model.graph)] for t in n.initializer}
    assert "model.embed_tokens.q" in tensors
    floats = {name for name, t in tensors.items() if t.data_type == onnx.TensorProto.FLOAT}
    for part in ("input_gate+content.weight", "forget_gate.weight", "norm.weight", "bank_norm.weight"):
        assert f"model.layers.0.memory.{part}" in floats
    gate = "model.layers.0.memory.output_gate"
    assert (f"{gate}.q" in inputs, f"{gate}.weight" in floats) == ((True, False) if form == "default" else (False, True))
    assert not any(name.startswith("model.") and "proj.weight" in name for name in floats)
    reads = {"default": "ChunkAttention", "plain": "MultiHeadAttention", "portable": "Attention"}
    assert {n.op_type for n in nodes(model.graph) if n.name.endswith("read")} == {reads[form]}
    if form == "default":
        nodes_bits = {n.input[1]: n.attribute[0].i for n in packed}
        assert {b for q, b in nodes_bits.items() if ".memory." in q or "embed" in q} == {8} and set(nodes_bits.values()) == {bits, 8}
        tables = [n for n in nodes(model.graph) if "model.embed_tokens.q" in n.input]
        assert [n.op_type for n in tables] == ["GatherND", "QLinear"]  # one table for the embedding and the head


@pytest.mark.parametrize("options", [Options("fp16"), *(Options(p, portable=f) for p in ("int8", "int4") for f in (False, True))])
def test_topics_stay_float32(tmp_path, options):
    _, path = onnx_kit.exported(tmp_path, "gated-topics", options)
    model = load(path)
    own = {t.name: t.data_type for n in [model.graph, *branches(model.graph)] for t in n.initializer if ".topics." in t.name}
    want = {f"model.layers.2.memory.topics.{x}" for x in ("keep", "write.weight", "write.bias", "query.weight", "query.bias")}
    assert set(own) == want and set(own.values()) == {onnx.TensorProto.FLOAT}


def branches(graph):
    return [a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]


def test_large_models_keep_weights_beside_the_graph(tmp_path):
    """The same logits from a side file; half of it, or none, is one clear line."""
    source, path = onnx_kit.exported(tmp_path, "gated")
    side = tmp_path / "side"
    export_model(source, side, Options(), inline_max=1)
    assert (side / "model.onnx.data").stat().st_size > 10_000 > (side / "model.onnx").stat().st_size / 10
    ids = np.arange(9)
    a, b = (onnx_kit.backend(p) for p in (path, side))
    assert np.array_equal(a.extend(ids, a.start())[0], b.extend(ids, b.start())[0])
    body = (side / "model.onnx.data").read_bytes()
    (side / "model.onnx.data").write_bytes(body[:-1])
    with pytest.raises(ModelFileError, match=r"model\.onnx\.data has \d+ bytes"):
        onnx_kit.backend(side)
    (side / "model.onnx.data").unlink()
    with pytest.raises(ModelFileError, match=r"model\.onnx\.data is missing"):
        onnx_kit.backend(side)


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_flipped_byte(tmp_path, where):
    _, path = onnx_kit.exported(tmp_path, "gated")
    onnx_kit.backend(path)
    body = bytearray((path / "model.onnx").read_bytes())
    body[int(where * len(body))] ^= 0x40
    (path / "model.onnx").write_bytes(body)
    with pytest.raises(ModelFileError, match=r"model\.onnx has sha256 \w+\.\.\., it was exported with \w+") as caught:
        onnx_kit.backend(path)
    assert "\n" not in str(caught.value)


def test_an_opset_the_runtime_does_not_have(tmp_path):
    _, path = onnx_kit.exported(tmp_path, "gated")
    onnx_kit.rewritten(path, lambda m: [setattr(o, "version", 99) for o in m.opset_import if o.domain == ""])
    with pytest.raises(ModelFileError, match=r"does not open in ONNX Runtime [\d.]+ .*opset") as caught:
        onnx_kit.backend(path)
    assert "\n" not in str(caught.value)


def test_a_graph_of_another_model(tmp_path):
    _, path = onnx_kit.exported(tmp_path / "a", "gated")
    _, other = onnx_kit.exported(tmp_path / "b", "gated", vocab=61, layers=2, memory_layers=(0, 1))
    config = json.loads((path / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"onnx": json.loads((other / "config.json").read_text())["onnx"]}))
    with pytest.raises(ModelFileError, match="the files are not of one export"):
        onnx_kit.backend(other)
    onnx_kit.rewritten(path, lambda m: m.ClearField("metadata_props"))
    with pytest.raises(ModelFileError, match="is not an LM2 export"):
        onnx_kit.backend(path)


@pytest.mark.parametrize("change", [{"format": 1}, {"precision": "int3"}, {"opset": 7}, {"source_fingerprint": "x"}, {"files": {}}])
def test_the_record_is_checked(tmp_path, change):
    record = Export("0" * 64, "fp32", 24, files={"model.onnx": (1, "1" * 64)})
    assert Export.from_dict(record.to_dict()) == record
    with pytest.raises(ValueError, match=rf"onnx\.{next(iter(change))}"):
        Export.from_dict(record.to_dict() | change)


def test_fp16_refuses_what_it_cannot_hold(tmp_path):
    from lm2.models.weights import random_model, save_folder

    model = random_model(tiny.CELLS["gated"], seed=1)
    model.layers[1].mlp.down_proj.weight.data[0, 0] = 1e6
    save_folder(model, tmp_path / "m")
    with pytest.raises(ConvertError, match=r"down_proj.*1e\+06"):
        export_model(tmp_path / "m", tmp_path / "o", Options("fp16"))
    assert not (tmp_path / "o").exists()


def test_command(tmp_path):
    source, _ = onnx_kit.exported(tmp_path, "gated")
    result = CliRunner().invoke(group, ["export", str(source), str(tmp_path / "dst"), "--precision", "int8", "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["precision"] == "int8" and summary["custom_op"] and summary["bytes"] > 0
    again = CliRunner().invoke(group, ["export", str(source), str(tmp_path / "dst")])
    assert again.exit_code != 0 and "exists already" in str(again.exception)
    packed = CliRunner().invoke(group, ["export", str(tmp_path / "dst"), str(tmp_path / "twice")])
    assert packed.exit_code != 0 and "holds an ONNX model" in str(packed.exception)


@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize(("name", "read"), [("gated", "key.0"), ("gated-topics", "around")])
def test_runs_in_the_reference_evaluator(tmp_path, name, read, new):
    """onnx's own evaluator, which never heard of the operator, runs the function body: the same numbers, at a window's begin and at a fold."""
    from onnx.reference import ReferenceEvaluator

    _, path = onnx_kit.exported(tmp_path, name, Options(portable=True))
    session = ort.InferenceSession(str(path / "model.onnx"), providers=["CPUExecutionProvider"])
    feeds = {}
    for value in session.get_inputs():
        kind = np.int64 if "int64" in value.type else np.float32
        feeds[value.name] = np.zeros([{"batch": 1, "tokens": 1, "window": 16}.get(s, s) for s in value.shape], kind)
    feeds |= {"input_ids": np.array([[3, 1, 4, 1, 5]]), "new_chunk": np.array([new]), "logits_from": np.array([0])}
    for drawn in ("past_bank", "past_writes"):
        feeds[drawn] = np.random.default_rng(0).standard_normal(feeds[drawn].shape).astype(np.float32)
    slots = feeds["past_bank"].shape[2]
    feeds |= {"past_length": np.array([9]), "past_folded": np.array([2]), "past_written": np.array([slots - 4])}  # rows of 7 positions, round the end
    names = ["logits", "present_bank", "present_writes", f"present_memory_{read}", "present_length", "present_folded"]
    want = session.run(names, feeds)
    got = ReferenceEvaluator(str(path / "model.onnx")).run(names, feeds)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4)
    changed = np.abs(got[1] - feeds["past_bank"]).max((0, 1, 3)) > 0.01
    assert changed[:3].all() and changed[-4:].all() and not changed[3:-4].any()
    assert (got[4], got[5]) == (([5], [0]) if new == 1 else ([14], [9]))
