"""Windows that open with given keys and values, on every backend: against a window that was fed the tokens they are of, and against the reference."""

import mlx_kit
import numpy as np
import onnx_kit
import pytest
import tiny
import torch
from compare import assert_close, relative_l2

from lm2.export.options import Options
from lm2.models.config import RopeConfig
from lm2.models.errors import BackendError
from lm2.models.layout import open_folder
from lm2.models.opening import Opening
from lm2.models.weights import load_model, random_model, save_folder
from lm2.runtime.backend import BackendOptions, open_backend
from lm2.runtime.backends.torch_backend import TorchBackend

P, W, MORE = 5, 40, 30  # positions of the opening, of a window, and tokens after it: nearly two chunks of 16
CLOSE, RTOL = 5e-5, 1e-4
FAR = 200 * CLOSE
WIDE = dict(num_attention_heads=2, num_key_value_heads=1, head_dim=16)  # heads that ONNX Runtime's own operator turns by itself
MODELS = {
    "gated-4T": {},
    "gated-topics": {},
    "wide": WIDE | dict(rows=2, content="token", keys="pair"),
    "no memory": dict(memory_layers=()),
    "local": dict(backbone=tiny.BACKBONES["norms around"], rows=2),
    "sliding": dict(backbone=tiny.BACKBONES["windows"], rows=2),
    "released-causal": {},
    "released-chunk": {},
}
# What opens the folder of a model, and how far it may be from the reference (relative L2) where it has the same weights.
SIDES = {
    "torch": (None, 1e-5),
    "static": (None, 1e-5),
    "mlx": (None, 1e-5),
    "onnx": (Options(), 1e-5),
    "onnx standard": (Options(opset=23, plain=True, portable=True), 1e-5),
    "onnx fixed": (Options(window=W), 1e-5),
    "onnx fp16": (Options("fp16"), 5e-3),
    "onnx int8": (Options("int8"), 0.02),
    "onnx int4": (Options("int4"), 0.25),
}
FEW = [("gated-4T", side) for side in SIDES] + [("gated-topics", side) for side in ("torch", "static", "mlx", "onnx", "onnx standard")]
EVERY = FEW + [(name, side) for name in ("wide", "no memory", "local", "sliding") for side in ("torch", "static", "mlx", "onnx")]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """name, side -> a backend over the tiny model of that name; made when first asked for."""
    root, made = tmp_path_factory.mktemp("opening"), {}

    def get(name, side):
        if side.startswith("onnx"):
            pytest.importorskip("onnxruntime")
            pytest.importorskip("onnx")
        elif side == "mlx":
            pytest.importorskip("mlx.core")
        if (name, side) not in made:
            made[name, side] = make(root / name.replace(" ", "-"), name, side)
        return made[name, side]

    return get


def make(root, name, side):
    source = root / "model"
    if not source.exists():
        mlx_kit.folder(source, name, **MODELS[name])
    if side in ("torch", "static"):
        return TorchBackend(load_model(open_folder(source), torch.device("cpu"), torch.float32), static=side == "static")
    if side == "mlx":
        return mlx_kit.mlx(source)
    from lm2.export.export import export_model

    target = root / side.replace(" ", "-")
    export_model(source, target, SIDES[side][0])
    return onnx_kit.backend(target)


def ids_for(count, seed=5, batch=1):
    return np.random.default_rng(seed).integers(0, 61, (batch, count))  # (b, t)


def cached(side, name, window, count):
    """Keys and values (L, k, p, e) of the first `count` positions of a window, first sequence, out of a backend's own buffers."""
    if side in ("torch", "static"):
        inner = getattr(window, "inner", window)
        found = [x[:, 0, :, :count].numpy().copy() for x in (inner.keys, inner.values)]
    elif side == "mlx":
        arrays, layers = window.buffers.arrays, range(sum(n.startswith("keys") for n in window.buffers.arrays))
        found = [np.stack([np.array(arrays[f"{n}{i}"][0, :, :count]) for i in layers]) for n in ("keys", "values")]
    else:
        tensors = window.buffers.tensors
        layers = range(sum(n.startswith("past_key.") for n in tensors))
        found = [np.stack([tensors[f"past_{n}.{i}"].numpy()[0, :, :count] for i in layers]) for n in ("key", "value")]
    return Opening(*found)


def random_opening(config, seed=2, positions=P):
    rng, shape = np.random.default_rng(seed), (config.num_hidden_layers, config.num_key_value_heads, positions, config.head_dim)
    return Opening(*(rng.normal(size=shape).astype(np.float32) for _ in range(2)))


def memory_of(backend, batch=1, chunks=2, ahead=3):
    """A written memory, its pointer no multiple of a chunk."""
    state, chunk = None, backend.config.memory.chunk
    for c in range(chunks):
        state = backend.commit(backend.extend(ids_for(chunk, 30 + c, batch), backend.start(batch, state))[1])
    return state._replace(written=state.written + ahead)


def feed(backend, window, ids, split):
    """Tokens (b, t) in pieces of `split` at most; a fold where a chunk of them is full. Logits (b, t, v) and the window."""
    out, at, chunk = [], 0, backend.config.memory.chunk
    while at < ids.shape[1]:
        if window.length - window.folded == chunk:
            window = backend.fold(window)
        size = min(split, ids.shape[1] - at, window.folded + chunk - window.length)
        logits, window = backend.extend(ids[:, at : at + size], window, all_logits=True)
        out, at = [*out, logits], at + size
    return np.concatenate(out, axis=1), window


@pytest.mark.parametrize(("name", "side"), EVERY)
def test_the_keys_and_values_of_tokens_are_those_tokens(opened, name, side):
    """Opening with what a window kept of P carried tokens, its own numbers: the logits, folds and memory of the window that was fed them."""
    b, first, ids, wants = opened(name, side), ids_for(P, 1), ids_for(MORE), []
    rtol, close = (1e-2, 2e-2) if side == "onnx fp16" else (RTOL, CLOSE)
    for split in (16, 1, 3):
        _, fed = b.extend(first, b.start(1, None, W, P))
        opening = cached(side, name, fed, P)
        assert np.abs(opening.keys).min() > 0 and opening.keys.dtype == (np.float16 if side == "onnx fp16" else np.float32)
        want, end = feed(b, fed, ids, split)
        wants.append(want)
        window = b.start(1, None, W, opening=opening)
        assert (window.length, window.folded, b.memory(window).written) == (P, P, 0)
        got, window = feed(b, window, ids, split)
        assert_close(f"{side} split {split}", got, want, close, rtol)
        if not side.startswith("onnx int"):  # rounded activations depend on the split, with an opening or without
            assert_close("another split", got, wants[0], close, rtol)
        assert_close("memory", b.to_host(b.commit(window)), b.to_host(b.commit(end)), close, rtol)
        assert b.commit(window).written == MORE and window.length == P + MORE


def shifted(opening, config):
    """The keys as if their positions stood one further: turned by one angle more."""
    turned, e = opening.keys.astype(np.float64), config.head_dim
    angles = np.array(RopeConfig(500.0).inverse_frequencies(e))
    a, b = turned[..., : e // 2], turned[..., e // 2 :]
    return opening._replace(keys=np.concatenate((a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)), -1).astype(np.float32))


FAULTS = {
    "keys a position further": shifted,
    "layers of keys swapped": lambda o, _: o._replace(keys=np.ascontiguousarray(o.keys[::-1])),
    "positions reversed in the values": lambda o, _: o._replace(values=np.ascontiguousarray(o.values[:, :, ::-1])),
    "keys and values exchanged": lambda o, _: Opening(o.values, o.keys),
    "a position short": lambda o, _: Opening(o.keys[:, :, 1:], o.values[:, :, 1:]),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("side", ["torch", "static", "mlx", "onnx"])
def test_a_wrong_opening_is_noticed(opened, side, fault):
    """Negative controls of the comparison above."""
    b = opened("gated-4T", side)
    _, fed = b.extend(ids_for(P, 1), b.start(1, None, W, P))
    wrong = FAULTS[fault](cached(side, "gated-4T", fed, P), b.config)
    want, _ = feed(b, fed, ids_for(MORE), 7)
    got, _ = feed(b, b.start(1, None, W, opening=wrong), ids_for(MORE), 7)
    assert np.abs(got - want).max() > FAR


@pytest.mark.parametrize(("name", "side"), [pair for pair in EVERY if pair[1] != "torch"])
def test_backends_agree_on_any_opening(opened, name, side):
    """Two sequences, one opening, a written memory, and more carried positions than the opening's own."""
    reference, b = opened(name, "torch"), opened(name, side)
    state, ids, carried, gate = memory_of(reference, 2), ids_for(MORE, batch=2), P + 4, SIDES[side][1]
    given = b.from_host(reference.to_host(state), state.written)
    want, x = feed(reference, reference.start(2, state, W, carried, random_opening(b.config)), ids, 7)
    got, y = feed(b, b.start(2, given, W, carried, random_opening(b.config)), ids, 1 if side == "static" else 7)
    other, _ = feed(b, b.start(2, given, W, carried, random_opening(b.config, 3)), ids, 7)
    print(f"{side} relative L2 {relative_l2(got, want):.3g}, of another opening {relative_l2(other, want):.3g}, gate {gate:g}")
    assert relative_l2(got, want) <= gate < relative_l2(other, want)
    assert b.commit(y).written == reference.commit(x).written == state.written + MORE - 4
    banks = b.to_host(b.commit(y)), reference.to_host(reference.commit(x))
    assert not banks[1].size or relative_l2(*banks) <= gate


@pytest.mark.parametrize(("name", "side"), FEW)
def test_an_opening_is_never_written(opened, name, side):
    """With a written memory: a fold enters the tokens after the opening alone, and the rows are those of the same tokens after P carried ones."""
    b = opened(name, side)
    state = memory_of(b)
    _, fed = b.extend(ids_for(P, 1), b.start(1, state, W, P))
    opening, before = cached(side, name, fed, P), b.to_host(state)
    window, ids = b.start(1, state, W, opening=opening), ids_for(9)
    for same in (b.memory(window), b.memory(b.fold(window)), b.commit(window)):
        assert np.array_equal(b.to_host(same), before) and same.written == state.written
    ends = []
    for begun in (fed, window):
        _, one = feed(b, begun, ids, 4)
        one = b.fold(one)
        after = b.memory(one)
        assert (after.written, one.folded, one.length) == (state.written + 9, P + 9, P + 9)
        logits, one = b.extend(ids_for(3, 6), one, all_logits=True)  # what was folded is heard
        n = b.config.memory.slots
        ends.append((b.rows(one, state.written, 9), b.to_host(after), logits))
        places = (state.written + np.arange(9)) % n
        assert np.array_equal(ends[-1][0], ends[-1][1][:, :, places])
        others = np.setdiff1d(np.arange(n), places)
        assert np.array_equal(ends[-1][1][:, :, others], before[:, :, others])
    rtol, close = (1e-2, 2e-2) if side == "onnx fp16" else (RTOL, CLOSE)
    for what, want, got in zip(("rows", "bank", "logits"), *ends, strict=True):
        assert_close(what, got, want, close, rtol)
    assert np.abs(ends[0][0] - before[:, :, places]).max() > 1e-3, "the fold wrote something"


@pytest.mark.parametrize(("name", "side"), FEW)
def test_going_back_to_the_opening(opened, name, side):
    """Rewinding to P, and between, gives the same again; below P, and behind a fold, it is refused."""
    b = opened(name, side)
    state, opening = memory_of(b), random_opening(b.config)
    ids, close = ids_for(12), 2e-2 if side == "onnx fp16" else 1e-5
    window = b.start(1, state, W, opening=opening)
    first, longer = feed(b, window, ids, 5)
    feed(b, b.rewind(longer, P + 4), ids_for(6, 8), 3)  # another branch, in the same buffers
    for back in (b.rewind(longer, P), window):
        again, end = feed(b, back, ids, 12)
        assert_close("again", again, first, close, RTOL)
        assert back.length == P and not back.stale and end.length == P + 12
    for to in (0, P - 1):
        with pytest.raises(BackendError, match=f"cannot rewind to {to}: the window opens with 5 positions of given keys and values"):
            b.rewind(end, to)
    with pytest.raises(BackendError, match="cannot rewind a window of 17 tokens to 18"):
        b.rewind(end, 18)
    folded = b.fold(end)
    with pytest.raises(BackendError, match=r"cannot rewind to 16: the window's first 17 tokens are in the memory"):
        b.rewind(folded, 16)
    two = b.start(1, state, W, opening=opening)  # in buffers that were used before
    assert_close("a second window", feed(b, two, ids, 5)[0], first, close, RTOL)
    assert_close("without one", feed(b, b.start(1, state, W), ids, 5)[0], feed(b, b.start(1, state, W), ids, 12)[0], close, RTOL)
    assert np.abs(feed(b, b.start(1, state, W), ids, 5)[0] - first).max() > FAR


def broken(opening):
    """name -> (an opening that is refused, what is said)."""
    nan, large = opening.values.copy(), opening.keys.copy()
    nan[2, 1, 3, 4], large[0, 0, 0, 0] = np.nan, -np.inf
    shape = r"\[3, 2, p, 8\] with p of 1 or more"
    return {
        "layers": (opening._replace(keys=opening.keys[:2]), rf"an opening's keys of shape \[2, 2, 5, 8\] do not fit: this model's are {shape}"),
        "heads": (opening._replace(values=opening.values[:, :1]), rf"an opening's values of shape \[3, 1, 5, 8\] do not fit: this model's are {shape}"),
        "width": (opening._replace(keys=opening.keys[..., :4]), rf"an opening's keys of shape \[3, 2, 5, 4\] do not fit: this model's are {shape}"),
        "empty": (Opening(*(x[:, :, :0] for x in opening)), rf"keys of shape \[3, 2, 0, 8\] do not fit: this model's are {shape}"),
        "flat": (opening._replace(keys=opening.keys.ravel()), rf"an opening's keys of shape \[240\] do not fit: this model's are {shape}"),
        "two shapes": (opening._replace(values=opening.values[:, :, :4]), r"keys of shape \[3, 2, 5, 8\] and values of shape \[3, 2, 4, 8\] must be of one"),
        "integers": (opening._replace(keys=opening.keys.astype(np.int8)), "keys are int8: they must be NumPy's float16, float32 or float64"),
        "swapped bytes": (opening._replace(keys=opening.keys.astype(">f4")), "keys are >f4: they must be NumPy's"),
        "ragged": (opening._replace(values=[[1], [2, 3]]), "values are list: they must be NumPy's"),
        "a list": (opening._replace(values=opening.values.tolist()), "values are list: they must be NumPy's"),
        "not a number": (opening._replace(values=nan), "an opening's values have numbers that are not finite"),
        "infinite": (opening._replace(keys=large), "an opening's keys have numbers that are not finite"),
    }


@pytest.mark.parametrize("side", ["torch", "static", "mlx", "onnx"])
def test_refusals_name_what_is_wrong(opened, side):
    b = opened("gated-4T", side)
    good = random_opening(b.config)
    for wrong, said in broken(good).values():
        with pytest.raises(BackendError, match=said):
            b.start(1, None, W, opening=wrong)
    for size in (4, 5):
        with pytest.raises(BackendError, match=f"an opening of 5 positions leaves no room in a window of {size}: choose another window"):
            b.start(1, None, size, opening=good)
    with pytest.raises(BackendError, match="4 carried positions are fewer than the 5 of the opening, which are among them: give 0, or at least as many"):
        b.start(1, None, W, 4, good)
    with pytest.raises(BackendError, match="40 carried tokens do not fit in a window of 40"):
        b.start(1, None, W, W, good)
    window = b.start(1, None, 6, opening=good)
    with pytest.raises(BackendError, match="5 \\+ 2 tokens do not fit in a window of 6"):
        b.extend([1, 2], window)
    assert b.extend([1], window)[1].length == 6
    wide = b.start(1, None, W, 7, good)
    with pytest.raises(BackendError, match="17 tokens since the last fold do not fit in a chunk of 16: fold first"):
        b.extend([1] * 19, wide)
    assert b.commit(b.extend([1] * 18, wide)[1]).written == 16


@pytest.mark.parametrize(("cell", "side"), [("released-causal", side) for side in ("torch", "static", "mlx", "onnx")] + [("released-chunk", "torch")])
def test_cell_released_is_refused(opened, cell, side):
    b = opened(cell, side)
    with pytest.raises(BackendError, match="cell released has no windows that open with given keys and values: use a model of cell gated"):
        b.start(1, opening=random_opening(b.config))


@pytest.mark.gpu
@pytest.mark.parametrize("side", ["torch", "onnx"])
def test_on_a_gpu(tmp_path, side):
    """Openings in device memory: two sequences against the CPU, token by token and in pieces."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    source = mlx_kit.folder(tmp_path / "m", "gated-4T")
    plain = mlx_kit.torch(source)
    if side == "torch":
        device = TorchBackend(load_model(open_folder(source), torch.device("cuda"), torch.float32))
    else:
        if "CUDAExecutionProvider" not in pytest.importorskip("onnxruntime").get_available_providers():
            pytest.skip("needs ONNX Runtime with CUDA")
        device = open_backend("onnx", onnx_kit.exported(tmp_path, "gated-4T")[1], BackendOptions(device="cuda"))
    opening, state, ids = random_opening(plain.config), memory_of(plain, 2), ids_for(MORE, batch=2)
    want, x = feed(plain, plain.start(2, state, W, 0, opening), ids, 7)
    for split in (1, 7):
        got, y = feed(device, device.start(2, device.from_host(plain.to_host(state), state.written), W, 0, opening), ids, split)
        assert relative_l2(got, want) <= 1e-4
        assert relative_l2(device.to_host(device.commit(y)), plain.to_host(plain.commit(x))) <= 1e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("side", ["torch", "static", "mlx"])
def test_half_precisions(tmp_path, side, dtype):
    """An opening is rounded to what the model keeps; one beyond it is refused, not made infinite."""
    model = random_model(tiny.CELLS["gated-4T"], 3)
    save_folder(model, tmp_path / "m", dtype)
    opening = random_opening(model.config)
    if side == "mlx":
        pytest.importorskip("mlx.core")
        b = mlx_kit.mlx(tmp_path / "m", dtype)
    else:
        b = TorchBackend(load_model(open_folder(tmp_path / "m"), torch.device("cpu"), getattr(torch, dtype)), static=side == "static")
    full = TorchBackend(load_model(open_folder(tmp_path / "m"), torch.device("cpu"), torch.float32))
    want, _ = feed(full, full.start(1, None, W, opening=opening), ids_for(MORE), 7)
    for kind in (np.float16, np.float32, np.float64):
        given = Opening(*(x.astype(kind) for x in opening))
        got, _ = feed(b, b.start(1, None, W, opening=given), ids_for(MORE), 7)
        assert relative_l2(got, want) <= {"float16": 5e-3, "bfloat16": 5e-2}[dtype]
    loud = Opening(opening.keys.astype(np.float64), opening.values * np.float64(1e39 if dtype == "bfloat16" else 1e5))
    with pytest.raises(BackendError, match=r"an opening's values reach \S+, beyond the \S+ that this model's are kept in: use a wider dtype"):
        b.start(1, None, W, opening=loud)
