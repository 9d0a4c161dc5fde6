"""Loud channels in places of their own: found where they are, the same model in exact arithmetic, a smaller rounding error; what is not moved."""

import json

import mlx_kit as kit
import numpy as np
import onnx_kit
import pytest
import tiny
from compare import assert_close, relative_l2
from safetensors.numpy import load_file, save_file

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from lm2.export import export, loud  # noqa: E402
from lm2.export.backbone import normed_inputs  # noqa: E402
from lm2.export.linear import fits_half  # noqa: E402
from lm2.export.options import Options  # noqa: E402
from lm2.export.quantize import refined, to_blocks, values  # noqa: E402
from lm2.export.weights import Weights  # noqa: E402
from lm2.models.layout import open_folder  # noqa: E402

CHANNELS = (7, 40)
TOPICS = dict(memory_layers=(1, 2), topics=(0,), topic_back=6, topic_around=2)


@pytest.fixture
def source(request, tmp_path):
    """A gated tiny model of width 64 whose stream carries two loud channels from the first layer on; matrices make up for it, as trained ones do."""
    fields = dict(memory_layers=(0, 2), head_dim=16, attention_bias=True, mlp_bias=True, tie_word_embeddings=False)
    config = tiny.config(width=64, **(fields | getattr(request, "param", {})))
    from lm2.models.weights import random_model, save_folder

    save_folder(random_model(config, seed=5), tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    tensors = {name: array.copy() for name, array in load_file(file).items()}
    tensors["model.layers.0.self_attn.o_proj.bias"][list(CHANNELS)] = 40, -30
    for name in tensors:
        if loud.reads_stream(name.removesuffix(".weight")) and "embed" not in name:
            tensors[name][:, CHANNELS] /= 40
    save_file(tensors, file, metadata={"format": "pt"})
    (tmp_path / "m" / "fingerprint.json").unlink(missing_ok=True)
    return tmp_path / "m"


def outputs(path, count=3):
    """Logits and banks of three chunks, each fed in three calls."""
    b, state, out = onnx_kit.backend(path), None, []
    for c in range(count):
        logits, chunk = kit.run(b, kit.tokens(b, 1, b.config.memory.chunk, c), state, (5, 6, 11))
        state = b.commit(chunk)
        out += [logits, b.to_host(state)]
    return out


def moved(monkeypatch, channels, precision=None):
    """Exports move `channels`, in every precision, or in `precision`."""

    def widened(config, weights, options):
        if precision not in (None, options.precision):
            return weights
        return loud.Widened(weights, np.array(channels), np.ones(len(channels)), config.hidden_size)

    monkeypatch.setattr(export, "widened", widened)


def test_they_are_found_on_drawn_tokens(source):
    folder = open_folder(source)
    with open(folder.weights, "rb") as f:
        inputs = list(normed_inputs(folder.config, Weights(folder, f)))
    channels, shares = loud.find(inputs)
    assert set(channels) >= set(CHANNELS) and len(shares) == len(channels) and shares.min() > 0
    before, after = (sum(loud.rounding(x, c) for x in inputs) for c in (channels[:0], channels))
    assert after < 0.5 * before


def test_a_model_without_them_is_left_as_it_is():
    rng = np.random.default_rng(0)
    channels, _ = loud.find([rng.standard_normal((40, 64)).astype(np.float32) for _ in range(4)])
    assert channels.size == 0


@pytest.mark.parametrize(
    ("source", "kind"),
    [({}, loud.Widened), (dict(backbone=tiny.BACKBONES["norms after"]), Weights), (dict(backbone=tiny.BACKBONES["norms around"]), Weights)],
    indirect=["source"],
)
def test_norms_after_attention_leave_the_channels_where_they_are(source, kind):
    """What joins the stream is normed in its own order there."""
    folder = open_folder(source)
    with open(folder.weights, "rb") as f:
        assert type(loud.widened(folder.config, Weights(folder, f), Options("int8", plain=True))) is kind


def test_the_backbone_is_the_models(source):
    """What the search looks at is what torch computes: normed inputs of two layers, from the trace of layer outputs."""
    torch = kit.torch(source)
    folder = open_folder(source)
    ids = np.random.default_rng(0).integers(0, folder.config.vocab_size, min(64, folder.config.memory.chunk))
    with open(folder.weights, "rb") as f:
        weights = Weights(folder, f)
        inputs = list(normed_inputs(folder.config, weights))
        traced = dict(torch.trace(ids, torch.commit(torch.start())))
        for i in (1, 2):  # what enters layer i, normed
            x = traced[f"layers.{i - 1}.output"][0]
            want = (
                x
                / np.sqrt(np.square(x).mean(-1, keepdims=True) + folder.config.rms_norm_eps)
                * weights[f"model.layers.{i}.input_layernorm.weight"]
            )
            assert_close(f"layer {i}", inputs[2 * i], want, 1e-4)


OTHER = dict(backbone=tiny.BACKBONES["norms of heads"])


@pytest.mark.parametrize("source", [{}, TOPICS, OTHER], indirect=True, ids=["gated", "topics", "another decoder"])
def test_moving_them_changes_nothing_in_float32(source, tmp_path, monkeypatch):
    export.export_model(source, tmp_path / "plain")
    moved(monkeypatch, CHANNELS)
    export.export_model(source, tmp_path / "moved")
    for a, b in zip(outputs(tmp_path / "plain"), outputs(tmp_path / "moved"), strict=True):
        assert relative_l2(a, b) < 5e-6
    plain, other = (onnx_kit.backend(tmp_path / name) for name in ("plain", "moved"))
    ids, state = np.arange(9), plain.commit(plain.extend(np.arange(5), plain.start())[1])
    for (name, a), (_, b) in zip(plain.trace(ids, state), other.trace(ids, state), strict=True):
        assert a.shape == b.shape and relative_l2(a, b) < 5e-6, name


@pytest.mark.parametrize("fault", ["norm", "place", "embedding"])
def test_a_wrong_move_is_seen(source, tmp_path, monkeypatch, fault):
    """Negative controls: the mean over more places not made up for, a channel in another's place, loud channels left where they were as well."""
    export.export_model(source, tmp_path / "plain")
    moved(monkeypatch, CHANNELS)
    if fault == "norm":
        right = loud.Widened.__getitem__
        monkeypatch.setattr(loud.Widened, "__getitem__", lambda s, n: right(s, n) * (np.float32(1.05) if n.endswith("norm.weight") else 1))
    elif fault == "place":
        right = loud.Widened.apart
        monkeypatch.setattr(loud.Widened, "apart", lambda s, a: right(s, a) if a.ndim > 1 else np.roll(right(s, a), 1, 0))
    else:
        monkeypatch.setattr(loud.Widened, "quiet", lambda s: np.ones(s.width, np.float32))
    export.export_model(source, tmp_path / "moved")
    assert relative_l2(outputs(tmp_path / "plain", 1)[0], outputs(tmp_path / "moved", 1)[0]) > 1e-3


def test_int8_is_nearer_to_float32(source, tmp_path, monkeypatch):
    export.export_model(source, tmp_path / "fp32")
    export.export_model(source, tmp_path / "moved", Options("int8", plain=True))
    export.export_model(source, tmp_path / "portable", Options("int8", portable=True))
    export.export_model(source, tmp_path / "default", Options("int8"))
    monkeypatch.setattr(export, "widened", lambda config, weights, options: weights)
    export.export_model(source, tmp_path / "left", Options("int8", plain=True))
    places = {}
    for name in ("moved", "portable", "left", "default"):
        meta = ort.InferenceSession(str(tmp_path / name / "model.onnx")).get_modelmeta().custom_metadata_map
        places[name] = json.loads(meta.get("lm2.places", "{}"))
    assert places["moved"]["count"] == 96 and not places["portable"] and not places["left"] and not places["default"]
    want = outputs(tmp_path / "fp32", 1)[0]
    assert relative_l2(want, outputs(tmp_path / "moved", 1)[0]) < 0.7 * relative_l2(want, outputs(tmp_path / "left", 1)[0])


def test_the_scale_of_few_columns_is_chosen_for_them():
    """The error that counts falls well below that of largest / 127; other blocks stay as they were."""
    rng = np.random.default_rng(1)
    w = np.zeros((200, 96), np.float32)
    w[:, :67] = rng.standard_normal((200, 67))
    shares = np.array([9.0, 3.0, 1.0])
    before = to_blocks(w, 8)
    after = refined(before, w, shares)
    error = [(shares * np.square(values(b) - w)[:, 64:67]).sum() for b in (before, after)]
    assert error[1] < 0.3 * error[0]
    assert np.array_equal(values(before)[:, :64], values(after)[:, :64]) and not values(after)[:, 67:].any()


@pytest.mark.parametrize(("plain", "count"), [(True, 6), (False, 4)])
def test_memory_matrices_are_stored_in_half_where_that_is_exact(source, tmp_path, plain, count):
    """Same numbers, fewer bytes; one value that float16 does not hold and the matrix stays as it is. Where QLinear is, output gates are in its blocks."""
    import onnx

    file = source / "model.safetensors"
    tensors = load_file(file)
    gates = [n for n in tensors if ".memory." in n and n.endswith(("gate.weight", "content.weight"))]
    tensors |= {n: tensors[n].astype(np.float16).astype(np.float32) for n in gates}
    tensors["model.layers.2.memory.content.weight"][0, 0] = np.float32(0.1)
    save_file(tensors, file, metadata={"format": "pt"})
    export.export_model(source, tmp_path / "x", Options("int8", plain=plain))
    graph = onnx.load(tmp_path / "x" / "model.onnx").graph
    inner = [a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]  # what is done at a chunk's end
    weights = [t for g in (graph, *inner) for t in g.initializer if ".memory." in t.name and "gate" in t.name and t.name.endswith("weight")]
    half = {t.name for t in weights if t.data_type == onnx.TensorProto.FLOAT16}
    assert len(weights) == count and {t.name for t in weights} - half == {"model.layers.2.memory.input_gate+content.weight"}
    assert fits_half(np.float32([1, 0.5, -3])) and not fits_half(np.float32([0.1])) and not fits_half(np.float32([1e6]))
