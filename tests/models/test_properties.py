"""What every cell must satisfy (the property list of the design), on random weights in float64, so that logic is separated from rounding."""

import pytest
import tiny
import torch
from compare import assert_close, nmse, relative_l2

from lm2.models.config import LM2Config
from lm2.models.errors import ConfigError
from lm2.models.llama import wide
from lm2.models.weights import random_model, slots_of

ALL = list(tiny.CELLS)
EXACT = 1e-11


def make(name, dtype=torch.float64, seed=3):
    return random_model(tiny.CELLS[name], seed=seed, dtype=dtype)


def tokens(model, batch, length, seed=5):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.config.vocab_size, (batch, length), generator=g)  # (b, t)


def run(model, chunk, ids, split):
    """Feed ids in pieces; logits of all positions (b, t, v) and the chunk."""
    out = []
    for piece in ids.split(split, dim=1):
        logits, chunk = model.extend(piece, chunk, model.tables(), all_logits=True)
        out.append(logits)
    return torch.cat(out, dim=1), chunk


def at(model, chunks=5):
    """Tokens in a bank after whole chunks."""
    return chunks * model.config.memory.chunk


def written(model, batch=1, chunks=5, seed=9):
    """A bank after some chunks of random tokens, (l, b, n, d)."""
    bank = model.initial_bank(batch)
    for c in range(chunks):
        _, bank = model(tokens(model, batch, model.config.memory.chunk, seed + c), bank, c * model.config.memory.chunk)
    return bank


@torch.inference_mode()
@pytest.mark.parametrize("name", tiny.STREAMING)
def test_causality(name):
    model = make(name)
    length = model.config.memory.chunk
    ids, bank = tokens(model, 1, length), written(model)
    base, _ = model(ids, bank, at(model))
    for t in (0, 1, length // 2, length - 1):
        other = ids.clone()
        other[0, t] = (other[0, t] + 1) % model.config.vocab_size
        logits, _ = model(other, bank, at(model))
        assert_close(f"before {t}", logits[:, :t], base[:, :t], EXACT)
        assert (logits[:, t:] - base[:, t:]).abs().max() > 1e-4, "changing a token must change something"


@torch.inference_mode()
def test_released_chunk_pooling_sees_the_future():
    """The documented property of the released cell: a later token changes an earlier logit."""
    model = make("released-chunk")
    ids, bank = tokens(model, 1, model.config.memory.chunk), model.initial_bank()
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % model.config.vocab_size
    assert (model(other, bank)[0][:, :-1] - model(ids, bank)[0][:, :-1]).abs().max() > 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("name", tiny.STREAMING)
def test_split_invariance(name):
    model = make(name)
    length = model.config.memory.chunk
    ids, bank = tokens(model, 2, length), written(model, 2)
    whole_logits, whole_bank = model(ids, bank, at(model))
    for split in (length, 1, 5, [3, length - 4, 1]):
        logits, chunk = run(model, model.start(bank, at(model)), ids, split)
        assert_close(f"logits split {split}", logits, whole_logits, EXACT)
        after, chunks = model.commit(chunk)
        assert chunks == at(model, 6)
        assert_close(f"bank split {split}", after, whole_bank, EXACT)


@torch.inference_mode()
def test_released_exact_mode_commits_the_whole_chunk():
    model = make("released-chunk")
    ids, bank = tokens(model, 2, 20), model.initial_bank(2)
    whole_logits, whole_bank = model(ids, bank)
    logits, chunk = run(model, model.start(bank), ids, [7, 1, 12])
    assert_close("last logits", logits[:, -1], whole_logits[:, -1], EXACT)
    assert_close("bank", model.commit(chunk)[0], whole_bank, EXACT)


@torch.inference_mode()
@pytest.mark.parametrize("name", ALL)
def test_chaining_and_partial_chunks(name):
    """Chunk states chained by commit equal whole chunks chained by forward, with a partial chunk between; rows not reached keep their content."""
    model = make(name)
    full = model.config.memory.chunk
    whole, step, count = model.initial_bank(), model.initial_bank(), 0
    for c, length in enumerate((full, 5, full, 1)):
        ids = tokens(model, 1, length, seed=40 + c)
        before = step
        places = model.places(count, length)
        logits, whole = model(ids, whole, count)
        got, chunk = run(model, model.start(step, count), ids, length)
        step, count = model.commit(chunk)
        assert_close(f"chunk {c} logits", got, logits, EXACT)
        assert_close(f"chunk {c} bank", step, whole, EXACT)
        kept = torch.ones(step.shape[2], dtype=torch.bool)
        kept[places] = False
        assert torch.equal(step[:, :, kept], before[:, :, kept])
        assert not torch.equal(step[:, :, ~kept], before[:, :, ~kept])


@torch.inference_mode()
@pytest.mark.parametrize("name", ["gated", "gated-4T"])
def test_never_written_memory_adds_nothing(name):
    """A bank of zeros: bit for bit the backbone, whichever path computes it."""
    import dataclasses

    model = make(name, torch.float32)
    bare_config = dataclasses.replace(model.config, memory=dataclasses.replace(model.config.memory, layers=()))
    from lm2.models.weights import load_tensors, new_model

    bare = new_model(bare_config)
    load_tensors(bare, {n: t for n, t in slots_of(model) if ".memory." not in n})
    ids = tokens(model, 1, model.config.memory.chunk)
    want, _ = run(bare, bare.start(bare.initial_bank()), ids, 4)
    got, _ = run(model, model.start(model.initial_bank()), ids, 4)
    assert torch.equal(got, want)
    assert torch.equal(model(ids, model.initial_bank())[0], bare(ids, bare.initial_bank())[0])


@torch.inference_mode()
@pytest.mark.parametrize("name", ALL)
def test_the_bank_matters(name):
    model = make(name)
    ids, bank = tokens(model, 1, 7), written(model)
    on, _ = model(ids, bank, at(model))
    off, _ = model(ids, torch.zeros_like(bank), at(model))
    assert relative_l2(off, on) > 1e-2


@torch.inference_mode()
@pytest.mark.parametrize("name", ALL)
def test_batch_rows_are_independent(name):
    model = make(name)
    ids, bank = tokens(model, 3, 9), written(model, 3)
    logits, after = model(ids, bank, at(model))
    other_ids, other_bank = ids.clone(), bank.clone()
    other_ids[1] = tokens(model, 1, 9, seed=77)[0]
    other_bank[:, 1] = 0.5
    changed, changed_after = model(other_ids, other_bank, at(model))
    for row in (0, 2):
        assert torch.equal(logits[row], changed[row])
        assert torch.equal(after[:, row], changed_after[:, row])
        alone, alone_after = model(ids[row : row + 1], bank[:, row : row + 1], at(model))
        assert_close(f"row {row} alone", alone[0], logits[row], EXACT)
        assert_close(f"row {row} bank alone", alone_after[:, 0], after[:, row], EXACT)
    assert not torch.equal(logits[1], changed[1])


@torch.inference_mode()
@pytest.mark.parametrize("name", ALL)
def test_padding_equals_a_short_chunk(name):
    """Right-padded sequences with `lengths` leave the same bank as each sequence alone (the training path)."""
    model = make(name)
    ids, bank = tokens(model, 2, 10), written(model, 2)
    lengths = torch.tensor([4, 10])
    logits, after = model(ids, bank, at(model), lengths)
    for row, n in enumerate(lengths.tolist()):
        alone, alone_after = model(ids[row : row + 1, :n], bank[:, row : row + 1], at(model))
        assert_close(f"row {row} logits", logits[row, :n], alone[0], EXACT)
        assert_close(f"row {row} bank", after[:, row], alone_after[:, 0], EXACT)


@torch.inference_mode()
@pytest.mark.parametrize("name", tiny.STREAMING)
def test_rewind_is_free_and_exact(name):
    model = make(name)
    ids, bank = tokens(model, 1, 12), written(model)
    _, chunk = run(model, model.start(bank, at(model)), ids[:, :6], 3)
    longer = run(model, chunk, ids[:, 6:], 2)[1]
    other = tokens(model, 1, 6, seed=99)
    got, again = run(model, longer._replace(length=6), other, 6)
    want, fresh = run(model, model.start(bank, at(model)), torch.cat((ids[:, :6], other), dim=1), 12)
    assert_close("logits after rewind", got, want[:, 6:], EXACT)
    assert_close("bank after rewind", model.commit(again)[0], model.commit(fresh)[0], EXACT)


@torch.inference_mode()
@pytest.mark.parametrize("name", ALL)
def test_nothing_grows_and_nothing_drifts(name):
    """100 chunks: the same bytes, finite values, and float32 stays with float64."""
    exact, single = make(name), make(name, torch.float32)
    for (_, a), (_, b) in zip(exact.named_parameters(), single.named_parameters(), strict=True):
        a.data.copy_(b.data)
    a, b = exact.initial_bank(), single.initial_bank()
    nbytes = b.numel() * b.element_size()
    for c in range(100):
        ids = tokens(exact, 1, exact.config.memory.chunk, seed=c)
        _, a = exact(ids, a, c)
        _, b = single(ids, b, c)
        assert b.numel() * b.element_size() == nbytes
    error = nmse(b, a)
    print(f"NMSE after 100 chunks {error:.3g}")
    assert error <= 1e-10


@torch.inference_mode()
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("dtype", "logits_gate", "bank_gate"), [(torch.bfloat16, 5e-2, 3e-4), (torch.float16, 5e-3, 1e-5)])
def test_half_precision(name, dtype, logits_gate, bank_gate):
    """Against float64 on the half-precision model's own weights. Bank, gates and norms are float32."""
    half, exact = make(name, dtype), make(name)
    for (n, a), (_, b) in zip(slots_of(exact), slots_of(half), strict=True):
        a.copy_(b)
        float32 = any(p in n for p in ("norm", "memory.token_gate", "memory.bank_gate", "_gate.", "content", "scale", "_bias", "memory.mlp", "topics"))
        assert b.dtype == (wide(dtype) if float32 else dtype), n
    bank, got_bank = exact.initial_bank(), half.initial_bank()
    assert got_bank.dtype == torch.float32
    for c in range(100):
        ids = tokens(exact, 1, exact.config.memory.chunk, seed=c)
        want, bank = exact(ids, bank, c)
        got, got_bank = half(ids, got_bank, c)
    print(f"relative L2 {relative_l2(got.float(), want):.3g}, bank NMSE {nmse(got_bank, bank):.3g}")
    assert relative_l2(got.float(), want) <= logits_gate
    assert nmse(got_bank, bank) <= bank_gate


@pytest.mark.parametrize("name", ["gated-eye", "released-causal", "released-chunk"])
def test_gradients_reach_the_first_chunk(name):
    """Backpropagation through the memory: a loss in chunk 3 moves the weights through what chunk 1 wrote."""
    model = make(name)
    for p in model.parameters():
        p.requires_grad_(True)
    embeddings = []
    model.embed_tokens.register_forward_hook(lambda _m, _i, out: embeddings.append(out) or out.retain_grad())
    bank = model.initial_bank(1)
    for c in range(3):
        logits, bank = model(tokens(model, 1, 8, seed=c), bank, c * 8)
    logits.square().mean().backward()
    assert embeddings[0].grad is not None and embeddings[0].grad.abs().max() > 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_row_of_the_token_alone_does_not_hold_what_was_read():
    """config `content: token`: whatever the bank holds, the first memory layer writes the same rows; with `both` it does not."""
    for content, same in (("token", True), ("both", False)):
        config = tiny.config(rows=2, content=content)
        model = random_model(config, seed=3)
        block = model.blocks[0].memory
        torch.nn.init.zeros_(block.read_proj.weight)  # the forget gate then does not depend on it either
        x, old = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 5, 32)
        banks = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
        rows = [block(x, block.keys_values(bank, x.dtype), old)[1] for bank in banks]
        assert torch.equal(*rows) == same and rows[0].abs().max() > 0.01


def test_what_rows_are_made_of_is_part_of_the_config():
    plain, token = (tiny.config(content=c) for c in ("both", "token"))
    assert "content" not in plain.to_dict()["memory"] and token.to_dict()["memory"]["content"] == "token"
    for config in (plain, token):
        assert LM2Config.from_dict(config.to_dict()) == config
    for change, words in (({"content": "read"}, "memory.content"), ({"content": "token", "cell": "released"}, "memory.content")):
        with pytest.raises(ConfigError, match=words):
            made = LM2Config.from_dict(token.to_dict() | {"memory": token.to_dict()["memory"] | change})
            made.check()
