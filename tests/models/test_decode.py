"""The decode step on static buffers against LM2.extend, token by token: what a CUDA graph replays is this function, run here eagerly on the CPU."""

import pytest
import tiny
import torch
from compare import assert_close

from lm2.models import decode
from lm2.models.kernels.attention import decode_attention, plain_attention
from lm2.models.weights import new_model, random_model

EXACT = 1e-11


def make(name, dtype=torch.float64, seed=3):
    config = tiny.CELLS[name] if name in tiny.CELLS else tiny.config(rows=2, backbone=tiny.BACKBONES[name])
    return random_model(config, seed=seed, dtype=dtype)


def tokens(model, batch, length, seed=5):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.config.vocab_size, (batch, length), generator=g)  # (b, t)


def feed(model, buffers, ids, positions, tables, rows=None):
    """One step: ids (b,) at positions (b,), writing `rows` (b,), by default those of the same numbers. Returns logits (b, v)."""
    positions = torch.as_tensor(positions).expand(len(ids))
    buffers.inputs.copy_(torch.cat((ids, positions, positions if rows is None else torch.as_tensor(rows).expand(len(ids)))))
    decode.step(model, buffers, tables)
    return buffers.logits.clone()


def poisoned(model, batch):
    """Buffers of an earlier conversation that went wrong: nothing of it may be seen."""
    buffers = decode.new_buffers(model, batch)
    for buffer in buffers:
        if buffer.is_floating_point():
            buffer.fill_(float("nan"))
    if len(buffers.sums):
        buffers.sums[:, :, 0] = 0
    return buffers


def both(model, batch, lengths, buffers, prefill=0):
    """Chunks of `lengths` tokens, by extend and by steps; `prefill` tokens of each chunk go into the buffers through extend. Compares everything."""
    tables, bank, other, chunks = model.tables(), model.initial_bank(batch), model.initial_bank(batch), 0
    for c, length in enumerate(lengths):
        ids = tokens(model, batch, length, 40 + c)
        reference, static = model.start(bank, chunks), decode.begin(model, buffers, other, chunks)
        head = min(prefill, length - 1)
        if head:
            _, reference = model.extend(ids[:, :head], reference, tables)
            _, static = model.extend(ids[:, :head], static, tables)
        for t in range(head, length):
            want, reference = model.extend(ids[:, t : t + 1], reference, tables)
            got = feed(model, buffers, ids[:, t], t, tables)
            assert_close(f"chunk {c} token {t}", got, want[:, 0], EXACT)
        bank, _ = model.commit(reference)
        other, chunks = model.commit(static._replace(length=length))
        assert_close(f"bank after chunk {c}", other, bank, EXACT)
    assert not torch.equal(bank, model.initial_bank(batch))


@torch.inference_mode()
@pytest.mark.parametrize("name", tiny.STREAMING)
def test_steps_equal_extend(name):
    """Batch 3 over chunk borders, with a partial chunk, through all blocks of a bank of 4 T rows; buffers used again, and poisoned before."""
    model = make(name)
    full = model.config.memory.chunk
    both(model, 3, (full, 5, full, 1, 3, 2), poisoned(model, 3))


@torch.inference_mode()
@pytest.mark.parametrize("name", tiny.BACKBONES)
def test_steps_of_other_decoders_equal_extend(name):
    model = make(name)
    both(model, 2, (model.config.memory.chunk, 7), poisoned(model, 2), prefill=6)


@torch.inference_mode()
@pytest.mark.parametrize("fault", ["layers that turn", "norms of q and k", "norm after attention", "window", "window of one more", "window of one less"])
def test_steps_of_another_decoder_are_noticed(fault, monkeypatch):
    name = "norms of heads" if fault == "layers that turn" else "windows" if "window" in fault else "norms after"
    model = make(name)
    for block in model.blocks:
        if "window" in fault:
            wide = block.self_attn.window
            block.self_attn.window = wide and {"window": None, "window of one more": wide + 1, "window of one less": wide - 1}[fault]
            continue
        if fault == "layers that turn":
            block.self_attn.turns = 0
        elif fault == "norms of q and k":
            monkeypatch.setattr(block.self_attn, "project", block.self_attn.qkv_proj.forward)
        else:
            monkeypatch.setattr(block.self_attn, "output", block.self_attn.o_proj.forward)
    reference, count = make(name), 8
    buffers, ids, tables = poisoned(model, 1), tokens(model, 1, count), model.tables()
    decode.begin(model, buffers, model.initial_bank(), 0)
    want, _ = reference.extend(ids, reference.start(reference.initial_bank()), tables)
    got = [feed(model, buffers, ids[:, t], t, tables) for t in range(count)][-1]
    assert (got - want[:, 0]).abs().max() > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("name", tiny.STREAMING)
def test_steps_after_a_prefill(name):
    model = make(name)
    both(model, 2, (model.config.memory.chunk, 7, 9), poisoned(model, 2), prefill=6)


@torch.inference_mode()
@pytest.mark.parametrize("name", tiny.STREAMING)
def test_rewinding_is_feeding_at_an_earlier_position(name):
    model = make(name)
    tables, buffers, ids = model.tables(), decode.new_buffers(model, 1), tokens(model, 1, 8)
    bank = model(tokens(model, 1, model.config.memory.chunk, 1), model.initial_bank())[1]
    decode.begin(model, buffers, bank, model.config.memory.chunk)
    for t in range(8):
        feed(model, buffers, ids[:, t], t, tables)
    for t in (3, 4):
        got = feed(model, buffers, ids[:, t] * 0 + t, t, tables)
    chunk = model.start(bank, model.config.memory.chunk)
    _, chunk = model.extend(ids[:, :3], chunk, tables)
    want, _ = model.extend(torch.tensor([[3, 4]]), chunk, tables)
    assert_close("after rewinding", got, want[:, 0], EXACT)


@torch.inference_mode()
@pytest.mark.parametrize("name", tiny.STREAMING)
def test_separate_sessions_in_one_batch(name):
    """Three sessions with banks, lengths and numbers of chunks of their own, adopted into one batch and stepped together at their own positions."""
    model, tables = make(name), make(name).tables()
    full = model.config.memory.chunk
    buffers, sessions = poisoned(model, 3), []
    decode.begin(model, buffers, model.initial_bank(3), 0)
    for s, (past, length) in enumerate(((0, 4), (1, full - 3), (2, 1))):
        bank, chunks = model.initial_bank(), 0
        for c in range(past):
            bank, chunks = model(tokens(model, 1, full, 70 + 10 * s + c), bank, c * full)[1], (c + 1) * full
        _, chunk = model.extend(tokens(model, 1, length, s), model.start(bank, chunks), tables)
        decode.adopt(model, buffers, s, chunk)
        sessions.append(chunk)
    for t in range(3):
        ids = tokens(model, 3, 1, 90 + t)[:, 0]
        got = feed(model, buffers, ids, torch.tensor([c.length for c in sessions]), tables)
        for s in range(3):
            want, sessions[s] = model.extend(ids[s].view(1, 1), sessions[s], tables)
            assert_close(f"session {s} token {t}", got[s], want[0, 0], EXACT)
    for s in range(3):
        rows = model.rows(sessions[s])[:, 0]
        assert_close(f"rows of session {s}", buffers.rows[:, s, : sessions[s].length], rows, EXACT)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["gated", "gated-4T"])
def test_a_memory_that_was_never_written_adds_nothing_in_the_step(name):
    """Bit for bit, although the step always reads the bank."""
    model = make(name, torch.float32)
    ids, out = tokens(model, 2, 6), []
    for scale in (1.0, 0.0):
        for block in model.blocks:
            if block.memory is not None:
                block.memory.o_proj.weight.mul_(scale)
        buffers = decode.new_buffers(model, 2)
        decode.begin(model, buffers, model.initial_bank(2), 0)
        out.append(torch.stack([feed(model, buffers, ids[:, t], t, model.tables()) for t in range(6)]))
    assert torch.equal(*out)


@torch.inference_mode()
@pytest.mark.parametrize("fault", ["gates swapped", "position", "stale bank", "rows shifted"])
def test_a_wrong_step_is_noticed(fault, monkeypatch):
    """Each of these is a plausible mistake; none may pass the comparison above."""
    model, begin, right = make("gated"), decode.begin, decode.gated_memory_step
    if fault == "gates swapped":
        monkeypatch.setattr(
            decode, "gated_memory_step", lambda token, gates, *rest: right(token, gates.roll(gates.shape[-1] // 2, -1), *rest)
        )
    elif fault == "position":
        wrong = lambda q, k, v, n=None, looks=None, window=None: plain_attention(q, k, v, None if n is None else n.clamp(max=3))  # noqa: E731
        monkeypatch.setattr(decode, "decode_attention", wrong)
    elif fault == "stale bank":
        monkeypatch.setattr(decode, "begin", lambda m, b, bank, chunks: begin(m, b, bank * 0, chunks)._replace(bank=bank))
    else:
        monkeypatch.setattr(decode, "begin", lambda m, b, bank, chunks: begin(m, b, bank.roll(1, 2), chunks)._replace(bank=bank))
    with pytest.raises(AssertionError):
        both(model, 1, (6, 6), decode.new_buffers(model, 1))


@pytest.mark.parametrize("window", [None, 1, 4, 9, 20])
@pytest.mark.parametrize("length", [None, torch.tensor([7, 3])])
def test_attention_with_a_term_of_its_logits(length, window):
    g = torch.Generator().manual_seed(1)
    q, k, v, looks = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((2, 4, 8), (2, 2, 9, 8), (2, 2, 9, 8), (2, 9)))
    logits = torch.einsum("bhe,bhse->bhs", q, k.repeat_interleave(2, 1)) / 8**0.5 + looks[:, None]  # (b, h, s)
    for row, end in enumerate([9, 9] if length is None else length.tolist()):
        logits[row, :, end:] = -torch.inf
        logits[row, :, : max(0, end - (window or 9))] = -torch.inf
    want = torch.einsum("bhs,bhse->bhe", logits.softmax(-1), v.repeat_interleave(2, 1))  # (b, h, e)
    assert_close("attention", decode_attention(q, k, v, length, looks, window), want, EXACT)


def test_the_cell_without_a_step_is_refused():
    with pytest.raises(ValueError, match="gate_pool 'chunk' re-runs its chunk"):
        decode.new_buffers(make("released-chunk"), 1)


@torch.inference_mode()
@pytest.mark.parametrize("name", tiny.STREAMING)
def test_a_step_never_looks_at_numbers_on_the_host(name):
    """What a graph needs. Tensors on the meta device have no numbers: reading one, or a shape that depends on one, is an error."""
    model = new_model(tiny.CELLS[name], "meta")
    buffers = decode.new_buffers(model, 2)
    before = list(map(id, buffers))
    decode.begin(model, buffers, model.initial_bank(2), 0)
    decode.step(model, buffers, model.tables())
    assert before == list(map(id, buffers))
    with pytest.raises(RuntimeError, match="meta"):
        bool(buffers.logits.any())
