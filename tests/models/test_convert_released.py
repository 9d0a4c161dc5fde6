"""Released-code checkpoints in: golden numbers through the converted folder, and every way a checkpoint can be
wrong."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from compare import assert_close
from safetensors.torch import load_file

from lm2.models.checkpoints.convert import convert
from lm2.models.checkpoints.warmstart import MemoryRequest
from lm2.models.errors import ConfigError, ConvertError
from lm2.models.layout import open_folder

GOLDEN = Path(__file__).parent.parent / "data" / "golden" / "tiny"
MODULE = "model.layers.1.mem_attn.memory_module."


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(GOLDEN, tmp_path / "golden")) / "ckpt_iter_7.pth"


def respoil(file, change):
    checkpoint = torch.load(file, weights_only=True)
    change(checkpoint["model_state_dict"])
    torch.save(checkpoint, file)


def test_golden_numbers_through_the_converted_folder(tmp_path):
    from lm2.runtime.backend import BackendOptions, open_backend

    summary = convert(GOLDEN / "ckpt_iter_7.pth", tmp_path / "dst")
    assert summary["memory"]["trained"] and summary["memory"]["cell"] == "released" and summary["memory"]["init"] == "eye"
    assert summary["memory"]["heads"] == 4 and summary["memory"]["head_dim"] == 8 and not summary["tokenizer"]
    golden = load_file(GOLDEN / "golden.safetensors")
    backend = open_backend("torch", tmp_path / "dst", BackendOptions(device="cpu", dtype="float32", threads=2))
    state = None
    for i in range(3):
        got, chunk = backend.extend(golden[f"input_ids.{i}"].numpy(), backend.start(1, state), all_logits=True)
        assert_close(f"logits of chunk {i}", got, golden[f"logits.{i}"].numpy(), 1e-5, 1e-4)
        state = backend.commit(chunk)
        assert_close(f"bank after chunk {i}", backend.to_host(state)[0], golden[f"memory.{i + 1}"].numpy(), 1e-5, 1e-4)


def test_only_the_models_weights_are_taken(tmp_path):
    convert(GOLDEN / "ckpt_iter_7.pth", tmp_path / "dst", dtype="bfloat16")
    got = load_file(tmp_path / "dst" / "model.safetensors")
    assert not [n for n in got if "mem_attn" in n or "memory_bank" in n or "optimizer" in n]
    assert got["model.layers.0.memory.query_proj.weight"].dtype == torch.bfloat16
    assert got["model.layers.0.memory.mlp.weight"].dtype == got["model.layers.0.memory.forget_bias"].dtype == torch.float32
    record = json.loads((tmp_path / "dst" / "source.json").read_text())
    assert [f["file"] for f in record["files"]] == ["ckpt_iter_7.pth", "config.json"] and record["seed"] is None
    assert open_folder(tmp_path / "dst").config.memory.gate_pool == "chunk"
    convert(GOLDEN / "ckpt_iter_7.pth", tmp_path / "causal", MemoryRequest(gate_pool="causal"))
    assert open_folder(tmp_path / "causal").config.memory.gate_pool == "causal"


def test_config_option(tmp_path, copy):
    other = tmp_path / "elsewhere.json"
    (copy.parent / "config.json").rename(other)
    with pytest.raises(ConvertError, match="--config FILE"):
        convert(copy, tmp_path / "dst")
    convert(copy, tmp_path / "dst", config=other)
    assert (tmp_path / "dst" / "model.safetensors").is_file()


SPOILED = {
    "attention copy": (lambda s: s["model.layers.1.mem_attn.self_attn.k_proj.weight"][0].add_(1e-6), r"k_proj\.weight differs from"),
    "mlp copy": (lambda s: s[MODULE + "attention_mlp.1.bias"].add_(1e-6), r"attention_mlp\.1\.bias differs from"),
    "third mlp": (lambda s: s.update({MODULE + "attention_mlp.2.bias": torch.ones(32)}), r"attention_mlp\.2\.bias is not part of"),
    "copy of nothing": (
        lambda s: s.pop("model.layers.1.self_attn.k_proj.weight"),
        r"has no model\.layers\.1\.self_attn\.k_proj\.weight to repeat",
    ),
    "missing": (lambda s: s.pop(MODULE + "forget_bias"), r"no tensor model\.layers\.1\.memory\.forget_bias"),
    "shape": (
        lambda s: s.update({MODULE + "value_proj.bias": torch.ones(31)}),
        r"memory\.value_proj\.bias is \[31\], its config calls for \[32\]",
    ),
    "integers": (lambda s: s.update({"model.norm.weight": torch.ones(32, dtype=torch.int64)}), "model.norm.weight has dtype torch.int64"),
    "nan": (lambda s: s["lm_head.weight"].view(-1)[5:6].fill_(float("nan")), "lm_head.weight holds NaN"),
    "not a tensor": (lambda s: s.update({"model.norm.weight": 3}), "'model.norm.weight' is a int"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_checkpoints_that_are_refused(tmp_path, copy, case):
    change, message = SPOILED[case]
    respoil(copy, change)
    with pytest.raises(ConvertError, match=message):
        convert(copy, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


CONFIGS = {
    "slots": ({"memory_slots": 16}, ConfigError, "memory.slots 16 must equal hidden_size 32"),
    "no slots": ({"memory_slots": None}, ConvertError, "memory_slots None must be a positive whole number"),
    "heads": ({"num_mem_heads": 5}, ConvertError, "memory_slots 32 must be a multiple of num_mem_heads 5"),
    "layers": ({"num_hidden_layers": 3}, ConvertError, "no tensor model.layers.2"),
    "window": ({"sliding_window": 16}, ConvertError, r"config\.json: sliding_window 16 is not a plain Llama's"),
    "rope": ({"rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 5.0}}, ConfigError, r"config\.json: rope_scaling\.rope_theta 5\.0"),
    "number": ({"rms_norm_eps": "1e-5"}, ConfigError, r"config\.json: rms_norm_eps '1e-5'"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_are_refused(tmp_path, copy, case):
    fields, kind, message = CONFIGS[case]
    file = copy.parent / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(kind, match=message):
        convert(copy, tmp_path / "dst")


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("plain_pickle", [False, True])
def test_code_in_a_checkpoint_is_never_run(tmp_path, copy, plain_pickle):
    proof = tmp_path / "proof"
    content = {"model_state_dict": Hostile(str(proof))}
    if plain_pickle:
        copy.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, copy)
    with pytest.raises(ConvertError, match="ckpt_iter_7.pth") as caught:
        convert(copy, tmp_path / "dst")
    assert not proof.exists() and "\n" not in str(caught.value)
    if not plain_pickle:
        assert "nothing in it was run" in str(caught.value)
        torch.load(copy, weights_only=False)  # the control: the attack is real
        assert proof.exists()


@pytest.mark.parametrize("cut", [0, 10, 1000, -100])
def test_damaged_checkpoints(tmp_path, copy, cut):
    copy.write_bytes(copy.read_bytes()[:cut])
    with pytest.raises(ConvertError, match="ckpt_iter_7.pth"):
        convert(copy, tmp_path / "dst")


def test_other_files_and_options(tmp_path, copy):
    for request, message in (
        (MemoryRequest(slots=64), "--memory-slots cannot be used"),
        (MemoryRequest(layers=(0,)), "--memory-layers cannot be used"),
        (MemoryRequest(cell="gated"), "--memory-cell gated cannot be used"),
    ):
        with pytest.raises(ConvertError, match=message):
            convert(copy, tmp_path / "dst", request)
    torch.save({"weights": 1}, copy)
    with pytest.raises(ConvertError, match="has no model_state_dict"):
        convert(copy, tmp_path / "dst")
    torch.save([1, 2], copy)
    with pytest.raises(ConvertError, match="has no model_state_dict"):
        convert(copy, tmp_path / "dst")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints_keep_their_bits(tmp_path, copy, dtype):
    respoil(copy, lambda s: [s.update({k: v.to(dtype)}) for k, v in list(s.items())])
    convert(copy, tmp_path / "dst")
    got = load_file(tmp_path / "dst" / "model.safetensors")
    state = torch.load(copy, weights_only=True)["model_state_dict"]
    name = "model.layers.0.mlp.up_proj.weight"
    assert got[name].dtype == dtype and torch.equal(got[name], state[name])
    assert np.array_equal(got["model.norm.weight"].numpy(), state["model.norm.weight"].float().numpy())
