"""Adapters: a trained memory is written, opened and put onto the backbone it names, and onto no other."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import sources
import tiny

from lm2.models.checkpoints.adapter import RECORD, TENSORS, backbone_key, open_adapter, save_adapter
from lm2.models.checkpoints.convert import convert
from lm2.models.checkpoints.warmstart import MemoryRequest
from lm2.models.config import BackboneConfig, LM2Config, MemoryConfig
from lm2.models.errors import ConfigError, ConvertError
from lm2.models.layout import memory_shapes, open_folder
from lm2.models.tensorfile import read_header, read_tensor, to_float32

MEMORY = MemoryConfig("gated", 128, 64, (1, 2), 4, 16, "zeros", output_projection=True, scale=False)


def values(folder):
    """float32 weights of a model folder by name."""
    return sources.read_folder(folder)[0]


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    """Two Hugging Face folders of one shape, the second with other norms."""
    where = tmp_path_factory.mktemp("hf")
    return [sources.save_hf(sources.llama(layers=4, seed=seed), where / f"llama{seed}") for seed in (0, 1)]


def test_the_key_of_a_llama_is_what_it_was():
    """Adapters that are out there name their backbone by it; another decoder of the same shape and norms is another backbone."""

    def norms(name):
        return np.full(4, len(name), np.float32)

    assert backbone_key(tiny.config(), norms) == "a59558a374e6b935af6fe077ead8e26cb76bec738e934ab34b63c28c67927ad1"
    keys = {backbone_key(tiny.config(backbone=b), norms) for b in (BackboneConfig(), BackboneConfig(no_rope=(1,)), *tiny.BACKBONES.values())}
    assert len(keys) == 6


@pytest.fixture(scope="module")
def parts(llamas, tmp_path_factory):
    """What an adapter for the first llama is made of: config, key, tensors."""
    plain = tmp_path_factory.mktemp("plain") / "m"
    convert(llamas[0], plain, MemoryRequest())
    folder = open_folder(plain)
    weights = values(plain)
    config = replace(folder.config, memory=replace(MEMORY, trained=True))
    rng = np.random.default_rng(0)
    tensors = {
        f"model.layers.{i}.memory.{n}": rng.standard_normal(s).astype(np.float32)
        for i in MEMORY.layers
        for n, s in memory_shapes(config).items()
    }
    return config, backbone_key(config, weights.__getitem__), tensors


@pytest.fixture
def adapter(parts, tmp_path):
    config, key, tensors = parts
    save_adapter(tmp_path / "adapter", config, key, "llama0", tensors, {"command": "lm2 train"})
    return tmp_path / "adapter"


def test_saved_and_opened(adapter, parts):
    config, key, tensors = parts
    opened = open_adapter(adapter)
    assert (opened.name, opened.key, opened.memory, opened.training) == ("llama0", key, config.memory, {"command": "lm2 train"})
    assert sorted(p.name for p in adapter.iterdir()) == [RECORD, TENSORS]
    header = read_header(adapter / TENSORS)
    with open(adapter / TENSORS, "rb") as f:
        for name, wanted in tensors.items():
            info = header.tensors[name]
            own = to_float32(read_tensor(f, info), info.dtype)
            assert info.dtype == ("F16" if wanted.ndim == 2 else "F32")
            assert np.array_equal(own, wanted.astype(np.float16).astype(np.float32) if wanted.ndim == 2 else wanted)


def test_onto_its_backbone(adapter, parts, llamas, tmp_path):
    """The model has the adapter's memory, the llama's backbone, and computes what such a model computes."""
    import torch

    from lm2.models.weights import load_model

    _, _, tensors = parts
    summary = convert(llamas[0], tmp_path / "out", MemoryRequest(adapter=adapter))
    assert summary["memory"]["trained"] and summary["memory"]["layers"] == [1, 2]
    got, wanted = values(tmp_path / "out"), sources.weights(sources.llama(layers=4, seed=0))
    for name, value in tensors.items():
        assert np.array_equal(got[name], value.astype(np.float16).astype(np.float32) if value.ndim == 2 else value)
    for name, value in wanted.items():
        assert np.array_equal(got[name], value)
    folder = open_folder(tmp_path / "out")
    assert folder.config.memory.slots == 128 and json.loads((tmp_path / "out" / "source.json").read_text())["adapter"] == "adapter"
    model = load_model(folder)
    ids = torch.arange(20)[None]
    first, bank = model(ids, model.initial_bank(), 0)
    assert np.allclose(first[0].detach(), sources.backbone_logits(tmp_path / "out", ids)[0], atol=1e-4), "unwritten, it is the llama"
    again, _ = model(ids, bank, 1)
    assert (again - first).abs().max() > 1e-2, "written, it is heard"


def test_another_dtype_of_the_same_backbone(adapter, llamas, tmp_path):
    """A llama is recognised in every form that keeps its norms; here as one whose norms are rounded away, and refused."""
    import torch

    convert(llamas[0], tmp_path / "float", MemoryRequest(adapter=adapter), dtype="float16")
    rounded = sources.save_hf(sources.llama(layers=4, seed=0), tmp_path / "hf16", dtype=torch.bfloat16)
    with pytest.raises(ConvertError, match="is another"):
        convert(rounded, tmp_path / "no", MemoryRequest(adapter=adapter))


def test_a_dtype_that_is_not_computed_with(adapter, llamas, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / TENSORS)
    name = min(tensors)
    save_file(tensors | {name: tensors[name].to(__import__("torch").float8_e4m3fn)}, adapter / TENSORS)
    refused(llamas[0], adapter, tmp_path / "out", name, "dtype F8_E4M3", "get the adapter again")


def refused(llama, adapter, out, *words, kind=ConvertError):
    with pytest.raises(kind) as error:
        convert(llama, out, MemoryRequest(adapter=adapter))
    text = str(error.value)
    assert not out.exists() and "\n" not in text
    for word in words:
        assert str(word) in text, text
    return text


def test_another_backbone(adapter, llamas, parts, tmp_path):
    text = refused(llamas[1], adapter, tmp_path / "out", adapter, "llama0", llamas[1], parts[1][:12], "give its own adapter")
    assert len(text) < 600


def test_another_shape(adapter, tmp_path):
    small = sources.save_hf(sources.llama(layers=4, hidden=32, heads=4, kv=2, ffn=48), tmp_path / "small")
    refused(small, adapter, tmp_path / "out", "is a memory for llama0", small)


def edit(adapter, change):
    record = json.loads((adapter / RECORD).read_text())
    change(record)
    (adapter / RECORD).write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "words", "kind"),
    [
        (lambda r: r.update(format=2), ("format 2 must be 1",), ConvertError),
        (lambda r: r.pop("format"), ("format None must be 1",), ConvertError),
        (lambda r: r.pop("backbone"), ("backbone must have a name and a key",), ConvertError),
        (lambda r: r.update(backbone={"name": "x", "key": 3}), ("backbone must have a name and a key",), ConvertError),
        (lambda r: r["memory"].update(cell="other"), ("cell", "other"), ConfigError),
        (lambda r: r.pop("memory"), (RECORD,), ConfigError),
        (lambda r: r["memory"].update(layers=[1, 2, 3]), ("layers.3", "not there", "get the adapter again"), ConvertError),
        (lambda r: r["memory"].update(layers=[1]), ("layers.2", "calls for not there"), ConvertError),
        (lambda r: r["memory"].update(layers=[1, 9]), ("9",), (ConfigError, ConvertError)),
        (lambda r: r["memory"].update(heads=2), ("k_proj.weight", "[64, 64]", "[32, 64]"), ConvertError),
    ],
)
def test_a_record_that_is_wrong(adapter, llamas, tmp_path, change, words, kind):
    edit(adapter, change)
    refused(llamas[0], adapter, tmp_path / "out", adapter, *words, kind=kind)


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"'])
def test_a_record_that_is_none(adapter, llamas, tmp_path, text):
    (adapter / RECORD).write_text(text)
    refused(llamas[0], adapter, tmp_path / "out", adapter / RECORD, kind=(ConvertError, ConfigError))


@pytest.mark.parametrize("keep", [0, 7, 300, -1, -4096])
def test_a_file_that_was_cut_off(adapter, llamas, tmp_path, keep):
    file = adapter / TENSORS
    file.write_bytes(file.read_bytes()[:keep])
    refused(llamas[0], adapter, tmp_path / "out", file, "get the adapter again")


@pytest.mark.parametrize("name", [RECORD, TENSORS])
def test_a_file_that_is_not_there(adapter, llamas, tmp_path, name):
    (adapter / name).unlink()
    refused(llamas[0], adapter, tmp_path / "out", adapter / name, kind=(ConvertError, ConfigError))


@pytest.mark.parametrize("how", ["missing", "shape", "extra"])
def test_tensors_that_do_not_fit(parts, llamas, tmp_path, how):
    config, key, tensors = parts
    name = "model.layers.2.memory.content.weight"
    wrong = dict(tensors)
    if how == "missing":
        wrong.pop(name)
    elif how == "shape":
        wrong[name] = wrong[name][:-1]
    else:
        name = "model.layers.0.memory.content.weight"
        wrong[name] = np.zeros((64, 64), np.float32)
    save_adapter(tmp_path / "a", config, key, "llama0", wrong, {})
    refused(llamas[0], tmp_path / "a", tmp_path / "out", tmp_path / "a" / TENSORS, name, "get the adapter again")


@pytest.mark.parametrize("value", [1e6, np.nan, np.inf])
def test_values_a_dtype_cannot_hold(parts, tmp_path, value):
    config, key, tensors = parts
    name = "model.layers.1.memory.q_proj.weight"
    broken = tensors | {name: np.full_like(tensors[name], value)}
    with pytest.raises(ConvertError, match=f"{name} has values that F16 cannot hold"):
        save_adapter(tmp_path / "a", config, key, "x", broken, {})
    assert not (tmp_path / "a").exists()


def test_a_released_checkpoint_and_the_command(adapter, llamas, tmp_path, monkeypatch):
    from command_line import call

    text = call(monkeypatch, ["convert", llamas[1], tmp_path / "out", "--adapter", adapter]).fails("llama0", adapter, llamas[1])
    assert text.count("\n") == 0
    assert call(monkeypatch, ["convert", llamas[0], tmp_path / "out", "--adapter", adapter]).code == 0
    copy = shutil.copytree(adapter, tmp_path / "copy")
    assert open_adapter(copy).key == open_adapter(adapter).key
    assert isinstance(open_folder(tmp_path / "out").config, LM2Config)
