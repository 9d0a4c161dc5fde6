"""What every cell must satisfy (docs/model properties), on MLX in float32 through the backend contract."""

import threading

import mlx_kit
import numpy as np
import pytest
import tiny
from compare import assert_close

mx = pytest.importorskip("mlx.core")
from lm2.lm2_mlx import llama  # noqa: E402

ATOL, RTOL = 2e-5, 1e-4
ALL = list(tiny.CELLS)


@pytest.fixture(scope="module")
def backends(tmp_path_factory):
    root = tmp_path_factory.mktemp("cells")
    return {name: mlx_kit.mlx(mlx_kit.folder(root / name, name)) for name in ALL}


@pytest.mark.parametrize("name", tiny.STREAMING)
def test_causality(backends, name):
    b = backends[name]
    length = b.config.memory.chunk
    ids, state = mlx_kit.tokens(b, 1, length), mlx_kit.written(b)
    base, _ = mlx_kit.run(b, ids, state)
    for t in (0, length // 2, length - 1):
        other = ids.copy()
        other[0, t] = (other[0, t] + 1) % b.config.vocab_size
        logits, _ = mlx_kit.run(b, other, state)
        assert_close(f"before {t}", logits[:, :t], base[:, :t], ATOL)
        assert np.abs(logits[:, t:] - base[:, t:]).max() > 1e-3


def test_chunk_pooling_sees_the_future(backends):
    b = backends["released-chunk"]
    ids = mlx_kit.tokens(b, 1, b.config.memory.chunk)
    other = ids.copy()
    other[0, -1] = (other[0, -1] + 1) % b.config.vocab_size
    assert np.abs(mlx_kit.run(b, other)[0][:, :-1] - mlx_kit.run(b, ids)[0][:, :-1]).max() > 1e-4


@pytest.mark.parametrize("name", ["gated", "released-causal"])
def test_split_of_64(tmp_path, name, monkeypatch):
    """One call of 64, 64 calls of 1, and 13 + 51; the block of queries on a CPU is crossed."""
    fields = dict(width=64, layers=2, vocab=50) if name == "released-causal" else dict(chunk=64, memory_layers=(0, 1), layers=2)
    b = mlx_kit.mlx(mlx_kit.folder(tmp_path / "m", name.split("-")[0], **fields))
    monkeypatch.setattr(llama.attend, "__defaults__", (16, *llama.attend.__defaults__[1:]))
    ids, state = mlx_kit.tokens(b, 2, 64), mlx_kit.written(b, 2, 2)
    want, chunk = mlx_kit.run(b, ids, state)
    bank = b.to_host(b.commit(chunk))
    for splits in (range(1, 64), (13,)):
        got, chunk = mlx_kit.run(b, ids, state, list(splits))
        assert_close("logits", got, want, 5e-5, RTOL)
        assert_close("bank", b.to_host(b.commit(chunk)), bank, ATOL, RTOL)


@pytest.mark.parametrize("name", ALL)
def test_pieces_give_the_whole(backends, name):
    """Any split: the last logits and the bank (with chunk pooling, earlier logits of a piece are of a shorter chunk)."""
    b = backends[name]
    length = b.config.memory.chunk
    ids, state = mlx_kit.tokens(b, 2, length), mlx_kit.written(b, 2)
    want, chunk = mlx_kit.run(b, ids, state)
    bank = b.to_host(b.commit(chunk))
    got, chunk = mlx_kit.run(b, ids, state, [3, 4, length - 2])
    assert_close("last logits", got[:, -1], want[:, -1], 5e-5, RTOL)
    assert_close("bank", b.to_host(b.commit(chunk)), bank, 5e-5, RTOL)


@pytest.mark.parametrize("name", ALL)
def test_zeroing_the_bank_changes_the_logits(backends, name):
    b = backends[name]
    ids, state = mlx_kit.tokens(b, 1, b.config.memory.chunk), mlx_kit.written(b)
    zero = b.from_host(np.zeros_like(b.to_host(state)), state.written)
    assert np.abs(mlx_kit.run(b, ids, state)[0] - mlx_kit.run(b, ids, zero)[0]).max() > 1e-3


def test_never_written_is_the_backbone(tmp_path):
    """A zero bank, cell gated: bit for bit the same model without a memory."""
    from dataclasses import replace

    from lm2.models.weights import random_model, save_folder

    with_memory, without = tiny.CELLS["gated"], replace(tiny.CELLS["gated"], memory=replace(tiny.CELLS["gated"].memory, layers=()))
    model = random_model(with_memory, seed=3)
    bare = random_model(without, seed=4)
    for name, p in bare.named_parameters():
        p.data.copy_(dict(model.named_parameters())[name].data)
    save_folder(model, tmp_path / "a")
    save_folder(bare, tmp_path / "b")
    a, b = mlx_kit.mlx(tmp_path / "a"), mlx_kit.mlx(tmp_path / "b")
    ids = mlx_kit.tokens(a, 2, 16)
    for splits in ((), range(1, 16)):
        assert np.array_equal(mlx_kit.run(a, ids, None, list(splits))[0], mlx_kit.run(b, ids, None, list(splits))[0])


@pytest.mark.parametrize("name", ALL)
def test_batch_rows_are_independent(backends, name):
    b = backends[name]
    ids = mlx_kit.tokens(b, 3, b.config.memory.chunk)
    together, chunk = mlx_kit.run(b, ids, mlx_kit.written(b, 3))
    bank = b.to_host(b.commit(chunk))
    state = mlx_kit.written(b, 3)
    alone = b.from_host(b.to_host(state)[:, 1:2], state.written)
    logits, chunk = mlx_kit.run(b, ids[1:2], alone)
    assert_close("logits", logits, together[1:2], 5e-5, RTOL)
    assert_close("bank", b.to_host(b.commit(chunk)), bank[:, 1:2], 5e-5, RTOL)


@pytest.mark.parametrize("name", ALL)
def test_rewind_and_partial_commit(backends, name):
    """An older chunk stays good; a partial chunk commits its rows only; an empty one changes nothing."""
    b = backends[name]
    ids, state = mlx_kit.tokens(b, 2, 9), mlx_kit.written(b, 2)
    before = b.to_host(state)
    _, short = mlx_kit.run(b, ids[:, :6], state)
    partial = b.to_host(b.commit(short))
    last, longer = b.extend(ids[:, 6:], short)
    assert longer.length == 9 and short.length == 6
    back = b.rewind(longer, 6)
    assert_close("bank after rewinding", b.to_host(b.commit(back)), partial, 1e-6)
    again, _ = b.extend(ids[:, 6:], back)
    assert_close("logits after rewinding", again, last, 1e-6)
    rows = np.abs(partial - before).max(axis=(0, 1, 3)) > 0  # (n,)
    first = b.model.first_row(state.written)
    assert rows[first : first + 6].all() and rows.sum() == 6
    assert np.array_equal(b.to_host(b.commit(b.rewind(longer, 0))), before)
    assert np.array_equal(b.to_host(state), before), "a state must not change under a chunk"


def test_banks_of_four_chunks_take_turns(backends):
    b = backends["gated-4T"]
    state, length = None, b.config.memory.chunk
    for c in range(6):
        before = np.zeros(b.config.bank_shape()) if state is None else b.to_host(state)
        state = b.commit(mlx_kit.run(b, mlx_kit.tokens(b, 1, length, c), state)[1])
        changed = np.abs(b.to_host(state) - before).max(axis=(0, 1, 3)) > 0
        assert list(np.flatnonzero(changed)) == list(range(c % 4 * length, c % 4 * length + length))


def test_another_thread_goes_on(backends):
    """A server hands a conversation from thread to thread: steps of one token and of several, compiled or not."""
    b = backends["gated"]
    ids, state = mlx_kit.tokens(b, 1, 8), mlx_kit.written(b)
    want, _ = mlx_kit.run(b, ids, state, [4, 5, 6, 7])
    _, chunk = b.extend(ids[:, :4], b.start(1, state))
    got = []

    def work():
        c = chunk
        for t in range(4, 8):
            logits, c = b.extend(ids[:, t : t + 1], c)
            got.append(logits)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(got) == 4
    assert_close("logits", np.stack(got, 1), want[:, 4:], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gated", "released-causal"])
def test_nothing_grows(tmp_path, name):
    """1,000 chunks: the same bytes held by MLX after the last as after the first ten, and a flat process."""
    import psutil

    fields = dict(width=16, layers=2) if name == "released-causal" else dict(chunk=4, layers=2, memory_layers=(0, 1))
    b = mlx_kit.mlx(mlx_kit.folder(tmp_path / "m", name.split("-")[0], **fields))
    ids, state, seen = mlx_kit.tokens(b, 1, 4), None, []
    for c in range(1000):
        chunk = b.start(1, state)
        _, chunk = b.extend(ids[:, :3], chunk)
        _, chunk = b.extend(ids[:, 3:], chunk)
        state = b.commit(chunk)
        del chunk
        if c in (9, 199, 999):
            seen.append((mx.get_active_memory(), psutil.Process().memory_info().rss))
    print(seen)
    assert seen[2][0] == seen[0][0], "bytes held by MLX"
    assert seen[2][1] - seen[1][1] < 4 << 20, "resident bytes"
