"""What a memory changes in its backbone: read as one matrix by every backend and every export, and gone with the memory."""

import json
from dataclasses import replace

import numpy as np
import pytest
import sources
import tiny

from lm2.models.changes import change_shapes, factors_of
from lm2.models.checkpoints.adapter import CHANGES, backbone_key, open_adapter, save_adapter
from lm2.models.checkpoints.convert import convert
from lm2.models.checkpoints.warmstart import MemoryRequest
from lm2.models.config import LM2Config
from lm2.models.errors import ConfigError, ConvertError, ModelFileError
from lm2.models.layout import memory_shapes, open_folder, stays_float32, tensor_shapes

torch = pytest.importorskip("torch")
from lm2.models.weights import load_model, random_model, save_folder, slots_of  # noqa: E402

BIAS = dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=False)


def changed(where, rank=3, begin=1, cell="gated-pair", dtype="float32", **fields):
    """Two folders: a model with changes, and one whose matrices were changed by hand and whose config knows of none."""
    plain = replace(tiny.CELLS[cell], **fields)
    config = replace(plain, memory=replace(plain.memory, low_rank=rank, low_rank_from=begin))
    generator = torch.Generator().manual_seed(5)
    factors = {n: (0.3 * torch.randn(s, generator=generator)).bfloat16().float() for n, s in change_shapes(config).items()}
    model = random_model(config, 3)
    save_folder(model, where / "changed", dtype, factors)
    by_hand = random_model(plain, 3)
    for name, slot in slots_of(by_hand):
        if (found := factors_of(name, config)) is not None:
            own = slot.to(getattr(torch, dtype)).float()
            slot.copy_(own + torch.from_numpy(factors[found[1]].numpy()[found[2]] @ factors[found[0]].numpy()))
        elif not stays_float32(name):
            slot.copy_(slot.to(getattr(torch, dtype)))
    save_folder(by_hand, where / "by_hand")
    return where / "changed", where / "by_hand"


def said(path, ids, memory=True):
    """Logits of two readings, the second behind what the first wrote."""
    folder = open_folder(path)
    model = load_model(folder if memory else folder.without_memory())
    first, bank = model(ids, model.initial_bank(), 0)
    again, _ = model(ids, bank, 1)
    return torch.stack((first, again))


def test_which_matrices_and_where(tmp_path):
    config = replace(tiny.CELLS["gated"], memory=replace(tiny.CELLS["gated"].memory, low_rank=2, low_rank_from=2))
    names = [n for n in tensor_shapes(config) if factors_of(n, config) is not None]
    assert len(names) == 7 and all(n.startswith("model.layers.2.") and "memory" not in n for n in names)
    rows = [factors_of(f"model.layers.2.self_attn.{x}_proj.weight", config)[2] for x in "qkv"]
    assert [(r.start, r.stop) for r in rows] == [(0, 32), (32, 48), (48, 64)]
    assert not change_shapes(tiny.CELLS["gated"]) and factors_of(names[0], tiny.CELLS["gated"]) is None


@pytest.mark.parametrize("fields", [{}, BIAS], ids=["tied", "biases"])
def test_torch_reads_the_sum(tmp_path, fields):
    """The same bits as matrices changed by hand; the control without changes is another model."""
    ids = torch.arange(16)[None]
    a, b = changed(tmp_path, **fields)
    assert torch.equal(said(a, ids), said(b, ids))
    plain = replace(tiny.CELLS["gated-pair"], **fields)
    save_folder(random_model(plain, 3), tmp_path / "plain")
    assert (said(tmp_path / "plain", ids) - said(b, ids)).abs().max() > 1e-2


def test_bfloat16_is_summed_in_float32(tmp_path):
    ids = torch.arange(16)[None]
    a, b = changed(tmp_path, dtype="bfloat16")
    assert torch.allclose(said(a, ids), said(b, ids), atol=1e-6)


def test_the_backbone_alone_is_unchanged(tmp_path):
    ids = torch.arange(16)[None]
    a, b = changed(tmp_path)
    save_folder(random_model(tiny.CELLS["gated-pair"], 3), tmp_path / "plain")
    assert torch.equal(said(a, ids, memory=False), said(tmp_path / "plain", ids, memory=False))
    assert (said(a, ids, memory=False) - said(b, ids, memory=False)).abs().max() > 1e-2
    assert open_folder(a).fingerprint != open_folder(b).fingerprint


@pytest.mark.parametrize("bits", [None, 8])
def test_mlx_reads_the_sum(tmp_path, bits):
    """Unpacked, and packed: the packed numbers are those of the changed matrices."""
    pytest.importorskip("mlx.core")
    import mlx_kit

    from lm2.lm2_mlx.quantize import quantize_folder

    a, b = changed(tmp_path, intermediate_size=64)
    if bits:
        for path in (a, b):
            quantize_folder(path, tmp_path / f"{path.name}{bits}", bits, 32)
        a, b = tmp_path / f"{a.name}{bits}", tmp_path / f"{b.name}{bits}"
        with pytest.raises(ModelFileError, match="was packed with the memory's changes"):
            open_folder(a, quantized=True).without_memory()
        ours, theirs = mlx_kit.tensors(a), mlx_kit.tensors(b)
        assert ours.keys() == theirs.keys() and all(np.array_equal(ours[n], theirs[n]) for n in ours)
    ours, theirs = mlx_kit.mlx(a), mlx_kit.mlx(b)
    got, wanted = (mlx_kit.run(x, mlx_kit.tokens(x, 1, 16), mlx_kit.written(x)) for x in (ours, theirs))
    assert np.array_equal(np.array(got[0]), np.array(wanted[0]))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_onnx_is_exported_with_the_sum(tmp_path, precision):
    pytest.importorskip("onnxruntime")
    import onnx

    from lm2.export.export import export_model
    from lm2.export.options import Options

    made = []
    for path in changed(tmp_path):
        export_model(path, tmp_path / f"{path.name}-onnx", Options(precision=precision))
        graph = onnx.load(tmp_path / f"{path.name}-onnx" / "model.onnx").graph
        made.append({i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer})
    assert made[0].keys() == made[1].keys() and all(np.array_equal(made[0][n], made[1][n]) for n in made[0])


@pytest.mark.parametrize("drop", [0, 1])
def test_a_factor_that_is_missing(tmp_path, drop):
    from safetensors.torch import load_file, save_file

    a, b = changed(tmp_path)
    tensors = load_file(a / "model.safetensors")
    name = next(n for n in tensors if n.endswith(("change_in", "change_out")[drop]))
    save_file({n: t for n, t in tensors.items() if n != name}, a / "model.safetensors")
    with pytest.raises(ModelFileError, match=f"no tensor {name}"):
        open_folder(a)
    save_file(load_file(b / "model.safetensors") | {name: tensors[name]}, b / "model.safetensors")
    with pytest.raises(ModelFileError, match=f"has tensor {name}, which config.json does not call for"):
        open_folder(b)


@pytest.mark.parametrize(
    ("field", "value", "cell"),
    [("low_rank", -1, "gated"), ("low_rank", "3", "gated"), ("low_rank", 33, "gated"), ("low_rank_from", 3, "gated"), ("low_rank", 2, "released-chunk")],
)
def test_fields_that_are_refused_by_name(field, value, cell):
    d = tiny.CELLS[cell].to_dict()
    assert field not in d["memory"]
    d["memory"] = d["memory"] | {field: value}
    with pytest.raises(ConfigError, match=f"memory.{field}"):
        LM2Config.from_dict(d)


@pytest.fixture
def adapter(tmp_path):
    """A llama, and an adapter for it that changes layers 2 and 3."""
    hf = sources.save_hf(sources.llama(layers=4, seed=0), tmp_path / "hf")
    convert(hf, tmp_path / "plain", MemoryRequest())
    folder = open_folder(tmp_path / "plain")
    memory = replace(folder.config.memory, slots=128, chunk=64, layers=(1, 2), trained=True, low_rank=4, low_rank_from=2)
    config = replace(folder.config, memory=memory)
    rng = np.random.default_rng(0)
    shapes = {f"model.layers.{i}.memory.{n}": s for i in (1, 2) for n, s in memory_shapes(config).items()} | change_shapes(config)
    tensors = {n: 0.1 * rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    key = backbone_key(config, sources.read_folder(tmp_path / "plain")[0].__getitem__)
    save_adapter(tmp_path / "adapter", config, key, "llama", tensors, {})
    return hf, tmp_path / "adapter", tensors


def test_an_adapter_brings_them(adapter, tmp_path):
    hf, path, tensors = adapter
    assert sorted(p.name for p in path.iterdir()) == ["adapter.json", CHANGES, "memory.safetensors"] and open_adapter(path).memory.low_rank == 4
    convert(hf, tmp_path / "out", MemoryRequest(adapter=path))
    own = sources.read_folder(tmp_path / "out")[0]
    assert all(np.array_equal(own[n], t.astype(np.float16).astype(np.float32)) for n, t in tensors.items() if t.ndim == 2)
    ids = torch.arange(20)[None]
    bare = said(tmp_path / "out", ids, memory=False)
    assert np.allclose(bare[0].detach(), sources.backbone_logits(tmp_path / "out", ids), atol=1e-4), "alone it is the llama"
    assert (said(tmp_path / "out", ids)[0] - bare[0]).abs().max() > 1e-3, "an empty memory has its changes too"
    record = json.loads((tmp_path / "out" / "source.json").read_text())
    assert {"adapter_sha256", "adapter_changes_sha256"} <= record.keys()


@pytest.mark.parametrize("how", ["gone", "cut", "other rank"])
def test_an_adapter_without_its_changes(adapter, tmp_path, how):
    hf, path, _ = adapter
    if how == "gone":
        (path / CHANGES).unlink()
    elif how == "cut":
        (path / CHANGES).write_bytes((path / CHANGES).read_bytes()[:-7])
    else:
        record = json.loads((path / "adapter.json").read_text())
        record["memory"]["low_rank"] = 5
        (path / "adapter.json").write_text(json.dumps(record))
    with pytest.raises(ConvertError, match=f"{CHANGES}.*get the adapter again"):
        convert(hf, tmp_path / "out", MemoryRequest(adapter=path))
    assert not (tmp_path / "out").exists()
