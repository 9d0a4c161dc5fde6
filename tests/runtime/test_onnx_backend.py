"""The onnx backend against the torch reference and the golden vectors, and the properties every backend must have."""

import gc
import json
import os
import sys
from pathlib import Path

import mlx_kit as kit
import numpy as np
import onnx_kit
import poison
import psutil
import pytest
import tiny
from compare import assert_close, nmse, relative_l2
from safetensors.numpy import load_file

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from lm2.export.options import Options  # noqa: E402
from lm2.models.errors import BackendError, LM2Error  # noqa: E402
from lm2.runtime.backend import BackendOptions, open_backend  # noqa: E402

GOLDEN = Path(__file__).parent.parent / "data" / "golden" / "tiny"
ATOL, RTOL = 2e-5, 1e-4
ALL = list(tiny.CELLS)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """name, form -> (torch, onnx) backends over one model; made when first asked for."""
    root, made = tmp_path_factory.mktemp("cells"), {}

    def get(name, form="default"):
        if (name, form) not in made:
            source, path = onnx_kit.exported(root / name, name, onnx_kit.FORMS[form])
            made[name, form] = kit.torch(source), onnx_kit.backend(path)
        return made[name, form]

    return get


@pytest.fixture(autouse=True)
def fresh_logits_are_poisoned(monkeypatch):
    poison.onnx(monkeypatch)


@pytest.mark.parametrize("name", ALL)
def test_a_chunk_reads_nothing_that_was_not_written(cells, name, monkeypatch):
    """The state of a new chunk full of NaN instead of zeros: the same bits. (Portable graphs mask what is not there yet by products with 0, and need the zeros.)"""
    b, made = cells(name)[1], []
    for begin in (lambda: None, lambda: poison.onnx_state(monkeypatch)):
        begin()
        logits, chunk = kit.run(b, kit.tokens(b, 2, b.config.memory.chunk), kit.written(b, 2, 1), (5, 6, 11))
        made.append((logits, b.to_host(b.commit(chunk))))
    assert all(np.array_equal(x, y) and np.isfinite(x).all() for x, y in zip(*made, strict=True))


@pytest.mark.parametrize("form", list(onnx_kit.FORMS))
@pytest.mark.parametrize("name", ALL)
def test_same_numbers_as_torch(cells, name, form):
    """Three chunks in a row, batch 3, each cut so that second and third calls of many tokens meet a filled cache."""
    torch, onnx = cells(name, form)
    a = b = None
    for c in range(3):
        ids = kit.tokens(torch, 3, torch.config.memory.chunk, c)
        want, at = kit.run(torch, ids, a, (5, 6, 11))
        got, bt = kit.run(onnx, ids, b, (5, 6, 11))
        assert_close("logits", got, want, 5e-5, RTOL)
        a, b = torch.commit(at), onnx.commit(bt)
        assert_close("bank", onnx.to_host(b), torch.to_host(a), ATOL, RTOL)
        assert b.written == a.written == (c + 1) * onnx.config.memory.chunk


@pytest.mark.parametrize("name", ALL)
def test_pieces_give_the_whole(cells, name):
    """One call, one token at a time, and 3 + 1 + ...: the last logits and the bank; in streaming cells every logit."""
    b = cells(name)[1]
    length = b.config.memory.chunk
    ids, state = kit.tokens(b, 2, length), kit.written(b, 2)
    want, chunk = kit.run(b, ids, state)
    bank = b.to_host(b.commit(chunk))
    for splits in (range(1, length), [3, 4, length - 2]):
        got, chunk = kit.run(b, ids, state, list(splits))
        upto = slice(-1, None) if name == "released-chunk" else slice(None)
        assert_close("logits", got[:, upto], want[:, upto], 5e-5, RTOL)
        assert_close("bank", b.to_host(b.commit(chunk)), bank, 5e-5, RTOL)


@pytest.mark.parametrize("name", tiny.STREAMING)
def test_causality(cells, name):
    b = cells(name)[1]
    length = b.config.memory.chunk
    ids, state = kit.tokens(b, 1, length), kit.written(b)
    base, _ = kit.run(b, ids, state)
    for t in (0, length // 2, length - 1):
        other = ids.copy()
        other[0, t] = (other[0, t] + 1) % b.config.vocab_size
        logits, _ = kit.run(b, other, state)
        assert_close(f"before {t}", logits[:, :t], base[:, :t], ATOL)
        assert np.abs(logits[:, t:] - base[:, t:]).max() > 1e-3


def test_chunk_pooling_sees_the_future(cells):
    b = cells("released-chunk")[1]
    ids = kit.tokens(b, 1, b.config.memory.chunk)
    other = ids.copy()
    other[0, -1] = (other[0, -1] + 1) % b.config.vocab_size
    assert np.abs(kit.run(b, other)[0][:, :-1] - kit.run(b, ids)[0][:, :-1]).max() > 1e-4


@pytest.mark.parametrize("name", ALL)
def test_zeroing_the_bank_changes_the_logits(cells, name):
    b = cells(name)[1]
    ids, state = kit.tokens(b, 1, b.config.memory.chunk), kit.written(b)
    zero = b.from_host(np.zeros_like(b.to_host(state)), state.written)
    assert np.abs(kit.run(b, ids, state)[0] - kit.run(b, ids, zero)[0]).max() > 1e-3


def test_never_written_is_the_backbone(tmp_path):
    """A zero bank, cell gated: bit for bit the same model without a memory."""
    from dataclasses import replace

    from lm2.export.export import export_model
    from lm2.models.weights import random_model, save_folder

    with_memory, without = tiny.CELLS["gated"], replace(tiny.CELLS["gated"], memory=replace(tiny.CELLS["gated"].memory, layers=()))
    model, bare = random_model(with_memory, seed=3), random_model(without, seed=4)
    for name, p in bare.named_parameters():
        p.data.copy_(dict(model.named_parameters())[name].data)
    backends = []
    for name, m in (("a", model), ("b", bare)):
        save_folder(m, tmp_path / name)
        export_model(tmp_path / name, tmp_path / f"{name}-onnx")
        backends.append(onnx_kit.backend(tmp_path / f"{name}-onnx"))
    ids = kit.tokens(backends[0], 2, 16)
    for splits in ((), range(1, 16)):
        got, want = (kit.run(b, ids, None, list(splits))[0] for b in backends)
        assert np.array_equal(got, want)


@pytest.mark.parametrize("name", ALL)
def test_rewind_and_partial_commit(cells, name):
    """An older chunk stays good; a partial chunk commits its rows only; an empty one changes nothing; states are not written to."""
    b = cells(name)[1]
    ids, state = kit.tokens(b, 2, 9), kit.written(b, 2)
    before = b.to_host(state)
    _, short = kit.run(b, ids[:, :6], state)
    partial = b.to_host(b.commit(short))
    last, longer = b.extend(ids[:, 6:], short)
    assert longer.length == 9 and short.length == 6
    back = b.rewind(longer, 6)
    assert_close("bank after rewinding", b.to_host(b.commit(back)), partial, 1e-6)
    again, _ = b.extend(ids[:, 6:], back)
    assert_close("logits after rewinding", again, last, 1e-6)
    rows = np.abs(partial - before).max(axis=(0, 1, 3)) > 0  # (n,)
    m = b.config.memory
    first = 0 if m.cell == "released" else state.written % m.slots
    assert rows[first : first + 6].all() and rows.sum() == 6
    assert np.array_equal(b.to_host(b.commit(b.rewind(longer, 0))), before)
    assert np.array_equal(b.to_host(state), before), "a state must not change under a chunk"


@pytest.mark.parametrize("name", ["gated", "gated-topics", "released-causal", "released-chunk"])
def test_the_graph_itself_begins_chunks(cells, name):
    """Without this backend: feed every present_X back as past_X and set new_chunk; the same logits and bank, over four chunks of unequal length."""
    b = cells(name)[1]
    session, c = b.session, b.config
    pairs = json.loads(session.get_modelmeta().custom_metadata_map["lm2.state"])
    state = {}
    for value in session.get_inputs():
        if value.name in pairs:
            kind = {"tensor(float)": np.float32, "tensor(int64)": np.int64}[value.type]
            state[value.name] = np.zeros([{"batch": 1, "window": c.memory.chunk}.get(s, s) for s in value.shape], kind)
    state["past_bank"] = b.to_host(b.commit(b.start())).swapaxes(0, 1)
    names = ["logits", *pairs.values()]
    memory = None
    for n, length in enumerate((c.memory.chunk, 5, c.memory.chunk - 1, 7)):
        ids = kit.tokens(b, 1, length, n)
        for part in (slice(0, 4), slice(4, None)):
            feeds = state | {"input_ids": ids[:, part], "new_chunk": np.array([int(part.start == 0)]), "logits_from": np.array([0])}
            feeds |= {"carry": np.array([0])} if c.memory.cell == "gated" else {}
            logits, *present = session.run(names, feeds)
            state = dict(zip(pairs, present, strict=True))
        want, chunk = kit.run(b, ids, memory, (4,))
        memory = b.commit(chunk)
        assert_close("logits", logits, want[:, 4:], ATOL, RTOL)
    assert state["past_written"] == [c.memory.chunk + 5 + c.memory.chunk - 1] and state["past_length"] == [7]


def test_golden_chunks(tmp_path):
    """Ground truth from the released LM2 implementation: logits and the bank after each of three chunks."""
    from lm2.export.export import export_model
    from lm2.models.checkpoints.convert import convert

    convert(GOLDEN / "ckpt_iter_7.pth", tmp_path / "m")
    golden = load_file(GOLDEN / "golden.safetensors")
    for form, options in onnx_kit.FORMS.items():
        export_model(tmp_path / "m", tmp_path / form, options)
        b = onnx_kit.backend(tmp_path / form)
        state = b.from_host(golden["memory.0"][None], 0)
        for c in range(3):
            logits, chunk = kit.run(b, golden[f"input_ids.{c}"], state)
            assert_close(f"{form}, chunk {c} logits", logits, golden[f"logits.{c}"], 1e-5, 1e-4)
            again, cut = kit.run(b, golden[f"input_ids.{c}"], state, (13, 14))
            assert_close(f"{form}, chunk {c} last logits", again[:, -1], golden[f"logits.{c}"][:, -1], 1e-5, 1e-4)
            assert_close("bank, cut", b.to_host(b.commit(cut))[0], golden[f"memory.{c + 1}"], 1e-5, 1e-4)
            state = b.commit(chunk)
            assert_close(f"{form}, chunk {c} bank", b.to_host(state)[0], golden[f"memory.{c + 1}"], 1e-5, 1e-4)


@pytest.mark.parametrize("fault", ["gates swapped", "old rows shifted", "no output gate"])
def test_a_wrong_graph_fails(tmp_path, fault, monkeypatch):
    """Negative controls: plausible mistakes must not pass the gates above."""
    from lm2.export import memory

    if fault == "gates swapped":
        right = memory.plain_update
        monkeypatch.setattr("lm2.export.export.plain_update", lambda g, i, f, z, old: right(g, f, i, z, old))
    elif fault == "old rows shifted":
        right = memory.plain_update
        monkeypatch.setattr(
            "lm2.export.export.plain_update",
            lambda g, i, f, z, old: right(
                g, i, f, z, g.op("Concat", *reversed(g.ops("Split", old, outputs=2, axis=-1, num_outputs=2)), axis=-1)
            ),
        )
    else:
        monkeypatch.setattr(memory.MemoryLayers, "attend", lambda self, g, q, k, v, bias: q)
    source, path = onnx_kit.exported(tmp_path, "gated", Options(plain=True))
    torch, onnx = kit.torch(source), onnx_kit.backend(path)
    state = kit.written(torch)
    ids = kit.tokens(torch, 1, 16)
    want, a = kit.run(torch, ids, state)
    got, b = kit.run(onnx, ids, onnx.from_host(torch.to_host(state), state.written))
    with pytest.raises(AssertionError):
        assert_close("bank", onnx.to_host(onnx.commit(b)), torch.to_host(torch.commit(a)), ATOL, RTOL)
    if fault == "no output gate":
        with pytest.raises(AssertionError):
            assert_close("logits", got, want, 5e-5, RTOL)


@pytest.mark.parametrize("name", ["gated", "gated-topics", "released-causal", "released-chunk"])
@pytest.mark.parametrize("precision,gate", [("fp16", 5e-3), ("int8", 0.02), ("int4", 0.25)])
def test_lower_precisions(tmp_path, name, precision, gate):
    """Random weights quantise badly; the real model is judged below. The split property holds in any precision."""
    source, path = onnx_kit.exported(tmp_path, name, Options(precision))
    torch, onnx = kit.torch(source), onnx_kit.backend(path)
    ids = kit.tokens(torch, 1, torch.config.memory.chunk)
    want, _ = kit.run(torch, ids)
    got, _ = kit.run(onnx, ids)
    assert relative_l2(got, want) < gate
    pieces, _ = kit.run(onnx, ids, None, (3, 4, 9))
    assert relative_l2(pieces[:, -1], got[:, -1]) < (gate if precision == "fp16" else 2e-4)  # what rounding inputs to 16 bits may make of a last digit
    described = onnx.describe()
    assert described.dtype == ("float16" if precision == "fp16" else "float32")
    assert ("none" if precision == "fp16" else precision[-1]) in described.quantization


def test_the_kernel_runs_where_the_library_is(tmp_path, monkeypatch):
    """Registered, the profile shows the operator; without it, its body. The numbers agree."""
    from lm2.export.ops import build
    from lm2.runtime.backends import onnx_cache

    try:
        library = build.library()
    except build.BuildError as error:
        pytest.skip(str(error))
    _, path = onnx_kit.exported(tmp_path, "gated")
    ids, logits, banks = np.arange(11) % 61, [], []
    for found in (None, library):
        monkeypatch.setattr("lm2.runtime.backends.onnx_cache.find_library", lambda kind, report=None, found=found: found)
        assert onnx_cache.find_library("cpu") == found
        b = onnx_kit.backend(path)
        options = ort.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / f"p{len(logits)}")
        if found:
            options.register_custom_ops_library(str(found))
        b.session = ort.InferenceSession(str(path / "model.onnx"), options, providers=["CPUExecutionProvider"])
        made, chunk = kit.run(b, ids[None])
        logits.append(made)
        banks.append(b.to_host(b.commit(chunk)))
        seen = {e.get("args", {}).get("op_name") for e in json.loads(Path(b.session.end_profiling()).read_text())}
        assert ("GatedMemoryUpdate" in seen) == bool(found)
    assert_close("logits", logits[1], logits[0], ATOL, RTOL)
    assert_close("banks", banks[1], banks[0], ATOL, RTOL)


@pytest.mark.parametrize("name", ["gated", "gated-4T", "gated-topics", "released-causal"])
def test_a_chunk_goes_on_after_its_memory_was_taken(cells, name):
    """`commit` leaves the chunk as it is: the same logits follow, and the same bank, as if nobody had looked."""
    b = cells(name)[1]
    ids, state = kit.tokens(b, 1, 16, 3), kit.written(b)
    looked, chunk = [], b.start(1, state)
    for piece in np.split(ids, [5, 6, 11], axis=1):
        logits, chunk = b.extend(piece, chunk, all_logits=True)
        looked.append(logits)
        b.commit(chunk)
    plain, other = kit.run(b, ids, state, (5, 6, 11))
    assert np.array_equal(np.concatenate(looked, axis=1), plain)
    assert np.array_equal(b.to_host(b.commit(chunk)), b.to_host(b.commit(other)))
    assert not np.array_equal(b.to_host(b.commit(b.rewind(chunk, 11))), b.to_host(b.commit(chunk)))


@pytest.mark.slow
def test_a_thousand_chunks_cost_the_same_memory(cells):
    """Calls of changing sizes, states thrown away: resident bytes stay where they were after the first fifty chunks."""
    b = cells("gated")[1]
    process, state, rng = psutil.Process(), None, np.random.default_rng(0)
    for c in range(1000):
        ids = rng.integers(0, b.config.vocab_size, b.config.memory.chunk)
        chunk = b.start(1, state)
        for piece in np.split(ids, [1 + c % 9, 11, 12]):
            _, chunk = b.extend(piece, chunk)
        state = b.commit(chunk)
        if c == 50:
            gc.collect()
            before = process.memory_info().rss
    gc.collect()
    assert process.memory_info().rss - before < 8 << 20
    assert state.written == 1000 * b.config.memory.chunk and np.isfinite(b.to_host(state)).all()


def test_errors_are_one_line(cells, tmp_path):
    b = cells("gated")[1]
    chunk = b.start()
    for call, words in (
        (lambda: b.extend([], chunk), "at least one token"),
        (lambda: b.extend([61], chunk), "token ids must lie from 0 to 60"),
        (lambda: b.extend([1] * 17, chunk), "do not fit in a window of 16"),
        (lambda: b.rewind(chunk, 1), "cannot rewind"),
        (lambda: b.start(2, b.commit(chunk)), "does not fit"),
        (lambda: b.from_host(np.zeros((1, 1, 16, 32), np.float32), 0), "does not fit"),
    ):
        with pytest.raises(BackendError, match=words):
            call()
    _, path = onnx_kit.exported(tmp_path, "gated")
    for options, words in (
        (BackendOptions(device="tpu"), "device 'tpu' must be"),
        (BackendOptions(device="cuda:x"), "must be auto, cpu, cuda"),
        (BackendOptions(device="cpu", dtype="bfloat16"), "dtype 'bfloat16'"),
        (BackendOptions(device="cpu", dtype="float16"), "was exported in"),
    ):
        with pytest.raises(BackendError, match=words):
            open_backend("onnx", path, options)
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        with pytest.raises(BackendError, match="is not there"):
            open_backend("onnx", path, BackendOptions(device="cuda"))
    with pytest.raises(LM2Error, match="--backend onnx"):
        open_backend("torch", path)


def test_a_plain_folder_is_exported_once(tmp_path, monkeypatch):
    """Said so the first time, silent the second; a damaged export in the cache is refused by name."""
    monkeypatch.setenv("LM2_HOME", str(tmp_path / "home"))
    source = kit.folder(tmp_path / "m", "gated")
    notes = []
    options = BackendOptions(device="cpu", report=lambda e: notes.append(e.stage) if e.note else None)
    b = open_backend("onnx", source, options)
    assert len(notes) == 1 and "exporting m to ONNX (fp32), once" in notes[0]
    again = open_backend("onnx", source, options)
    assert len(notes) == 1
    ids = np.arange(7)
    assert np.array_equal(b.extend(ids, b.start())[0], again.extend(ids, again.start())[0])
    (kept,) = (tmp_path / "home" / "onnx").glob("*-fp32-*/model.onnx")
    with monkeypatch.context() as earlier:
        earlier.setattr("lm2.runtime.backends.onnx_cache.GRAPH", 1)
        kept.parent.rename(kept.parent.with_name(kept.parent.name.rsplit("-", 1)[0] + "-1"))
        open_backend("onnx", source, options)
    assert len(notes) == 1
    open_backend("onnx", source, options)  # what another version kept is left alone, and this one exports for itself
    assert len(notes) == 2
    (kept,) = (tmp_path / "home" / "onnx").glob("*-fp32-[!1]*/model.onnx")
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(BackendError, match="remove .* and it is made again"):
        open_backend("onnx", source, options)


def test_runs_without_torch_and_onnx(tmp_path):
    """An exported folder needs NumPy, ONNX Runtime and the tokenizer: a fresh process that may import neither torch nor onnx generates."""
    import subprocess
    import sys

    import tiny_model

    from lm2.export.export import export_model

    source = tiny_model.make(tmp_path / "m")
    export_model(source, tmp_path / "x")
    program = """
import sys
for name in ("torch", "onnx", "mlx", "transformers"):
    sys.modules[name] = None
import lm2
model = lm2.load(sys.argv[1])
assert model.backend.describe().backend == "onnx"
print("".join(lm2.Session(model).say("hi", max_tokens=8)) is not None)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "x")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.real
def test_smollm2(smollm2, tmp_path):
    """fp32: the gates of the parity report over two chunks; int8, int4: top-1 and KL, for a GGUF whose numbers both keep. From the exported folders."""
    from lm2.export.export import export_model
    from lm2.models.text.tokenizer import Tokenizer

    text = (Path(__file__).parent.parent.parent / "LICENSE").read_text()
    ids = np.array(Tokenizer.load(smollm2).encode(text))[:256].reshape(2, 1, 128)
    torch = kit.torch(smollm2)
    sizes = {}
    for precision in ("fp32", "int8", "int4"):
        sizes[precision] = export_model(smollm2, tmp_path / precision, Options(precision))["bytes"]
    assert sizes["int8"] < 170e6 and sizes["int4"] < 115e6
    state, banks, wanted = None, [], []
    for c in range(2):
        logits, chunk = kit.run(torch, ids[c], state)
        state = torch.commit(chunk)
        wanted.append(logits)
        banks.append(torch.to_host(state))
    for precision in ("fp32", "int8", "int4"):
        b, state = onnx_kit.backend(tmp_path / precision), None
        got = []
        for c in range(2):
            logits, chunk = kit.run(b, ids[c], state, (60, 61, 90))
            state = b.commit(chunk)
            got.append(logits)
            if precision == "fp32":
                assert_close("logits", logits, wanted[c], 5e-4)
                assert relative_l2(logits, wanted[c]) <= 1e-5 and nmse(b.to_host(state), banks[c]) <= 1e-10
        x, y = np.concatenate(wanted, 1).astype(np.float64), np.concatenate(got, 1).astype(np.float64)
        assert (x.argmax(-1) == y.argmax(-1)).mean() >= (1.0 if precision == "fp32" else 0.99)
        x, y = (a - np.log(np.exp(a - a.max(-1, keepdims=True)).sum(-1, keepdims=True)) - a.max(-1, keepdims=True) for a in (x, y))
        assert (np.exp(x) * (x - y)).sum(-1).mean() <= 1e-5


def test_the_engine_reports_nothing_and_keeps_no_number_of_its_own(tmp_path):
    import subprocess

    env = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    program = "import lm2, onnxruntime"
    for home in (tmp_path, "/proc/nothing"):
        done = subprocess.run([sys.executable, "-c", program], env=env | {"HOME": str(home)}, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "") and not list(tmp_path.iterdir())
