"""Static buffers behind the torch backend's contract, without graphs on the CPU: the same numbers as the plain backend, and who holds which buffers."""

import gc

import numpy as np
import pytest
import tiny
import torch
from compare import assert_close
from window_kit import SCRIPTS, Script, on_backend

from lm2.models.errors import BackendError
from lm2.models.weights import random_model
from lm2.runtime.backend import MemoryState
from lm2.runtime.backends import torch_static
from lm2.runtime.backends.torch_backend import TorchBackend

EVERY = tiny.CELLS | tiny.ALONE


def pair(name):
    return TorchBackend(random_model(EVERY[name], 3)), TorchBackend(random_model(EVERY[name], 3), static=True)


def ids_for(config, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape)


@pytest.mark.parametrize("name", tiny.STREAMING)
def test_the_same_numbers_however_tokens_are_split(name):
    plain, static = pair(name)
    full, states = plain.config.memory.chunk, [None, None]
    for c, split in enumerate(([full], [1] * full, [3, 1, 1, full - 6], [5, 1, 1])):
        chunks = [b.start(2, s) for b, s in zip((plain, static), states, strict=True)]
        ids, at = ids_for(plain.config, 2, full, seed=c), 0
        for size in split:
            piece, at = ids[:, at : at + size], at + size
            (want, chunks[0]), (got, chunks[1]) = (
                b.extend(piece, k, all_logits=c == 2) for b, k in zip((plain, static), chunks, strict=True)
            )
            assert got.dtype == np.float32 and chunks[1].length == at
            assert_close(f"chunk {c} at {at}", got, want, 1e-5, 1e-4)
        states = [b.commit(k) for b, k in zip((plain, static), chunks, strict=True)]
        assert_close(f"bank {c}", static.to_host(states[1]), plain.to_host(states[0]), 1e-5, 1e-4)
    assert states[1].written == states[0].written == 3 * full - 1 + 7


@pytest.mark.parametrize("name", tiny.STREAMING)
def test_rewinding(name):
    _, static = pair(name)
    ids = ids_for(static.config, 9)
    _, chunk = static.extend(ids, static.start())
    first, longer = static.extend(ids[4:5], static.rewind(chunk, 4))
    static.extend(ids[5:6] + 1, longer)
    again, longer = static.extend(ids[4:5], static.rewind(chunk, 4))
    assert np.array_equal(first, again) and longer.length == 5
    bank = static.to_host(static.commit(static.rewind(chunk, 3)))
    assert_close("bank", bank, static.to_host(static.commit(static.extend(ids[:3], static.start())[1])), 1e-6)
    with pytest.raises(BackendError, match="cannot rewind a window of 9 tokens to 10"):
        static.rewind(chunk, 10)


GATED = [name for name in tiny.STREAMING if name.startswith("gated")] + ["gated-sliding"]


def memory_of(backend, count, extra):
    """A memory of some whole chunks, with the pointer `extra` rows further."""
    state = None
    for c in range(count):
        ids = ids_for(backend.config, 2, backend.config.memory.chunk, seed=20 + c)
        state = backend.commit(backend.extend(ids, backend.start(2, state))[1])
    return None if state is None else state._replace(written=state.written + extra)


@pytest.mark.parametrize("what", SCRIPTS)
@pytest.mark.parametrize("name", GATED)
def test_windows_with_folds_and_carried_tokens(name, what):
    """The scripts of tests/window_kit.py behind the contract: whole pieces, single tokens, and a mixture."""
    plain, static = pair(name)
    folds, carried, length = SCRIPTS[what]
    state = memory_of(plain, 3 if carried else 0, 5)
    script = Script(torch.as_tensor(ids_for(plain.config, 2, length, seed=4)), folds, carried)
    want = on_backend(plain, state, script, 48)
    for split in (None, 1, 3):
        got = on_backend(static, state, script, 48, split)
        assert_close(f"logits {split}", got[0], want[0], 1e-5, 1e-4)
        assert len(got[1]) == len(want[1]) and got[2] == want[2]
        for i, (mine, theirs) in enumerate(zip(got[1], want[1], strict=True)):
            assert_close(f"bank {i} {split}", mine, theirs, 1e-5, 1e-4)


def test_a_fold_makes_what_was_before_it_stale():
    plain, static = pair("gated")
    _, older = static.extend([1, 2, 3], static.start(1, None, 40))
    again = static.rewind(older, 2)
    assert not older.stale and static.fold(static.start(1, None, 40)).folded == 0
    folded = static.fold(older)
    assert older.stale and again.stale and not folded.stale and folded.folded == 3 and static.fold(folded) is not None
    assert static.memory(folded).written == 3 and static.memory(older).written == 0
    with pytest.raises(BackendError, match="cannot rewind to 2: the window's first 3 tokens are in the memory"):
        static.rewind(folded, 2)
    other = static.start(1, None, 40)
    assert not other.stale, "another conversation's buffers are its own"
    _, unfolded = plain.extend([1, 2, 3], plain.start(1, None, 40))
    plain.fold(unfolded)
    assert not unfolded.stale, "the plain backend keeps both"


def test_stale_buffers_would_give_other_numbers():
    """Negative control: feeding a stale window is not what a fresh run of its tokens gives."""
    _, static = pair("gated-4T")
    ids = ids_for(static.config, 2, 6, seed=4)
    _, older = static.extend(ids, static.start(2, memory_of(static, 2, 0), 40))
    static.fold(older)
    got, _ = static.extend(ids[:, :1], older)
    want, _ = static.extend(ids[:, :1], static.extend(ids, static.start(2, memory_of(static, 2, 0), 40))[1])
    assert older.stale and np.abs(got - want).max() > 1e-3


def test_logits_belong_to_the_caller():
    _, static = pair("gated")
    one, chunk = static.extend([1], static.start())
    kept = one.copy()
    static.extend([2], chunk)
    assert np.array_equal(one, kept)


def test_two_sessions_do_not_share_buffers_and_a_dropped_one_gives_them_back():
    _, static = pair("gated")
    decoder = static._static
    a, b = static.start(), static.start()
    assert a.lease.slot is not b.lease.slot
    place = a.lease.slot
    _, longer = static.extend([1, 2], a)
    del a
    gc.collect()
    assert decoder._free[1, 16] == [], "the longer chunk still holds them"
    del longer
    gc.collect()
    assert decoder._free[1, 16] == [place]
    assert static.start(3).lease.slot is not place
    assert static.start(1, None, 40).lease.slot is not place, "windows of another size have buffers of their own"
    assert static.start().lease.slot is place
    many = [static.start() for _ in range(5)]
    del many
    gc.collect()
    assert len(decoder._free[1, 16]) <= torch_static.KEPT


def test_nothing_of_an_earlier_conversation_is_seen():
    """The buffers of a conversation that ended in NaN serve the next one."""
    plain, static = pair("gated")
    bad = MemoryState(torch.full(static.config.bank_shape(), float("nan")), 1)
    logits, chunk = static.extend([1], static.extend(ids_for(static.config, 15), static.start(1, bad))[1])
    assert np.isnan(logits).all()
    slot = chunk.lease.slot
    del chunk
    gc.collect()
    chunk, want = static.start(), plain.start()
    assert chunk.lease.slot is slot
    for token in (3, 1, 4):
        got, chunk = static.extend([token], chunk)
        ref, want = plain.extend([token], want)
        assert_close("logits", got, ref, 1e-5, 1e-4)


@pytest.mark.parametrize("name", tiny.STREAMING)
def test_described_bytes_are_the_bytes_held(name):
    _, static = pair(name)
    chunk = static.start()
    held = sum(x.numel() * x.element_size() for x in chunk.lease.slot.buffers)
    assert static.describe().window_bytes == held


def test_where_it_is_used():
    model = random_model(tiny.config(), 0)
    assert not torch_static.suits(model) and TorchBackend(model)._static is None
    with pytest.raises(ValueError, match="gate_pool 'chunk'"):
        pair("released-chunk")[1].start()


@pytest.mark.gpu
@pytest.mark.parametrize("what", SCRIPTS)
@pytest.mark.parametrize("name", GATED)
def test_windows_on_a_gpu(name, what):
    """Folds and carried tokens in buffers with a captured graph, token by token and in a mixture, against the CPU."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    plain, device = TorchBackend(random_model(EVERY[name], 3)), TorchBackend(random_model(EVERY[name], 3).cuda())
    folds, carried, length = SCRIPTS[what]
    state = memory_of(plain, 3 if carried else 0, 5)
    script = Script(torch.as_tensor(ids_for(plain.config, 2, length, seed=4)), folds, carried)
    want = on_backend(plain, state, script, 48)
    for split in (1, 3):
        there = None if state is None else device.from_host(plain.to_host(state), state.written)
        got = on_backend(device, there, script, 48, split)
        assert_close(f"logits {split}", got[0], want[0], 1e-5, 1e-4)
        for i, (mine, theirs) in enumerate(zip(got[1], want[1], strict=True)):
            assert_close(f"bank {i} {split}", mine, theirs, 1e-5, 1e-4)
        assert got[2] == want[2] and got[3].lease.slot.graph is not None


@pytest.mark.gpu
@pytest.mark.parametrize("name", tiny.STREAMING)
def test_graphs_on_a_gpu(name):
    """The same as the first test, captured and replayed on a device against the CPU."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    plain, device = TorchBackend(random_model(EVERY[name], 3)), TorchBackend(random_model(EVERY[name], 3).cuda())
    states = [None, None]
    for c in range(6):
        chunks = [b.start(2, s) for b, s in zip((plain, device), states, strict=True)]
        ids = ids_for(plain.config, 2, plain.config.memory.chunk, seed=c)
        for at in range(0, ids.shape[1], 1 if c else 5):
            piece = ids[:, at : at + (1 if c else 5)]
            (want, chunks[0]), (got, chunks[1]) = (b.extend(piece, k) for b, k in zip((plain, device), chunks, strict=True))
            assert_close(f"chunk {c} at {at}", got, want, 1e-5, 1e-4)
        states = [b.commit(k) for b, k in zip((plain, device), chunks, strict=True)]
        assert_close(f"bank {c}", device.to_host(states[1]), plain.to_host(states[0]), 1e-5, 1e-4)
    assert chunks[1].lease.slot.graph is not None
