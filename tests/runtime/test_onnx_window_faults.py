"""What must not pass the comparison of test_onnx_window.py; what a window refuses; calls that were interrupted or failed."""

from contextlib import contextmanager
from dataclasses import replace

import mlx_kit as kit
import numpy as np
import onnx_kit
import pytest
import torch
from compare import assert_close, relative_l2
from onnx_window_kit import BANK, LOGITS, RTOL, W, memory_of, oracle, reference, state_of, tokens
from qlinear_earlier import as_earlier
from window_kit import Script

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from lm2.export.options import Options
from lm2.models.errors import BackendError, LM2Error
from lm2.runtime.backend import BackendOptions, open_backend


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    return onnx_kit.backend(onnx_kit.exported(tmp_path_factory.mktemp("faults"), "gated")[1])


FAULTS = ["carried tokens written twice", "pointer off by one", "stale reads after a fold", "fold ignored", "rows where positions are", "attention a position off"]


@contextmanager
def nothing_new(border):
    """What is added to the graph meanwhile takes it that no rows entered the bank."""
    most = border._most
    border._most = border.graph.op("Mul", most, border.graph.constant([0]))
    yield
    border._most = most


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_window_is_noticed(tmp_path, fault, monkeypatch):
    """Negative controls, in the graph or in the backend: each is a plausible mistake; none may pass the comparison with the oracle."""
    from lm2.export import attention, border, step
    from lm2.runtime.backends import onnx_backend

    if fault == "stale reads after a fold":
        right = border.Border.reads

        def reads(self, bank, past, kind, first):
            with nothing_new(self):
                return right(self, bank, past, kind, first)

        monkeypatch.setattr(border.Border, "reads", reads)
    elif fault == "rows where positions are":
        monkeypatch.setattr(step.Step, "_kept", lambda self, w, place: step.write_at(self.graph, "past_writes", w, place.past, 2, place, 16))
    elif fault == "attention a position off":
        chunked = attention.WindowAttention.chunked

        def off(self, g, *given):
            with monkeypatch.context() as patch:
                past = g.op("Max", g.op("Sub", self.place.past, g.constant([1])), g.constant([0]))
                patch.setattr(self, "place", replace(self.place, past=past))
                return chunked(self, g, *given)

        monkeypatch.setattr(attention.WindowAttention, "chunked", off)
    source, path = onnx_kit.exported(tmp_path, "gated-4T")
    model, b = reference(source), onnx_kit.backend(path)
    bank, written = memory_of(model)
    script = Script(torch.as_tensor(tokens(1, 40)), (25, 33), 20)
    want, given, start = oracle(model, bank, written, script), script, written
    if fault == "carried tokens written twice":
        given = Script(script.ids, (16, 25, 33), 0)
    elif fault == "pointer off by one":
        start += 1
    elif fault == "fold ignored":
        monkeypatch.setattr(onnx_backend.OnnxBackend, "_at", lambda self, w: onnx_backend.At(w.length, w.written, w.folded, w.carried))
    got, window = onnx_kit.windowed(b, state_of(bank, start), given, W, 8)
    with pytest.raises(AssertionError):
        assert_close("logits", got, want.logits.numpy(), LOGITS, RTOL)
    if fault != "stale reads after a fold":  # its rows are those of what it read: near, and a matter of the logits
        with pytest.raises(AssertionError):
            assert_close("bank", b.commit(window).bank, want.banks[-1].numpy(), BANK, RTOL)


TOPIC_FAULTS = ["surroundings a row off", "stale surroundings after a fold", "one token more looked back", "gains left out", "a memory's gain for another"]


def assert_other_logits(tmp_path, form):
    """An export with topics, made as things are now, gives other logits than the model over folds and carried tokens."""
    source, path = onnx_kit.exported(tmp_path, "gated-topics", onnx_kit.FORMS[form])
    model, b = reference(source), onnx_kit.backend(path)
    bank, written = memory_of(model)
    script = Script(torch.as_tensor(tokens(1, 40)), (25, 33), 20)
    want = oracle(model, bank, written, script)
    got, _ = onnx_kit.windowed(b, state_of(bank, written), script, W, 8)
    with pytest.raises(AssertionError):
        assert_close("logits", got, want.logits.numpy(), LOGITS, RTOL)


@pytest.mark.parametrize("form", ["default", "standard"])
@pytest.mark.parametrize("fault", TOPIC_FAULTS)
def test_wrong_topics_are_noticed(tmp_path, fault, form, monkeypatch):
    """Negative controls of what topics add to the memories' logits."""
    from lm2.export import border, topics

    right, bias = border.Border.around, topics.TopicNodes.bias

    def around(self, bank, past, first):
        g = self.graph
        if fault == "stale surroundings after a fold":
            with nothing_new(self):
                return right(self, bank, past, first)
        fresh, start = right(self, bank, past, first)
        return fresh, g.op("Mod", g.op("Add", start, g.constant([1])), g.constant([self.config.memory.slots]))

    if "surroundings" in fault:
        monkeypatch.setattr(border.Border, "around", around)
    elif fault == "gains left out":
        monkeypatch.setattr(topics.TopicNodes, "bias", lambda self, g, looks, memory: g.op("Unsqueeze", looks, g.constant([1])))
    elif fault == "a memory's gain for another":
        monkeypatch.setattr(topics.TopicNodes, "bias", lambda self, g, looks, memory: bias(self, g, looks, 1 - memory))
    else:
        made = topics.TopicNodes.__init__

        def longer(self, *args):
            made(self, *args)
            self.back += 1

        monkeypatch.setattr(topics.TopicNodes, "__init__", longer)
    assert_other_logits(tmp_path, form)


@pytest.mark.parametrize("form", ["default", "standard"])
@pytest.mark.parametrize("fault", ["values of the row alone", "values of the row before"])
def test_values_made_of_other_topics_are_noticed(tmp_path, fault, form, monkeypatch):
    """Negative controls of what a value has of its row in the topics' bank."""
    from lm2.export import memory

    right = memory.MemoryLayers.keys_values

    def wrong(self, g, bank, layer, told):
        shown = g.op("Concat", g.slice(told, g.constant([0]), g.constant([1]), 1), g.slice(told, g.constant([0]), g.constant([-1]), 1), axis=1)
        return right(self, g, bank, layer, g.op("Mul", told, g.constant(0.0, "float32")) if "alone" in fault else shown)

    monkeypatch.setattr(memory.MemoryLayers, "keys_values", wrong)
    assert_other_logits(tmp_path, form)


ROW_FAULTS = ["old row kept whole", "gate left out", "another memory's gate", "gate not the mean of its channels"]


@pytest.mark.parametrize("form", ["default", "standard"])
@pytest.mark.parametrize("fault", ROW_FAULTS)
def test_topics_row_made_wrongly_is_noticed(tmp_path, fault, form, monkeypatch):
    """Negative controls of the rows of the topics' bank."""
    from lm2.export import memory, topics

    made, told, rows, gates = memory.MemoryLayers.rewritten, memory.MemoryLayers.told, topics.TopicNodes.rewritten, []

    def kept_whole(self, g, writes, told, old):
        return g.op("Add", rows(self, g, writes, told, g.op("Mul", old, g.constant(0.0, "float32"))), old)

    def noted(self, g, writes, old, layer):
        row, gate = made(self, g, writes, old, layer)
        gates.append(gate)
        return row, gate

    if fault == "old row kept whole":
        monkeypatch.setattr(topics.TopicNodes, "rewritten", kept_whole)
    elif fault == "gate left out":
        monkeypatch.setattr(memory.MemoryLayers, "told", lambda self, g, i: g.constant([1.0], "float32"))
    elif fault == "gate not the mean of its channels":
        monkeypatch.setattr(memory.MemoryLayers, "told", lambda self, g, i: memory.small_sigmoid(g, i))
    else:
        monkeypatch.setattr(memory.MemoryLayers, "rewritten", noted)
        monkeypatch.setattr(memory.MemoryLayers, "told", lambda self, g, i: told(self, g, gates[1]))
    source, path = onnx_kit.exported(tmp_path, "gated-topics", onnx_kit.FORMS[form])
    model, b = reference(source), onnx_kit.backend(path)
    bank, written = memory_of(model)
    script = Script(torch.as_tensor(tokens(1, 40)), (25, 33), 20)
    _, window = onnx_kit.windowed(b, state_of(bank, written), script, W, 8)
    made, want = b.commit(window).bank, oracle(model, bank, written, script).banks[-1].numpy()
    with pytest.raises(AssertionError):
        assert_close("topics' bank", made[-1], want[-1], BANK, RTOL)


def test_interrupted_after_a_fold_was_done(backend, monkeypatch):
    """Ctrl-C arrives when the call is over and nothing was returned: the fold is not done twice, whatever is fed next."""
    b = backend
    ids, state = tokens(1, 20), kit.written(b)

    def after_a_fold():
        return b.fold(b.extend(ids[:, :12], b.start(1, state, W))[1])

    want, wanted = b.extend(ids[:, 12:], after_a_fold())
    window = after_a_fold()
    right = type(window.buffers)._call

    def interrupted(self, *args):
        right(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(type(window.buffers), "_call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        b.extend(ids[:, :5], window)
    monkeypatch.undo()
    got, longer = b.extend(ids[:, 12:], window)
    assert_close("logits", got, want, 1e-6)
    assert_close("bank", b.commit(longer).bank, b.commit(wanted).bank, 1e-6)


def test_a_fold_that_fails_is_not_gone_on_from(backend, monkeypatch):
    """Nobody knows how much of it was done: the window says so from then on."""
    b = backend
    window = b.fold(b.extend(tokens(1, 12), b.start(1, None, W))[1])

    class Broken:
        def run_with_iobinding(self, binding):
            raise RuntimeError("out of memory")

    with monkeypatch.context() as m, pytest.raises(BackendError, match="could not run the model"):
        m.setattr(window.buffers, "session", Broken())
        b.extend([1], window)
    assert window.stale
    for call in (lambda: b.extend([1], window), lambda: b.commit(window), lambda: b.memory(window)):
        with pytest.raises(BackendError, match="failed half-way"):
            call()


def test_what_a_window_refuses(backend, tmp_path):
    b = backend
    most = b.config.max_position_embeddings
    released = onnx_kit.backend(onnx_kit.exported(tmp_path, "released-causal")[1])
    _, full = b.extend(tokens(1, 16), b.start(1, None, W))
    for call, words in (
        (lambda: b.start(1, None, most + 1), f"a window of {most + 1} tokens does not fit the model's {most} positions: choose another"),
        (lambda: b.start(1, None, 0), "a window of 0 tokens"),
        (lambda: b.start(1, None, W, W), "48 carried tokens do not fit in a window of 48"),
        (lambda: released.start(1, None, W), "cell released has windows of its chunk, 32 tokens"),
        (lambda: released.start(1, None, None, 3), "carries none over"),
        (lambda: released.fold(released.start()), "cell released cannot fold"),
        (lambda: b.extend([1], full), "17 tokens since the last fold do not fit in a chunk of 16: fold first"),
        (lambda: b.extend([1] * 17, b.fold(full)), "17 tokens since the last fold"),
        (lambda: b.extend([1], b.extend(tokens(1, 16), b.start(1, None, 16))[1]), r"16 \+ 1 tokens do not fit in a window of 16: commit"),
    ):
        with pytest.raises(BackendError, match=words):
            call()


@pytest.mark.parametrize("place", ["config.json", "model.onnx"])
def test_exports_of_an_earlier_version_are_refused(tmp_path, place):
    """By the record, or by the file's own word where the record was changed: one line with the remedy."""
    _, path = onnx_kit.exported(tmp_path, "gated")
    if place == "config.json":
        text = (path / place).read_text()
        assert '"format": 5' in text
        (path / place).write_text(text.replace('"format": 5', '"format": 2'))
    else:
        onnx_kit.rewritten(path, lambda m: [setattr(p, "value", "2") for p in m.metadata_props if p.key == "lm2.format"])
    with pytest.raises(LM2Error, match=r"exported by an earlier lm2: export it again with `lm2 export MODEL DST`") as caught:
        onnx_kit.backend(path)
    assert "\n" not in str(caught.value)


def test_exports_of_format_3_run(tmp_path, monkeypatch):
    """One past_length for all sequences, and GroupQueryAttention: opened and run as before, windows one after the other."""
    with monkeypatch.context() as earlier:
        earlier.setattr("lm2.export.options.Options.own_attention", False)
        earlier.setattr("lm2.export.export.FORMAT", 3)
        earlier.setattr("lm2.models.exported.FORMAT", 3)
        source, path = onnx_kit.exported(tmp_path, "gated")
    assert '"format": 3' in (path / "config.json").read_text() and '"GroupQueryAttention"' in (path / "config.json").read_text()
    model, b = reference(source), onnx_kit.backend(path)
    bank, written = memory_of(model, 2)
    script = Script(torch.as_tensor(tokens(2, 40)), (25, 33), 20)
    got, _ = onnx_kit.windowed(b, state_of(bank, written), script, W, 8)
    assert_close("logits", got, oracle(model, bank, written, script).logits.numpy(), LOGITS, RTOL)
    windows = [b.extend(tokens(1, n), b.start(1, None, W))[1] for n in (3, 5)]
    logits, longer = b.step([4, 5], windows)
    assert [w.length for w in longer] == [4, 6] and np.isfinite(logits).all()




@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_matrices_that_no_library_multiplies_by_any_more(tmp_path, precision):
    """An export of format 4 with QLinear in version 1: opens and says the same tokens, and one line says to export it again. Those of now say nothing."""
    _, path = onnx_kit.exported(tmp_path, "gated", Options(precision))

    def opened():
        said = []
        b = open_backend("onnx", path, BackendOptions(device="cpu", threads=1, report=lambda e: said.append(e.stage)))
        logits, _ = b.extend(tokens(1, 9)[0], b.start(1, None, W), all_logits=True)
        return logits[0], [line for line in said if "export" in line]

    want, nothing = opened()
    onnx_kit.rewritten(path, as_earlier)
    config = path / "config.json"
    config.write_text(config.read_text().replace('"format": 5', '"format": 4'))
    got, said = opened()
    assert nothing == [] and len(said) == 1 and "\n" not in said[0]
    assert "was exported by an earlier lm2: its matrices are unpacked to float32" in said[0] and "export it again" in said[0]
    assert (got.argmax(-1) == want.argmax(-1)).all() and relative_l2(got, want) < 2e-4
