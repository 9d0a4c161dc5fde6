"""One token of each of several windows in one pass against LM2.extend on each alone; and what is refused."""

import pytest
import tiny
import torch
from compare import assert_close

from lm2.models import together
from lm2.models.weights import random_model
from lm2.runtime.backends.torch_backend import TorchBackend

EXACT = 1e-11
GATED = [name for name in (*tiny.CELLS, *tiny.ALONE) if name.startswith("gated")]
WINDOW = 44


def make(name, dtype=torch.float64):
    config = (tiny.CELLS | tiny.ALONE).get(name) or tiny.config(rows=2, backbone=tiny.BACKBONES[name])
    return random_model(config, seed=3, dtype=dtype)


def tokens(model, count, seed):
    return torch.randint(0, model.config.vocab_size, (count,), generator=torch.Generator().manual_seed(seed))  # (t,)


def begun(model):
    """Windows at lengths of their own: a memory never written and one that was, carried tokens left to be fed, one folded in its middle, one about to be."""
    tables, chunk, states = model.tables(WINDOW), model.config.memory.chunk, []
    for w, (past, carried, folds, length) in enumerate(((0, 0, (), 2), (3, 0, (), chunk - 3), (1, 9, (), 4), (2, 0, (5, 14), 21), (0, 0, (7,), 8), (5, 3, (), 9))):
        bank, written = model.initial_bank(), 0
        for c in range(past):
            bank, written = model(tokens(model, chunk, 70 + 10 * w + c)[None], bank, written)[1], written + chunk
        state, ids = model.start(bank, written, WINDOW, carried), tokens(model, length, w)
        for begin, end in zip((0, *folds), (*folds, length), strict=True):
            _, state = model.extend(ids[None, begin:end], state, tables)
            state = model.fold(state) if end in folds else state
        states.append(state)
    return states, tables


def both(model, states, alone, tables, rounds=8):
    """Steps of all states beside extends of each alone, folded where a chunk is full, once in the middle; compares logits, rows and what is in the window."""
    for t in range(rounds):
        ids = tokens(model, len(states), 90 + t)
        got, states = together.step(model, ids, states, tables)
        for w, state in enumerate(alone):
            want, alone[w] = model.extend(ids[w].view(1, 1), state, tables)
            assert_close(f"window {w} token {t}", got[w], want[0, 0], EXACT)
            if alone[w].length - alone[w].folded == model.config.memory.chunk or (t, w) == (5, 1):
                states[w], alone[w] = model.fold(states[w]), model.fold(alone[w])
    for w, (state, other) in enumerate(zip(states, alone, strict=True)):
        assert (state.length, state.folded, state.written) == (other.length, other.folded, other.written)
        assert_close(f"bank of {w}", model.commit(state)[0], model.commit(other)[0], EXACT)
        s = state.length
        assert_close(f"keys of {w}", state.keys[:, :, :, :s], other.keys[:, :, :, :s], EXACT)


@torch.inference_mode()
@pytest.mark.parametrize("name", [*GATED, *tiny.BACKBONES])
def test_each_is_what_it_is_alone(name):
    model = make(name)
    (states, tables), (alone, _) = begun(model), begun(model)
    both(model, states, alone, tables)


CONTROLS = {
    "keys of another": lambda a, b: a._replace(keys=b.keys, values=b.values),
    "bank of another": lambda a, b: a._replace(bank=b.bank, inside=a.inside._replace(reads=b.inside.reads)),
    "rows to another": lambda a, b: a._replace(inside=a.inside._replace(writes=b.inside.writes)),
    "a position too far": lambda a, b: a._replace(length=a.length + 1),
    "other rows of the bank": lambda a, b: a._replace(written=a.written + 1),
    "what is near another's rows": lambda a, b: a._replace(inside=a.inside._replace(around=b.inside.around)),
}


@torch.inference_mode()
@pytest.mark.parametrize("fault", CONTROLS)
def test_a_window_that_is_mixed_up_is_seen(fault):
    model = make("gated-topics")
    (states, tables), (alone, _) = begun(model), begun(model)
    states[1] = CONTROLS[fault](states[1], states[3])
    with pytest.raises(AssertionError, match="(window|bank of|keys of) 1"):
        both(model, states, alone, tables)


@torch.inference_mode()
def test_what_cannot_be_stepped():
    model = make("gated")
    states, tables = begun(model)
    full = states[1]._replace(length=states[1].folded + model.config.memory.chunk)
    for some, words in (([], "one at least"), ([states[0], full], "fold first"), ([states[0]._replace(length=WINDOW), states[1]], "do not fit in a window")):
        with pytest.raises(ValueError, match=words):
            together.step(model, tokens(model, len(some), 1), some, tables)
    other = make("released-causal")
    with pytest.raises(ValueError, match="cell gated"):
        together.step(other, tokens(other, 1, 1), [other.start(other.initial_bank())], other.tables())


@pytest.mark.parametrize(("name", "static"), [("gated-4T", False), ("gated-4T", True), ("released-causal", False), ("released-chunk", False)])
def test_the_backend_steps_every_kind_of_window(name, static):
    """Together where it can, else one by one; windows that were passed in are as good as before."""
    backend, ids = TorchBackend(make(name), static=static), [tokens(make(name), length, length).tolist() for length in (3, 7, 5)]
    windows = [backend.extend(some, backend.start())[1] for some in ids]
    got, longer = backend.step([4, 5, 6], windows)
    again, _ = backend.step([4, 5, 6], windows)
    for w, token in enumerate((4, 5, 6)):
        want, other = backend.extend([token], backend.extend(ids[w], backend.start())[1])
        assert_close(f"window {w}", got[w], want[0], 1e-6)
        assert_close(f"window {w} again", again[w], want[0], 1e-6)
        assert longer[w].length == other.length == len(ids[w]) + 1
