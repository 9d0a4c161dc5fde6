"""The torch backend: packed layers against the plain modules, bytes it reports, what it refuses, and the real model against transformers."""

import gc
import sys

import numpy as np
import psutil
import pytest
import tiny
import torch
from compare import assert_close, nmse, relative_l2

from lm2.models.errors import BackendError
from lm2.models.packed import PackedGates, PackedLinear, available, pack
from lm2.models.weights import random_model, save_folder
from lm2.runtime.backend import BackendOptions, MemoryState, open_backend
from lm2.runtime.backends.torch_backend import TorchBackend, pick_device


def ids_for(config, length, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, length)


def run_chunks(backend, count, split=5):
    """Logits of all positions of `count` chunks fed in pieces, and the state after them."""
    state, out = None, []
    for c in range(count):
        chunk = backend.start(1, state)
        ids = ids_for(backend.config, backend.config.memory.chunk, c)
        for begin in range(0, len(ids), split):
            logits, chunk = backend.extend(ids[begin : begin + split], chunk, all_logits=True)
            out.append(logits[0])
        state = backend.commit(chunk)
    return np.concatenate(out), state


@pytest.mark.parametrize("name", tiny.CELLS)
def test_packed_layers_compute_the_same(name, tmp_path, monkeypatch):
    save_folder(random_model(tiny.CELLS[name], seed=3), tmp_path / "m")
    fast = open_backend("torch", tmp_path / "m")
    assert any(isinstance(m, PackedLinear) for m in fast.model.modules())
    monkeypatch.setenv("LM2_KERNELS", "reference")
    plain = open_backend("torch", tmp_path / "m")
    assert not any(isinstance(m, PackedLinear) for m in plain.model.modules())
    (got, got_state), (want, want_state) = run_chunks(fast, 4), run_chunks(plain, 4)
    print(f"relative L2 {relative_l2(got, want):.3g}")
    assert relative_l2(got, want) <= 1e-5
    assert nmse(fast.to_host(got_state), plain.to_host(want_state)) <= 1e-10


def test_packing_is_for_float32_on_cpu():
    assert available(random_model(tiny.config(), 0))
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert not available(random_model(tiny.config(), 0, dtype))


def test_a_wrong_packed_weight_is_noticed():
    """Negative control of the comparison above."""
    model = random_model(tiny.config(), 3)
    want, _ = run_chunks(TorchBackend(random_model(tiny.config(), 3)), 2)
    model.layers[0].mlp.down_proj.weight.data[0, 0] += 0.5
    got, _ = run_chunks(TorchBackend(pack(model)), 2)
    assert relative_l2(got, want) > 1e-4


def test_packed_gates_are_the_halves_of_one_matrix():
    """Together and each alone; exchanged they are not."""
    model = random_model(tiny.config(), 3)
    plain, x = model.layers[0].memory.read_proj, torch.randn(2, 3, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    gates = PackedGates(plain)
    for way in ("forward", "output", "forget"):
        assert_close(way, getattr(gates, way)(x), getattr(plain, way)(x), 1e-6, 1e-5)
    with pytest.raises(AssertionError):
        assert_close("exchanged", gates.forget(x), plain.output(x), 1e-6, 1e-5)
    assert isinstance(pack(model).layers[0].memory.read_proj, PackedGates)


@pytest.mark.parametrize("name", tiny.CELLS)
def test_described_bytes_are_the_bytes_held(name):
    def nbytes(x):
        if isinstance(x, torch.Tensor):
            return x.numel() * x.element_size()
        return sum(nbytes(y) for y in x) if isinstance(x, tuple) else 0

    backend = TorchBackend(random_model(tiny.CELLS[name], 3))
    _, state = run_chunks(backend, 1)
    _, chunk = backend.extend(ids_for(backend.config, backend.config.memory.chunk), backend.start(1, state))
    about = backend.describe()
    assert about.state_bytes == nbytes(state.bank) == backend.to_host(state).nbytes
    assert about.window_bytes == nbytes((chunk.keys, chunk.values, chunk.inside))
    if backend.config.memory.cell == "gated":
        wide = backend.start(1, state, 40)
        assert backend.describe(40).window_bytes == nbytes((wide.keys, wide.values, wide.inside)) > about.window_bytes


def test_batch_of_three_equals_three():
    backend = TorchBackend(random_model(tiny.config(), 3))
    ids = np.stack([ids_for(backend.config, 9, s) for s in range(3)])
    logits, chunk = backend.extend(ids, backend.start(3))
    bank = backend.to_host(backend.commit(chunk))
    for row in range(3):
        one, alone = backend.extend(ids[row], backend.start(1))
        assert_close("logits", one[0], logits[row], 1e-5, 1e-4)
        assert_close("bank", backend.to_host(backend.commit(alone))[:, 0], bank[:, row], 1e-5, 1e-4)


def test_states_travel_through_host_arrays():
    backend = TorchBackend(random_model(tiny.config(), 3))
    _, state = run_chunks(backend, 2)
    host = backend.to_host(state)
    assert host.dtype == np.dtype("<f4") and host.flags["C_CONTIGUOUS"] and host.shape == backend.config.bank_shape()
    back = backend.from_host(host, state.written)
    assert torch.equal(back.bank, state.bank) and back.written == 2 * backend.config.memory.chunk
    host[:] = 7  # the state owns its numbers
    assert torch.equal(back.bank, state.bank)


def test_refusals_name_what_is_wrong(tmp_path):
    backend = TorchBackend(random_model(tiny.config(), 3))
    chunk = backend.start(1)
    with pytest.raises(BackendError, match="at least one token"):
        backend.extend([], chunk)
    with pytest.raises(BackendError, match="0 \\+ 17 tokens do not fit in a window of 16"):
        backend.extend([1] * 17, chunk)
    with pytest.raises(BackendError, match="cannot rewind a window of 0 tokens to 1"):
        backend.rewind(chunk, 1)
    with pytest.raises(BackendError, match=r"\[2, 1, 15, 32\] does not fit"):
        backend.from_host(np.zeros((2, 1, 15, 32), np.float32), 0)
    with pytest.raises(BackendError, match=r"\[2, 1, 16, 31\] does not fit"):
        backend.start(1, MemoryState(torch.zeros(2, 1, 16, 31), 0))
    wide = backend.start(1, None, 40)
    with pytest.raises(BackendError, match="17 tokens since the last fold do not fit in a chunk of 16: fold first"):
        backend.extend([1] * 17, wide)
    folded = backend.fold(backend.extend([1] * 5, wide)[1])
    with pytest.raises(BackendError, match="cannot rewind to 4: the window's first 5 tokens are in the memory"):
        backend.rewind(folded, 4)
    for size in (0, 2049):
        with pytest.raises(BackendError, match=f"window of {size} tokens does not fit the model's 2048 positions: choose another window"):
            backend.start(1, None, size)
    with pytest.raises(BackendError, match="cell released cannot fold"):
        released = TorchBackend(random_model(tiny.CELLS["released-causal"], 3))
        released.fold(released.start(1))
    save_folder(random_model(tiny.config(), 0), tmp_path / "m")
    with pytest.raises(BackendError, match="dtype 'int3' must be auto"):
        open_backend("torch", tmp_path / "m", BackendOptions(dtype="int3"))
    with pytest.raises(BackendError, match="device 'toaster'"):
        pick_device("toaster")
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="'cuda' is not there .* use --device cpu"):
            pick_device("cuda")


@pytest.mark.parametrize(("dtype", "gate"), [("bfloat16", 5e-2), ("float16", 5e-3)])
def test_half_precision_folders(tmp_path, dtype, gate):
    save_folder(random_model(tiny.config(), 3), tmp_path / "m", dtype)
    half = open_backend("torch", tmp_path / "m", BackendOptions(dtype=dtype))
    full = open_backend("torch", tmp_path / "m")
    assert (half.describe().dtype, full.describe().dtype) == (dtype, "float32")
    (got, state), (want, _) = run_chunks(half, 6), run_chunks(full, 6)
    assert state.bank.dtype == torch.float32
    assert relative_l2(got, want) <= gate


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="resident memory is read differently there")
def test_resident_memory_is_flat():
    """Bytes held by the process after 1,000 chunks, not shapes."""
    backend = TorchBackend(pack(random_model(tiny.config(width=64, chunk=64), 3)))
    process, state = psutil.Process(), None
    ids = ids_for(backend.config, 64)
    for c in range(1000):
        _, chunk = backend.extend(ids, backend.start(1, state))
        state = backend.commit(chunk)
        if c == 100:
            gc.collect()
            before = process.memory_info().rss
    gc.collect()
    growth = process.memory_info().rss - before
    print(f"grew by {growth} bytes over 900 chunks")
    assert growth < 4 << 20


@pytest.mark.real
def test_smollm2_against_transformers(smollm2):
    """SmolLM2 with its memory never written, packed and plain, against LlamaForCausalLM on the same weights in float32."""
    from pydoc_data.topics import topics

    from transformers import LlamaConfig, LlamaForCausalLM

    from lm2.models.layout import open_folder
    from lm2.models.text.tokenizer import Tokenizer
    from lm2.models.weights import load_model, slots_of

    model = load_model(open_folder(smollm2))
    ours = {"memory", "model_type", "architectures", "dtype", "name", "rope_scaling", "rope_theta"}
    llama = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in model.config.to_dict().items() if k not in ours}, attn_implementation="eager")).eval()
    weights = {n: t for n, t in slots_of(model) if ".memory." not in n}
    llama.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    ids = torch.as_tensor(Tokenizer.load(smollm2).encode(topics["for"] + topics["class"]))[None, :200]
    with torch.inference_mode():
        want = llama(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].numpy()
    del llama
    for name, gate, made in (("plain", 1e-6, lambda: model), ("packed", 1e-5, lambda: pack(model))):
        backend = TorchBackend(made())
        logits, chunk = backend.extend(ids[0, :77].numpy(), backend.start(1), all_logits=True)
        more, _ = backend.extend(ids[0, 77:].numpy(), chunk, all_logits=True)
        got = np.concatenate((logits[0], more[0]))
        same = (got.argmax(-1) == want.argmax(-1)).mean()
        print(f"{name}: relative L2 {relative_l2(got, want):.3g} gate {gate:g}, max {np.abs(got - want).max():.3g} gate 5e-4, same argmax {same}")
        assert relative_l2(got, want) <= gate
        assert np.abs(got - want).max() <= 5e-4
        gap = np.diff(np.sort(want, axis=-1)[:, -2:], axis=-1)[:, 0]
        assert (got.argmax(-1) == want.argmax(-1))[gap > 1e-3].all()
