"""Sequences of one run that stand at positions of their own, and windows that are stepped together: each is what it is alone, bit for bit. Layers with an
attention window are no ChunkAttention, and equal up to rounding."""

import numpy as np
import onnx_kit
import pytest
import tiny
from onnx_window_kit import tokens

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from lm2.export.graph import Graph
from lm2.export.ops import build
from lm2.export.options import Options
from lm2.models.errors import BackendError
from lm2.runtime.backend import one_by_one
from lm2.runtime.backends import onnx_together

W = 48
NAMES = [name for name in tiny.CELLS | tiny.ALONE if name.startswith("gated")]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """name, options -> an onnx backend with the operator library; made when first asked for."""
    root, made = tmp_path_factory.mktemp("together"), {}
    try:
        library = build.library()
    except build.BuildError as error:
        pytest.skip(str(error))

    def get(name, options=Options()):
        if (name, options) not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("lm2.runtime.backends.onnx_cache.find_library", lambda kind, report=None: library)
                made[name, options] = onnx_kit.backend(onnx_kit.exported(root / name, name, options)[1])
        return made[name, options]

    return get


def several(b):
    """Windows that differ in all a window can: length, tokens since the fold, tokens in the memory, a fold to be done, tokens still carried."""
    heard = b.commit(b.extend(tokens(1, 11, 1), b.start(1, None, W))[1])
    made = [b.extend(tokens(1, 13, 2), b.start(1, None, W))[1], b.extend(tokens(1, 5, 3), b.start(1, heard, W))[1]]
    made.append(b.extend(tokens(1, 3, 5), b.fold(b.extend(tokens(1, 12, 4), b.start(1, heard, W))[1]))[1])
    made.append(b.extend(tokens(1, 3, 6), b.start(1, heard, W, 7))[1])
    return made


def state(buffers, s=0):
    """What is filled of sequence s, by name."""
    length, folded = (int(buffers.ends[f"present_{n}"][s]) for n in ("length", "folded"))
    out = {name: [int(value[s])] for name, value in buffers.ends.items()}
    for name, tensor in buffers.tensors.items():
        array = tensor.numpy()[s]
        out[name] = array[:, :length] if name.startswith(("past_key", "past_value")) else array[:, : max(0, length - folded)] if name == "past_writes" else array
    return out


def same(a, b, name):
    """Whether two arrays are the same numbers, as far as cell `name` has them so."""
    return np.array_equal(a, b) if name != "gated-sliding" else np.abs(np.subtract(a, b)).max(initial=0) < 1e-5


@pytest.mark.parametrize("new", [0, 1, 3])
@pytest.mark.parametrize(("name", "options"), [*((name, Options()) for name in NAMES), ("gated-topics", Options(opset=23)), ("gated", Options("int4"))])
def test_each_sequence_of_a_run_is_what_it_is_alone(cells, name, options, new):
    """One call of three tokens for four sequences that differ in past_length, past_folded and past_written: logits and all that is filled afterwards."""
    b = cells(name, options)
    windows, ids = several(b), tokens(4, 3, 7)
    at = [(w.length, w.buffers.written, w.buffers.folded) for w in windows]
    every = b.start(4, None, W).buffers
    for s, window in enumerate(windows):
        for key, tensor in every.tensors.items():
            tensor.numpy()[s] = window.buffers.tensors[key].numpy()[0]

    def call(buffers, ids, at):
        for place, numbers in enumerate(at):
            for key, number in zip(("past_length", "past_written", "past_folded"), numbers, strict=True):
                buffers.numbers[key][place] = number
        buffers.numbers["new_chunk"][:], buffers.numbers["carry"][:], buffers.numbers["logits_from"][:] = new, 2, 0
        return onnx_together.run_bound(b.session, buffers._all, ids, b.config.vocab_size, True)

    got = call(every, ids, at)
    for s, window in enumerate(windows):
        assert same(call(window.buffers, ids[s : s + 1], at[s : s + 1])[0], got[s], name), s
        want, found = state(window.buffers), state(every, s)
        assert all(same(want[key], found[key], name) for key in want), s


def test_rows_of_another_that_has_more_are_seen(cells, tmp_path, monkeypatch):
    """Negative control: a sequence with fewer rows to enter takes one more."""
    right = Graph.op
    monkeypatch.setattr(Graph, "op", lambda self, kind, *given, **more: right(self, "LessOrEqual" if kind == "Less" else kind, *given, **more))
    b = onnx_kit.backend(onnx_kit.exported(tmp_path, "gated")[1])
    monkeypatch.undo()
    with pytest.raises(AssertionError):
        test_each_sequence_of_a_run_is_what_it_is_alone(lambda name, options: b, "gated", Options(), 3)


def drive(b, step):
    """Steps of windows that come and go, by `step(tokens, windows)`: everything that was given, and the memories in the end."""
    windows, given = several(b), []
    windows[2] = b.fold(windows[2])
    for n, chosen in enumerate([(0, 1), (3, 0, 2), (0, 1, 2, 3), (1,), (2, 1, 0), (3, 1), (0, 1, 2, 3)]):
        logits, longer = step([(5 * n + i) % 61 for i in chosen], [windows[i] for i in chosen])
        given.append(logits)
        for i, window in zip(chosen, longer, strict=True):
            windows[i] = window
        if n == 3:
            windows[0], windows[1] = b.rewind(windows[0], 14), b.fold(windows[1])
    return [*given, *(b.commit(window).bank for window in windows), *(b.extend(tokens(1, 2, 8), b.fold(window))[0] for window in windows)]


def alone(b):
    return lambda ids, windows: one_by_one(b, ids, windows)


@pytest.mark.parametrize("places", [2, 16])
@pytest.mark.parametrize(("name", "precision"), [("gated", "fp32"), ("gated", "int4"), ("gated-topics", "int8"), ("gated-sliding", "fp32")])
def test_stepped_together_is_stepped_alone(cells, name, precision, places, monkeypatch):
    """Windows come and go, fold and are taken back between steps; with 2 places they make room for each other as well."""
    monkeypatch.setattr(onnx_together, "PLACES", places)
    b = cells(name, Options(precision))
    b._together = onnx_together.Together(b.session, b._state, b.config.vocab_size)
    runs = []
    right = onnx_together.Places.run
    monkeypatch.setattr(onnx_together.Places, "run", lambda self, ids, *more: runs.append(len(ids)) or right(self, ids, *more))
    for got, want in zip(drive(b, b.step), drive(b, alone(b)), strict=True):
        assert same(got, want, name) and np.isfinite(got).all()
    assert sum(runs) == 16 and max(runs) == {2: 2, 16: 4}[places]


@pytest.mark.parametrize("fault", ["a position off by one", "another's cache", "a token that came first", "rows of another"])
def test_a_wrong_step_is_seen(cells, fault, monkeypatch):
    """Negative controls."""
    b, places = cells("gated"), onnx_together.Places
    b._together = onnx_together.Together(b.session, b._state, b.config.vocab_size)
    run, gather = places.run, places.gather
    if fault == "a position off by one":
        monkeypatch.setattr(places, "run", lambda self, ids, at, v: run(self, ids, [at[0]._replace(length=at[0].length - 1), *at[1:]], v))
    elif fault == "another's cache":
        monkeypatch.setattr(places, "gather", lambda self, wanted: gather(self, wanted)[::-1])
    elif fault == "a token that came first":
        monkeypatch.setattr(places, "run", lambda self, ids, at, v: run(self, ids[::-1].copy(), at, v))
    else:
        monkeypatch.setattr(places, "run", lambda self, ids, at, v: run(self, ids, [at[0]._replace(folded=at[0].folded + 1), *at[1:]], v))
    with pytest.raises((AssertionError, BackendError)):  # a place whose owner is another's is found out by its numbers as well
        for got, want in zip(drive(b, b.step), drive(b, alone(b)), strict=True):
            assert np.array_equal(got, want)


def test_a_step_refuses_what_extend_refuses(cells):
    b = cells("gated")
    windows = several(b)[:2]
    for ids, some, words in (
        ([61, 0], windows, "token ids must lie"),
        ([1, 1], [windows[0], b.extend(tokens(1, 11), windows[1])[1]], "17 tokens since the last fold"),
    ):
        with pytest.raises(BackendError, match=words):
            b.step(ids, some)


def test_places_go_with_their_windows(cells):
    """A place whose window is gone is taken by the next; what the others have stays."""
    b = cells("gated")
    b._together = onnx_together.Together(b.session, b._state, b.config.vocab_size)
    windows = several(b)[:2]
    b.step([1, 2], windows)
    (places,) = next(iter(b._together._sets.values()))
    kept = windows[1].buffers
    del windows[0]
    assert [places.owner(place) for place in range(3)] == [None, kept, None]
    b.step([1, 2], [several(b)[0], windows[0]])
    assert places.owner(1) is kept
