"""The memory a finished Llama is given: which layers, which size, and every starting value."""

import family_kit as kit
import numpy as np
import pytest
import sources
from compare import assert_close

from lm2.models.checkpoints.convert import convert
from lm2.models.checkpoints.warmstart import READ_SCALE, MemoryRequest, default_layers, plan_memory
from lm2.models.errors import ConfigError, ConvertError
from lm2.models.layout import open_folder


@pytest.fixture(scope="module")
def src(tmp_path_factory):
    return sources.save_hf(sources.llama(hidden=64, heads=4, kv=2, layers=4), tmp_path_factory.mktemp("hf") / "m")


def plan(request=MemoryRequest(), hidden=576, layers=30, heads=9, head_dim=64, positions=8192):
    return plan_memory(request, hidden, layers, heads, head_dim, positions)


def test_default_layers():
    assert default_layers(30) == (15, 18, 21)
    assert default_layers(1) == (0,) and default_layers(2) == (1,) and default_layers(4) == (2, 3)
    assert default_layers(32) == (16, 19, 22) and default_layers(100) == (50, 60, 70)
    for count in range(2, 101):
        layers = default_layers(count)
        assert layers == tuple(sorted(set(layers))) and count // 2 <= layers[0] and layers[-1] < count
        assert len(layers) == 3 or count in (2, 3, 4)


def test_default_sizes():
    assert (plan().slots, plan().chunk, plan().heads, plan().head_dim) == (512, 512, 9, 64)
    assert (plan().init, plan().output_projection, plan().scale, plan().trained) == ("zeros", True, False, False)
    assert (plan(positions=100).slots, plan(positions=100).chunk) == (100, 100)
    assert (plan(MemoryRequest(slots=64)).slots, plan(MemoryRequest(slots=64)).chunk) == (64, 64)
    assert (plan(MemoryRequest(chunk=64)).slots, plan(MemoryRequest(chunk=64)).chunk) == (512, 64)
    assert plan(MemoryRequest(chunk=100)).slots == 100
    released = plan(MemoryRequest(cell="released"))
    assert (released.slots, released.chunk, released.layers, released.heads) == (576, 576, tuple(range(30)), 9)


def test_values_are_the_layers_own(tmp_path, src):
    convert(src, tmp_path / "dst", MemoryRequest(layers=(1, 3), slots=32, seed=5))
    got, _ = sources.read_folder(tmp_path / "dst")
    assert open_folder(tmp_path / "dst").config.memory.layers == (1, 3)
    assert not any(n.startswith("model.layers.2.memory.") for n in got)
    for layer in (1, 3):
        attention, memory = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.memory."
        assert np.array_equal(got[memory + "q_proj.weight"], got[attention + "q_proj.weight"])
        assert np.array_equal(got[memory + "o_proj.weight"] * 128, got[attention + "o_proj.weight"]), "a power of two: nothing is rounded"
        for p in ("k_proj.weight", "v_proj.weight"):
            for h in range(4):  # query head h reads key/value head h // 2
                own = got[attention + p][(h // 2) * 16 : (h // 2 + 1) * 16]
                assert np.array_equal(got[memory + p][h * 16 : (h + 1) * 16], own), (p, h)
        g = got[f"model.layers.{layer}.input_layernorm.weight"]
        assert np.array_equal(got[memory + "norm.weight"], g) and np.array_equal(got[memory + "bank_norm.weight"], g)
        assert np.array_equal(got[memory + "content.weight"], 0.5 * np.eye(64, dtype=np.float32))
        for gate, bias in (("output_gate", 0), ("input_gate", 2), ("forget_gate", 3)):
            assert (got[f"{memory}{gate}.bias"] == bias).all()
            w = got[f"{memory}{gate}.weight"]
            assert abs(w.std() / (0.2 * 64**-0.5) - 1) < 0.05 and abs(w.mean()) < 0.002
    one, three = (got[f"model.layers.{i}.memory.input_gate.weight"] for i in (1, 3))
    assert not np.array_equal(one, three)
    assert not np.array_equal(one, got["model.layers.1.memory.forget_gate.weight"])


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_how_loud_it_is_heard_is_the_output_projection(tmp_path, src, scale):
    convert(src, tmp_path / "dst", MemoryRequest(layers=(1,), scale=scale))
    got, _ = sources.read_folder(tmp_path / "dst")
    own = got["model.layers.1.self_attn.o_proj.weight"]
    assert np.array_equal(got["model.layers.1.memory.o_proj.weight"], own * np.float32(scale))
    assert "model.layers.1.memory.scale" not in got


def test_it_is_quiet_but_alive(tmp_path, src):
    """Once written it is heard, a little; zeroing the bank changes the logits; a loss reaches every weight through three chunks."""
    import torch

    from lm2.models.weights import load_model

    convert(src, tmp_path / "dst", MemoryRequest(layers=(1, 3), slots=32))
    convert(src, tmp_path / "loud", MemoryRequest(layers=(1, 3), slots=32, scale=1.0))
    ids = torch.arange(32)[None]
    heard = {}
    for name in ("dst", "loud"):
        model = load_model(open_folder(tmp_path / name)).requires_grad_(True)
        first, bank = model(ids, model.initial_bank(), 0)
        _, bank = model(ids, bank, 1)
        last, _ = model(ids, bank, 2)
        heard[name] = ((last - first).norm() / first.norm()).item()
        last.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]).mean().backward()
        silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert not silent, silent
        again, _ = model(ids, torch.zeros_like(bank), 2)
        assert torch.equal(again, first) and not torch.equal(last, first)
    print(heard)
    assert 1e-6 < heard["dst"] < heard["loud"] / 30


@pytest.mark.parametrize("request_", [MemoryRequest(), MemoryRequest(cell="released")], ids=["gated", "released"])
def test_matrices_made_here_are_float16_numbers(tmp_path, src, request_):
    """Half the bytes: stored in float16, the same numbers when float32 is asked for, and computed in float32."""
    convert(src, tmp_path / "auto", request_)
    convert(src, tmp_path / "wide", request_, dtype="float32")
    a, b = open_folder(tmp_path / "auto"), open_folder(tmp_path / "wide")
    made = [n for n, t in a.header.tensors.items() if ".memory." in n and t.dtype == "F16"]
    assert {n.split("memory.")[1] for n in made} == (
        {"token_gate.weight", "bank_gate.weight", "mlp.weight"}
        if request_.cell
        else {"input_gate.weight", "output_gate.weight", "forget_gate.weight", "content.weight"}
    )
    assert all(t.dtype == "F32" for n, t in b.header.tensors.items())
    one, two = (sources.read_folder(p.path)[0] for p in (a, b))
    assert all(np.array_equal(one[n].astype(np.float32), two[n]) for n in two)


@pytest.mark.parametrize("backend", ["torch", "mlx", "onnx"])
def test_stored_in_float16_computed_in_float32(tmp_path, src, backend):
    """To the last bit what the float32 folder computes, on every backend."""
    pytest.importorskip({"torch": "torch", "mlx": "mlx.core", "onnx": "onnxruntime"}[backend])
    from lm2.runtime.backend import BackendOptions, open_backend

    found = []
    for dtype in ("auto", "float32"):
        path = tmp_path / dtype
        convert(src, path, MemoryRequest(layers=(1, 3), slots=32), dtype=dtype)
        if backend == "onnx":
            from lm2.export.export import export_model

            export_model(path, tmp_path / f"{dtype}.onnx")
            path = tmp_path / f"{dtype}.onnx"
        side, state = open_backend(backend, path, BackendOptions(device="cpu", dtype="float32")), None
        for _ in range(3):
            logits, chunk = side.extend(list(range(32)), side.start(1, state), all_logits=True)
            state = side.commit(chunk)
        found.append((np.array(logits), side.to_host(state)))
    (a, bank), (b, other) = found
    assert bank.any() and np.array_equal(a, b) and np.array_equal(bank, other)


def test_random_values_follow_the_seed_not_the_order(tmp_path, src):
    name = "model.layers.3.memory.input_gate.weight"
    values = []
    for i, request in enumerate(
        (MemoryRequest(layers=(3,), seed=7), MemoryRequest(layers=(0, 3), seed=7), MemoryRequest(layers=(3,), seed=8))
    ):
        convert(src, tmp_path / str(i), request)
        values.append(sources.read_folder(tmp_path / str(i))[0][name])
    assert np.array_equal(values[0], values[1]) and not np.array_equal(values[0], values[2])


def test_released_cell_starts_silent(tmp_path, src):
    convert(src, tmp_path / "dst", MemoryRequest(cell="released", gate_pool="causal"))
    config = open_folder(tmp_path / "dst").config
    assert (config.memory.cell, config.memory.init, config.memory.gate_pool, config.memory.slots) == ("released", "zeros", "causal", 64)
    got, _ = sources.read_folder(tmp_path / "dst")
    for name in ("norm2.bias", "norm1.bias", "value_proj.bias", "mlp.bias", "bank_gate.bias", "token_gate.bias", "input_bias"):
        assert not got[f"model.layers.0.memory.{name}"].any(), name
    assert got["model.layers.0.memory.query_proj.weight"].std() > 0.1


REFUSED = {
    "slots": (MemoryRequest(slots=100, chunk=64), ConfigError, ("--memory-slots 100 must equal --memory-chunk 64 or a multiple")),
    "chunk": (MemoryRequest(chunk=256, slots=256), ConfigError, "memory.chunk 256 must not exceed max_position_embeddings 128"),
    "layer": (MemoryRequest(layers=(1, 4)), ConfigError, "memory.layers 4 must be a layer from 0 to 3"),
    "pool": (MemoryRequest(gate_pool="causal"), ConvertError, "--gate-pool causal is for --memory-cell released"),
    "released slots": (MemoryRequest(cell="released", slots=32), ConvertError, "--memory-slots 32 must be 64"),
    "released layers": (MemoryRequest(cell="released", layers=(0,)), ConvertError, "must name all 4 layers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_requests_that_are_refused(tmp_path, src, case):
    request, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        convert(src, tmp_path / "dst", request)
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize("family", ["qwen3", "olmo2"])
def test_a_memory_knows_the_norms_of_the_attention_it_starts_from(tmp_path, family):
    """What a norm hides, the size of a matrix, a memory without it does not see either; and its queries and keys are about as large as the norm makes them."""
    import torch

    got = {}
    for times in (1.0, 37.0):
        model = kit.checkpoint(family, "grouped")
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.endswith(("q_proj.weight", "k_proj.weight", "o_proj.weight")[: 3 if family == "olmo2" else 2]):
                    p.mul_(times)
        src = sources.save_hf(model, tmp_path / f"src{times}")
        convert(src, tmp_path / f"dst{times}", MemoryRequest(layers=(1,)))
        got[times] = sources.read_folder(tmp_path / f"dst{times}")[0]
    p = "model.layers.1."
    for part in "qko":
        name = f"{p}memory.{part}_proj.weight"
        assert_close(name, got[1.0][name], got[37.0][name], 1e-5, 1e-5)
    inputs = np.random.default_rng(0).standard_normal((4000, 48)) * got[1.0][f"{p}memory.norm.weight"]
    for part in "qk":
        made, weight = inputs @ got[1.0][f"{p}memory.{part}_proj.weight"].T, got[1.0][f"{p}self_attn.{part}_norm.weight"]
        assert abs(np.square(made).mean() / np.square(weight).mean() - 1) < 0.05
        assert not 0.7 < np.square(inputs @ got[37.0][f"{p}self_attn.{part}_proj.weight"].T).mean() < 1.4, "a plain copy is of another size"


@pytest.mark.parametrize("family", kit.FAMILIES)
def test_an_untrained_memory_is_quiet_in_every_family(tmp_path, family):
    """What was written is heard, and changes little; as loud as the attention it was copied from it would not be."""
    from lm2.runtime.backend import BackendOptions, open_backend

    src = kit.made(tmp_path / "src", family, next(iter(kit.FAMILIES[family][1])))[1]
    changes = []
    for scale in (READ_SCALE, 1.0):
        convert(src, tmp_path / f"dst{scale}", MemoryRequest(chunk=20, slots=20, scale=scale))
        backend = open_backend("torch", tmp_path / f"dst{scale}", BackendOptions(device="cpu", dtype="float32", threads=1))
        first, chunk = backend.extend(kit.IDS, backend.start(2), all_logits=True)
        again, _ = backend.extend(kit.IDS, backend.start(2, backend.commit(chunk)), all_logits=True)
        changes.append(kit.error(again, first))
    print(f"{family}: written memory changes logits by {changes[0]:.2g}, unscaled {changes[1]:.2g}")
    assert 1e-6 < changes[0] < 0.01 < changes[1]
