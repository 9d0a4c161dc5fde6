"""Windows on a memory that nothing was ever written in: nothing of it is read, and they are, bit for bit, what a window is that reads its zeros."""

import numpy as np
import onnx_kit
import pytest
import tiny
from onnx_window_kit import W, tokens

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from lm2.export.options import Options
from lm2.models.opening import Opening
from lm2.runtime.backend import MemoryState

NAMES = [name for name in tiny.CELLS | tiny.ALONE if name.startswith("gated")]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """name, options -> an onnx backend; made when first asked for."""
    root, made = tmp_path_factory.mktemp("unwritten"), {}

    def get(name, options=Options()):
        if (name, options) not in made:
            made[name, options] = onnx_kit.backend(onnx_kit.exported(root / name, name, options)[1])
        return made[name, options]

    return get


def talk(b, window):
    """Everything a conversation comes to that begins so: logits of a prompt in two calls, of tokens after a fold; the memory, and its rows."""
    out = []
    for ids in (tokens(1, 9, 1), tokens(1, 4, 2)):
        logits, window = b.extend(ids, window, all_logits=True)
        out.append(logits)
    for n in (3, 4):
        window = b.fold(window)
        logits, window = b.extend(tokens(1, 3, n), window, all_logits=True)
        out += [logits, b.rows(window, 0, 8), b.memory(window).bank]
    return [*out, b.commit(window).bank]


def read_anew(b):
    """A memory of zeros that the backend does not know to be unwritten."""
    return MemoryState(np.array(b.memory(b.start(1, None, W)).bank), 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_window_of_a_new_conversation_is_what_one_is_that_reads_zeros(cells, name):
    b = cells(name)
    fresh, known = b.start(1, None, W), b.start(1, read_anew(b), W)
    assert fresh.buffers.blank == (b.config.memory.init == "zeros") and not known.buffers.blank
    for got, want in zip(talk(b, fresh), talk(b, known), strict=True):
        assert np.array_equal(got, want)
    assert not fresh.buffers.blank


@pytest.mark.parametrize("options", [Options(portable=True), Options(plain=True)], ids=["portable", "plain"])
def test_so_it_is_in_other_files(cells, options):
    b = cells("gated", options)
    for got, want in zip(talk(b, b.start(1, None, W)), talk(b, b.start(1, read_anew(b), W)), strict=True):
        assert np.array_equal(got, want)


def test_carried_tokens_and_an_opening(cells):
    b = cells("gated")
    c = b.config
    layers = np.random.default_rng(3).standard_normal((2, c.num_hidden_layers, c.num_key_value_heads, 5, c.head_dim)).astype(np.float32)
    opening = Opening(*layers)
    for carried, given in ((7, None), (5, opening), (9, opening)):
        windows = b.start(1, None, W, carried, given), b.start(1, read_anew(b), W, carried, given)
        for got, want in zip(*(talk(b, window) for window in windows), strict=True):
            assert np.array_equal(got, want)


def test_a_memory_that_was_written_is_read(cells):
    """The control: what is left out above makes a difference elsewhere."""
    b = cells("gated")
    heard = b.commit(b.extend(tokens(1, 11, 7), b.start(1, None, W))[1])
    assert not np.array_equal(talk(b, b.start(1, None, W))[0], talk(b, b.start(1, heard, W))[0])


def test_the_memory_of_new_conversations_cannot_be_written_by_accident(cells):
    b = cells("gated")
    with pytest.raises(ValueError, match="read-only"):
        b.memory(b.start(1, None, W)).bank[0, 0, 0, 0] = 1.0
