"""Windows, folds and carried tokens of the onnx backend against the float64 oracle of window_kit; and what must not pass it."""

import mlx_kit as kit
import numpy as np
import onnx_kit
import pytest
import tiny
import torch
from compare import assert_close
from onnx_window_kit import BANK, LOGITS, RTOL, W, memory_of, oracle, reference, script_of, state_of, tokens
from window_kit import SCRIPTS, Script

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from lm2.export.export import export_model  # noqa: E402
from lm2.export.options import Options  # noqa: E402
from lm2.models.errors import BackendError, ConvertError  # noqa: E402

GATED = [name for name in tiny.CELLS | tiny.ALONE if name.startswith("gated")]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """name, form -> (float64 model, onnx backend) of the same weights; made when first asked for."""
    root, made = tmp_path_factory.mktemp("windows"), {}

    def get(name, form="default"):
        if (name, form) not in made:
            source, path = onnx_kit.exported(root / name, name, onnx_kit.FORMS[form])
            made[name, form] = reference(source), onnx_kit.backend(path)
        return made[name, form]

    return get


# Every cell in the usual form, every form of the three cells that differ most.
EXPORTED = [(name, form) for form in onnx_kit.FORMS for name in (GATED if form == "default" else ("gated", "gated-pair", "gated-topics"))]


@pytest.mark.parametrize("what", SCRIPTS)
@pytest.mark.parametrize(("name", "form"), EXPORTED)
def test_a_window_is_what_it_is_defined_to_be(cells, name, form, what):
    """Two sequences, whatever the call's size; the memory after every fold, in the middle of the window and at its end."""
    model, b = cells(name, form)
    bank, written = memory_of(model, 2, 3 if "carried" in what else 0, 5 if "carried" in what else 0)
    script = script_of(what)
    want, state = oracle(model, bank, written, script), state_of(bank, written)
    for split in (None, 1, 3):
        got, window = onnx_kit.windowed(b, state, script, W, split)
        assert_close(f"logits split {split}", got, want.logits.numpy(), LOGITS, RTOL)
        after = b.commit(window)
        assert after.written == want.written
        if script.carried < script.ids.shape[1]:
            assert_close(f"bank split {split}", b.to_host(after), want.banks[-1].numpy(), BANK, RTOL)
        else:
            assert np.array_equal(after.bank, state.bank)
    assert np.array_equal(state.bank, bank.numpy().astype(np.float32)), "a state must not change under a window"


WIDE = dict(layers=7, memory_layers=(6,), topics=(0, 1, 2, 3, 4), topic_back=1, topic_around=7)


@pytest.mark.parametrize("form", ["default", "standard"])
def test_topics_wider_than_a_memory_s_own(tmp_path, form):
    """Features of more numbers than a memory's row is made of, one memory, looking back at the token itself alone, and a ring nearly all of it near."""
    source, path = onnx_kit.exported(tmp_path, "gated", onnx_kit.FORMS[form], **WIDE)
    model, b = reference(source), onnx_kit.backend(path)
    assert {i.name: i.shape for i in b.session.get_inputs()}["past_writes"] == ["batch", 2, 16, 5 * 2 * 8]
    bank, written = memory_of(model, 2)
    for what in ("a fold a turn", "fold inside what is carried"):
        script = script_of(what)
        want = oracle(model, bank, written, script)
        for split in (None, 1):
            got, window = onnx_kit.windowed(b, state_of(bank, written), script, W, split)
            assert_close("logits", got, want.logits.numpy(), LOGITS, RTOL)
            assert_close("bank", b.to_host(b.commit(window)), want.banks[-1].numpy(), BANK, RTOL)


@pytest.mark.parametrize("name", ["gated", "gated-4T", "gated-topics"])
def test_memory_is_that_of_the_last_fold(cells, name):
    """Between start and the first fold, straight after a fold and after more tokens; looking changes nothing; two folds in a row are one."""
    model, b = cells(name)
    bank, written = memory_of(model)
    folds = (25, 33, 40)
    script = Script(torch.as_tensor(tokens(1, 44)), folds, 20)
    want, state = oracle(model, bank, written, script), state_of(bank, written)
    window = b.start(1, state, W, 20)
    known, at = (state.bank, written), 0
    for stop, made in zip((*folds, 44), want.banks, strict=True):
        for piece in np.array_split(script.ids.numpy()[:, at:stop], 2, axis=1):
            _, window = b.extend(piece, window)
            assert_close("before the fold", b.memory(window).bank, known[0], BANK, RTOL)
            assert b.memory(window).written == known[1] and b.commit(window).written == written + max(0, window.length - 20)
        committed, window, at = b.commit(window), b.fold(window), stop
        known = made.numpy(), written + stop - 20
        assert b.fold(window) is window and window.folded == stop
        for held in (b.memory(window), b.commit(window), committed):
            assert_close("after the fold", held.bank, known[0], BANK, RTOL)
            assert held.written == known[1]
    looked, _ = b.extend([1], window)
    assert_close("after looking", looked, b.extend([1], b.fold(onnx_kit.windowed(b, state, script, W)[1]))[0], 1e-6)


def test_folds_and_rewinding(cells):
    """A window goes back to its last fold and no further; what is fed after it is fed again; one that was folded since is refused."""
    _, b = cells("gated-4T")
    ids = tokens(1, 30)
    _, window = b.extend(ids[:, :12], b.start(1, None, W))
    before = window
    window = b.fold(window)
    first, longer = b.extend(ids[:, 12:20], window)
    assert (longer.length, longer.folded, window.length) == (20, 12, 12)
    with pytest.raises(BackendError, match="cannot rewind to 11: the window's first 12 tokens are in the memory"):
        b.rewind(longer, 11)
    for back in (window, b.rewind(longer, 12)):
        again, _ = b.extend(ids[:, 12:20], back)
        assert_close("again", again, first, 1e-6)
    assert before.stale and not (window.stale or longer.stale)
    for call in (lambda: b.extend([1], before), lambda: b.commit(before), lambda: b.fold(before)):
        with pytest.raises(BackendError, match="was folded since it had 0 tokens in the memory: run its tokens again in a new one"):
            call()
    carried = b.start(1, b.commit(longer), W, 10)
    _, carried = b.extend(ids[:, :10], carried)
    assert b.fold(carried) is carried and b.rewind(carried, 3).length == 3
    one, _ = b.extend(ids[:, 3:14], b.rewind(carried, 3))
    other, _ = b.extend(ids[:, :14], b.start(1, b.memory(carried), W, 10))
    assert_close("rewound among the carried", one, other, LOGITS)


@pytest.mark.parametrize("form", ["default", "standard"])
def test_a_window_of_any_size(cells, form):
    """The file's windows are as large as asked for, up to the model's positions; the numbers do not depend on it."""
    model, b = cells("gated", form)
    script = script_of("a fold a turn")
    bank, written = memory_of(model, 2)
    state, got = state_of(bank, written), []
    for size in (40, 41, b.config.max_position_embeddings):
        got.append(onnx_kit.windowed(b, state, script, size)[0])
        assert_close(f"window {size}", got[-1], got[0], 1e-5)
    assert b.describe(80).window_bytes - b.describe(48).window_bytes == 32 * 3 * 2 * 2 * 8 * 4  # positions, layers, K and V, heads, width, bytes


@pytest.mark.parametrize("what", ["a fold a turn", "carried beyond a chunk"])
@pytest.mark.parametrize(("name", "form"), [(name, form) for name in ("gated", "gated-topics") for form in onnx_kit.FORMS])
def test_the_graph_itself_in_place(cells, name, form, what):
    """Without this backend, every present_X in the memory of past_X, numbers too: new_chunk 1, 0 and 3; and 2 at the end, from which 1 goes on."""
    model, b = cells(name, form)
    bank, written = memory_of(model)
    script = script_of(what, 1)
    want = oracle(model, bank, written, script)
    state = {}
    for value in b.session.get_inputs():
        if value.name.startswith("past_"):
            kind = np.int64 if "int64" in value.type else np.float32
            state[value.name] = np.zeros([{"batch": 1, "window": W}.get(n, n) for n in value.shape], kind)
    state["past_bank"][:] = bank.numpy().swapaxes(0, 1)
    state["past_written"][:] = written
    binding = b.session.io_binding()
    for name, x in state.items():
        binding.bind_input(name, "cpu", 0, x.dtype.type, x.shape, x.ctypes.data)
        binding.bind_output(name.replace("past_", "present_"), "cpu", 0, x.dtype.type, x.shape, x.ctypes.data)

    def call(ids, new, carry=0):
        logits = np.zeros((1, ids.shape[1], 61), np.float32)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        for name, x in (("input_ids", ids), ("new_chunk", [new]), ("carry", [carry]), ("logits_from", [0])):
            binding.bind_cpu_input(name, np.array(x, np.int64))
        b.session.run_with_iobinding(binding)
        return logits

    ids, out, last = script.ids.numpy(), [], 0
    for at in range(ids.shape[1]):
        due = at - last == 16 if at <= script.carried or last else at - script.carried == 16
        new = 1 if at == 0 else 3 if at in script.folds or due else 0
        last = at if new == 3 else last
        out.append(call(ids[:, at : at + 1], new, script.carried if at == 0 else 99))
    assert_close("logits", np.concatenate(out, axis=1), want.logits.numpy(), LOGITS, RTOL)
    assert state["past_length"] == [ids.shape[1]] and state["past_folded"] == [script.folds[-1]]
    call(ids[:, :1], 2, 1)
    assert_close("bank", state["past_bank"].swapaxes(0, 1), want.banks[-1].numpy(), BANK, RTOL)
    assert state["past_written"] == [want.written] and state["past_length"] == state["past_folded"] == [1]
    again = call(ids[:, :5], 1)
    assert state["past_written"] == [want.written] and state["past_length"] == [5]
    assert_close("next window", again, oracle(model, want.banks[-1], want.written, Script(script.ids[:, :5])).logits.numpy(), LOGITS, RTOL)


def test_no_memory_folds_too(tmp_path):
    """Without memory layers a fold changes nothing but the room."""
    source = kit.folder(tmp_path / "m", "gated", memory_layers=())
    export_model(source, tmp_path / "x")
    b, reference = onnx_kit.backend(tmp_path / "x"), kit.torch(source)
    script = script_of("a fold a turn")
    (got, window), (want, _) = (onnx_kit.windowed(side, None, script, W) for side in (b, reference))
    assert_close("logits", got, want, LOGITS, RTOL)
    assert b.memory(window).written == 33 and b.commit(window).written == 40
    assert b.commit(window).bank.shape == (0, 2, 16, 32)


def test_a_window_that_the_file_fixes(tmp_path):
    """--window: the same numbers in buffers of that size; more is refused by one line."""
    source, free = onnx_kit.exported(tmp_path, "gated-4T")
    export_model(source, tmp_path / "fixed", Options(window=W))
    graph = onnx.load(tmp_path / "fixed" / "model.onnx").graph
    shapes = {v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in graph.input}
    assert shapes["past_key.0"] == ["batch", 2, W, 8]
    a, b = onnx_kit.backend(free), onnx_kit.backend(tmp_path / "fixed")
    script = script_of("carried beyond a chunk", 1)
    state = kit.written(a)
    (want, x), (got, y) = (onnx_kit.windowed(side, state, script, W) for side in (a, b))
    assert_close("logits", got, want, 1e-6)
    assert_close("bank", b.commit(y).bank, a.commit(x).bank, 1e-6)
    with pytest.raises(BackendError, match=r"a window of 49 tokens does not fit: .*fixed was exported with --window 48"):
        b.start(1, None, W + 1)
    for window, words in ((10**6, "must lie from 1 to the model's 2048 positions"), (-1, "must lie from 1")):
        with pytest.raises(ConvertError, match=f"--window {window} {words}"):
            export_model(source, tmp_path / "no", Options(window=window))
    released = kit.folder(tmp_path / "released", "released-causal")
    with pytest.raises(ConvertError, match="--window 48: a memory of cell released has windows of its chunk, 32"):
        export_model(released, tmp_path / "no", Options(window=W))
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("name", ["gated-4T", "gated-topics"])
@pytest.mark.parametrize("precision,gate", [("fp16", 5e-3), ("int8", 0.02), ("int4", 0.25)])
def test_lower_precisions(tmp_path, name, precision, gate):
    """The gates of whole chunks (test_onnx_backend.py) hold for folded windows."""
    source, path = onnx_kit.exported(tmp_path, name, Options(precision))
    model, b = reference(source), onnx_kit.backend(path)
    bank, written = memory_of(model, 2)
    for what in ("a fold a turn", "carried beyond a chunk"):
        script = script_of(what)
        want = oracle(model, bank, written, script).logits.numpy()
        got, _ = onnx_kit.windowed(b, state_of(bank, written), script, W)
        assert np.linalg.norm(got - want) / np.linalg.norm(want) < gate


@pytest.mark.slow
@pytest.mark.real
def test_smollm2(smollm2, tmp_path):
    """fp32: the gates of the parity report over a window of 2,048 that carries 100 tokens and folds three times."""
    from pathlib import Path

    from compare import nmse, relative_l2

    from lm2.runtime.tokenizer import Tokenizer

    text = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
    ids = np.array(Tokenizer.load(smollm2).encode(text))[:700]
    export_model(smollm2, tmp_path / "x")
    torch, b = kit.torch(smollm2), onnx_kit.backend(tmp_path / "x")
    script = Script(ids[None, 200:], (150, 340, 341), 100)
    (want, x), (got, y) = (
        onnx_kit.windowed(side, side.commit(side.extend(ids[:300], side.start())[1]), script, 2048) for side in (torch, b)
    )
    assert_close("logits", got, want, 5e-4)
    assert relative_l2(got, want) <= 1e-5 and (got.argmax(-1) == want.argmax(-1)).all()
    assert nmse(b.to_host(b.commit(y)), torch.to_host(torch.commit(x))) <= 1e-10
