"""Static buffers behind the torch backend's contract, without graphs on the CPU: the same numbers as the plain backend, and who holds which buffers."""

import gc

import numpy as np
import pytest
import tiny
import torch
from compare import assert_close

from lm2.models.errors import BackendError
from lm2.models.weights import random_model
from lm2.runtime.backend import MemoryState
from lm2.runtime.backends import torch_static
from lm2.runtime.backends.torch_backend import TorchBackend


def pair(name):
    return TorchBackend(random_model(tiny.CELLS[name], 3)), TorchBackend(random_model(tiny.CELLS[name], 3), static=True)


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
    assert states[1].chunks == 4


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
    with pytest.raises(BackendError, match="cannot rewind a chunk of 9 tokens to 10"):
        static.rewind(chunk, 10)


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
    assert decoder._free[1] == [], "the longer chunk still holds them"
    del longer
    gc.collect()
    assert decoder._free[1] == [place]
    assert static.start(3).lease.slot is not place
    assert static.start().lease.slot is place
    many = [static.start() for _ in range(5)]
    del many
    gc.collect()
    assert len(decoder._free[1]) <= torch_static.KEPT


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
    assert static.describe().chunk_bytes == held


def test_where_it_is_used():
    model = random_model(tiny.config(), 0)
    assert not torch_static.suits(model) and TorchBackend(model)._static is None
    with pytest.raises(ValueError, match="gate_pool 'chunk'"):
        pair("released-chunk")[1].start()


@pytest.mark.gpu
@pytest.mark.parametrize("name", tiny.STREAMING)
def test_graphs_on_a_gpu(name):
    """The same as the first test, captured and replayed on a device against the CPU."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    plain, device = TorchBackend(random_model(tiny.CELLS[name], 3)), TorchBackend(random_model(tiny.CELLS[name], 3).cuda())
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
