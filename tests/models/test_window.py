"""Windows longer than a chunk, folds and carried tokens against an oracle without caches, in float64; and what must not pass it."""

import pytest
import tiny
import torch
from compare import assert_close
from window_kit import SCRIPTS, Script, run, whole

from lm2.models import decode
from lm2.models.lm2 import LM2
from lm2.models.memory import GatedMemory, Gates
from lm2.models.opening import Opening
from lm2.models.weights import random_model

EXACT = 1e-11
W = 48  # three chunks of 16
EVERY = tiny.CELLS | tiny.ALONE
GATED = [name for name in EVERY if name.startswith("gated")]


def make(name, seed=3):
    return random_model(EVERY[name], seed=seed, dtype=torch.float64)


def tokens(batch, length, seed=5):
    return torch.randint(0, 61, (batch, length), generator=torch.Generator().manual_seed(seed))  # (b, t)


def bank_of(model, batch=1, count=2):
    """A bank that was written in `count` whole chunks, and the tokens in it."""
    bank, chunk = model.initial_bank(batch), model.config.memory.chunk
    for c in range(count):
        _, bank = model(tokens(batch, chunk, 30 + c), bank, c * chunk)
    return bank, count * chunk


@torch.inference_mode()
@pytest.mark.parametrize("what", SCRIPTS)
@pytest.mark.parametrize("name", GATED)
def test_a_window_is_what_it_is_defined_to_be(name, what):
    model = make(name)
    folds, carried, length = SCRIPTS[what]
    bank, written = bank_of(model, 2, 3 if "carried" in what else 0)
    written += 5 if "carried" in what else 0  # a pointer that is no multiple of a chunk
    script = Script(tokens(2, length), folds, carried)
    want = whole(model, bank, written, script)
    for split in (None, 1, 3):
        got, _ = run(model, bank, written, script, W, split)
        assert_close(f"logits split {split}", got.logits, want.logits, EXACT)
        assert got.written == want.written
        if carried < length:
            assert_close(f"bank split {split}", got.banks[-1], want.banks[-1], EXACT)
        else:
            assert not got.banks


@torch.inference_mode()
def test_without_folds_to_come_a_window_is_the_chunk_it_was():
    model = make("gated-4T")
    bank, written = bank_of(model)
    ids = tokens(2, 16)[:1]
    logits, after = model(ids, bank, written)
    got, state = run(model, bank, written, Script(ids), W)
    assert_close("logits", got.logits, logits, EXACT)
    assert_close("bank", model.commit(state)[0], after, EXACT)


@torch.inference_mode()
def test_causality_over_folds():
    """A later token changes nothing before it, and everything after it: in its window, and through the bank in the next."""
    model = make("gated")
    bank, written = bank_of(model)
    ids = tokens(1, 40)
    base, state = run(model, bank, written, Script(ids, (10, 26)), W)
    following = run(model, *model.commit(state), Script(tokens(1, 4, 9)), W)[0].logits
    for t in (0, 9, 10, 30, 39):
        other = ids.clone()
        other[0, t] = (other[0, t] + 1) % 61
        changed, state = run(model, bank, written, Script(other, (10, 26)), W)
        assert_close(f"before {t}", changed.logits[:, :t], base.logits[:, :t], EXACT)
        assert (changed.logits[:, t:] - base.logits[:, t:]).abs().max() > 1e-4
        assert (run(model, *model.commit(state), Script(tokens(1, 4, 9)), W)[0].logits - following).abs().max() > 1e-9


@torch.inference_mode()
def test_a_fold_is_heard_at_once():
    """The same tokens, folded before the last one or not: only what comes after the fold differs."""
    model = make("gated")
    ids = tokens(1, 12)
    with_fold, _ = run(model, model.initial_bank(), 0, Script(ids, (8,)), W)
    without, _ = run(model, model.initial_bank(), 0, Script(ids), W)
    assert_close("before the fold", with_fold.logits[:, :8], without.logits[:, :8], EXACT)
    assert (with_fold.logits[:, 8:] - without.logits[:, 8:]).abs().max() > 1e-4


@torch.inference_mode()
def test_what_is_carried_is_not_written_again():
    model = make("gated-4T")
    bank, written = bank_of(model, 1, 3)
    state = model.start(bank, written, W, 20)
    tables = model.tables(W)
    for piece in tokens(1, 20).split(7, dim=1):
        _, state = model.extend(piece, state, tables)
        state = model.fold(state)
        assert state.bank is bank and state.written == written and model.commit(state)[0] is bank
    _, state = model.extend(tokens(1, 1, 8), state, tables)
    after, count = model.commit(state)
    changed = (after != bank).flatten(3).any(-1).any(0)[0]
    assert count == written + 1 and changed.nonzero().flatten().tolist() == [written % bank.shape[2]]


@torch.inference_mode()
def test_rows_go_round_the_bank():
    """Token number i lies in row i mod n, across the bank's end in one fold too."""
    model = make("gated")
    state, tables = model.start(model.initial_bank(), 10, W), model.tables(W)
    _, state = model.extend(tokens(1, 12), state, tables)
    after, count = model.commit(state)
    changed = (after != 0).any(-1).any(0)[0].nonzero().flatten().tolist()
    assert count == 22 and changed == sorted({(10 + i) % after.shape[2] for i in range(12)})


@torch.inference_mode()
def test_an_older_state_goes_on_beside_a_fold():
    model = make("gated")
    bank, written = bank_of(model)
    _, state = model.extend(tokens(1, 9), model.start(bank, written, W), model.tables(W))
    folded = model.fold(state)
    assert state.bank is bank and folded.bank is not bank and (state.folded, folded.folded) == (0, 9)
    assert torch.equal(model.commit(state)[0], folded.bank)


@torch.inference_mode()
@pytest.mark.parametrize("what", SCRIPTS)
@pytest.mark.parametrize("name", GATED)
def test_steps_on_static_buffers(name, what):
    """decode.step token by token, folds in place, buffers poisoned before, two sequences."""
    model = make(name)
    folds, carried, length = SCRIPTS[what]
    bank, written = bank_of(model, 2, 3)
    written += 5
    script, chunk = Script(tokens(2, length), folds, carried), model.config.memory.chunk
    want, _ = run(model, bank, written, script, W)
    buffers, tables = decode.new_buffers(model, 2, W), model.tables(W)
    for buffer in buffers:
        if buffer.is_floating_point():
            buffer.fill_(float("nan"))
    state = decode.begin(model, buffers, bank, written, carried)
    for t in range(length):
        if t - state.folded == chunk:
            state = decode.fold(model, buffers, state)
        row = decode.place(state, chunk)
        buffers.inputs.copy_(torch.cat((script.ids[:, t], torch.tensor([t, t, row, row]))))
        decode.step(model, buffers, tables)
        assert_close(f"token {t}", buffers.logits, want.logits[:, t], EXACT)
        state = state._replace(length=t + 1)
        if t + 1 in folds:
            state = decode.fold(model, buffers, state)
    if want.banks:
        assert_close("bank", model.commit(state)[0], want.banks[-1], EXACT)


@torch.inference_mode()
@pytest.mark.parametrize("name", GATED)
def test_an_opening_is_the_tokens_it_is_of(name):
    """Keys and values of 8 carried tokens out of one window open others: extend, and steps in poisoned buffers, against the oracle over all tokens."""
    model, ids, p = make(name), tokens(1, 24), 8
    bank, written = bank_of(model, 1, 3)
    written, tables = written + 5, model.tables(W)
    want = whole(model, bank, written, Script(ids, (), p))
    _, fed = model.extend(ids[:, :p], model.start(bank, written, W, p), tables)
    opening = Opening(*(x[:, 0, :, :p].numpy().copy() for x in (fed.keys, fed.values)))
    logits, state = model.extend(ids[:, p:], model.start(bank, written, W, 0, opening), tables, all_logits=True)
    assert_close("logits", logits, want.logits[:, p:], EXACT)
    assert_close("bank", model.commit(state)[0], want.banks[-1], EXACT)
    buffers = decode.new_buffers(model, 1, W)
    for buffer in buffers:
        if buffer.is_floating_point():
            buffer.fill_(float("nan"))
    state = decode.begin(model, buffers, bank, written, p, opening)
    for t in range(p, ids.shape[1]):
        buffers.inputs.copy_(torch.tensor([ids[0, t], t, decode.place(state, model.config.memory.chunk)]))
        decode.step(model, buffers, tables)
        assert_close(f"token {t}", buffers.logits, want.logits[:, t], EXACT)
        state = state._replace(length=t + 1)
    assert_close("bank", model.commit(state)[0], want.banks[-1], EXACT)
    opening.values[1, 0, 2] += 1e-6
    wrong, _ = model.extend(ids[:, p:], model.start(bank, written, W, 0, opening), tables, all_logits=True)
    assert (wrong - want.logits[:, p:]).abs().max() > 1e4 * EXACT


@torch.inference_mode()
@pytest.mark.parametrize("fault", ["carried tokens written twice", "pointer off by one", "stale reads after a fold", "the head is lost"])
def test_a_wrong_window_is_noticed(fault, monkeypatch):
    """Each is a plausible mistake; none may pass the comparison with the oracle."""
    model = make("gated-4T")
    bank, written = bank_of(model, 1, 3)
    script = Script(tokens(1, 40), (25, 33), 20)
    want, given = whole(model, bank, written, script), script
    if fault == "carried tokens written twice":
        start = LM2.start
        monkeypatch.setattr(LM2, "start", lambda self, b, w, window, carried: start(self, b, w, window))
        given = Script(script.ids, (16, 25, 33), 20)
    elif fault == "pointer off by one":
        places = LM2.places
        monkeypatch.setattr(LM2, "places", lambda self, w, count: places(self, w + 1, count))
    elif fault == "stale reads after a fold":
        fold = LM2.fold
        monkeypatch.setattr(LM2, "fold", lambda self, s: fold(self, s)._replace(inside=fold(self, s).inside._replace(reads=s.inside.reads)))
    else:
        given = Script(torch.cat((script.ids[:, 4:20], script.ids[:, 16:]), dim=1), script.folds, script.carried)
    got, _ = run(model, bank, written, given, W)
    with pytest.raises(AssertionError):
        assert_close("logits", got.logits, want.logits, EXACT)
        assert_close("bank", got.banks[-1], want.banks[-1], EXACT)


TOPIC_FAULTS = {
    "a fold that forgets the rows to either side": ("near", lambda right: lambda self, written, count: self.places(written, count)),
    "surroundings of other rows": ("near", lambda right: lambda self, written, count: right(self, written + 3, count)),
    "values of the row after": ("told", lambda right: lambda self, bank: right(self, bank).roll(-1, 1)),
    "values of the row alone": ("told", lambda right: lambda self, bank: 0 * bank[-1]),
    "no surroundings at all": ("topics", lambda right: property(lambda self: None)),
}


@torch.inference_mode()
@pytest.mark.parametrize("fault", TOPIC_FAULTS)
@pytest.mark.parametrize("static", [False, True])
def test_wrong_topics_are_noticed(fault, static, monkeypatch):
    """In windows by extend, and in static buffers."""
    model = make("gated-topics")
    bank, written = bank_of(model, 1, 3)
    script, name, wrong = Script(tokens(1, 40), (25, 33), 20), *TOPIC_FAULTS[fault]
    want = whole(model, bank, written, script)
    monkeypatch.setattr(LM2, name, wrong(getattr(LM2, name)))
    if static:
        buffers = decode.new_buffers(model, 1, W)
        monkeypatch.setattr(LM2, "start", lambda self, b, w, window, carried: decode.begin(self, buffers, b, w, carried))
        monkeypatch.setattr(LM2, "fold", lambda self, state: decode.fold(self, buffers, state))
    got, _ = run(model, bank, written, script, W)
    with pytest.raises(AssertionError):
        assert_close("logits", got.logits, want.logits, EXACT)


WAITING_FAULTS = {
    "nothing was read": ("rewritten", lambda right: lambda self, writes, old: right(self, writes * (torch.arange(writes.shape[-1]) < old.shape[-1]), old)),
    "what the token before read": ("rewritten", lambda right: lambda self, writes, old: right(self, writes.roll(1, 1), old)),
    "nothing was there before": ("rewritten", lambda right: lambda self, writes, old: right(self, writes, 0 * old)),
    "what was read goes first": ("rewritten", lambda right: lambda self, writes, old: right(self, writes.roll(old.shape[-1], -1), old)),
    "forgets as far as it answers": ("brought", lambda right: lambda self, read: setattr(self.read_proj, "forget", self.read_proj.output) or right(self, read)),
}


@torch.inference_mode()
@pytest.mark.parametrize("fault", WAITING_FAULTS)
def test_rows_that_are_made_wrong_later_are_noticed(fault, monkeypatch):
    model, right = make("gated"), make("gated")
    bank, written = bank_of(model, 2, 3)
    script, (name, wrong) = Script(tokens(2, 40), (25, 33), 20), WAITING_FAULTS[fault]
    want = whole(right, bank, written, script)
    monkeypatch.setattr(GatedMemory, name, wrong(getattr(GatedMemory, name)))
    got, _ = run(model, bank, written, script, W)
    with pytest.raises(AssertionError):
        assert_close("logits", got.logits, want.logits, EXACT)
    with pytest.raises(AssertionError):
        assert_close("bank", got.banks[-1], want.banks[-1], EXACT)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["gated", "gated-topics"])
def test_a_token_multiplies_nothing_that_only_its_row_needs(name, monkeypatch):
    """Input gate, content and forget gate are multiplied when rows are asked for, by all tokens since the last fold, and what was rewound is not among them."""
    model, seen = make(name), []
    bank, written = bank_of(model)
    for block in model.blocks:
        if block.memory is not None:
            block.memory.token_proj.register_forward_hook(lambda _module, args, _out: seen.append(args[0].shape[1]))
    forget = Gates.forget
    monkeypatch.setattr(Gates, "forget", lambda self, read: seen.append(read.shape[1]) or forget(self, read))
    state, tables = model.start(bank, written, W), model.tables(W)
    for t in range(6):
        _, state = model.extend(tokens(1, 1, t), state, tables)
    assert not seen
    rewound = state._replace(length=5)
    folded = model.fold(rewound)
    assert seen == [5] * 2 * len(model.bank_of) and folded.folded == 5 and model.fold(folded) is folded
    own = model.places(written, 5)
    assert_close("what was rewound is not among them", model.commit(state)[0][:, :, own], folded.bank[:, :, own], EXACT)


@torch.inference_mode()
def test_what_a_window_refuses():
    model, released = make("gated"), make("released-causal")
    most = model.config.max_position_embeddings
    with pytest.raises(ValueError, match=f"window of {most + 1} tokens does not fit the model's {most} positions"):
        model.start(model.initial_bank(), 0, most + 1)
    with pytest.raises(ValueError, match="48 carried tokens do not fit in a window of 48"):
        model.start(model.initial_bank(), 0, W, W)
    with pytest.raises(ValueError, match="cell released has windows of its chunk"):
        released.start(released.initial_bank(), 0, W)
    with pytest.raises(ValueError, match="cell released cannot fold"):
        released.fold(released.start(released.initial_bank()))
    state, tables = model.start(model.initial_bank(), 0, W), model.tables(W)
    with pytest.raises(ValueError, match="17 tokens since the last fold are more than a chunk of 16: fold first"):
        model.extend(tokens(1, 17), state, tables)
    for _ in range(3):
        _, state = model.extend(tokens(1, 16), state, tables)
        state = model.fold(state)
    with pytest.raises(ValueError, match=r"48 \+ 1 tokens do not fit in a window of 48"):
        model.extend(tokens(1, 1), state, tables)


def test_the_token_opens_the_output_gate():
    """`opens: both`: the gate's logits are those of what was read and of the token, and with no weight there nothing is changed."""
    import tiny

    from lm2.models.weights import random_model

    model, plain = (random_model(tiny.config(opens=opens), 3).double() for opens in ("both", "read"))
    for layer in (0, 2):
        gate = model.blocks[layer].memory.open_gate
        own = {n: p for n, p in model.blocks[layer].memory.named_parameters() if "open_gate" not in n}
        for name, p in plain.blocks[layer].memory.named_parameters():
            p.data.copy_(own[name])
        gate.weight.data *= 3
    memory, other = model.blocks[2].memory, plain.blocks[2].memory
    x, bank = torch.randn(1, 5, 32).double(), torch.randn(1, 16, 32).double()
    kv, old = memory.keys_values(bank, x.dtype), torch.zeros(1, 5, 32).double()
    read = memory.o_proj(torch.nn.functional.scaled_dot_product_attention(memory.q_proj(memory.norm(x)).view(1, 5, 4, 8).transpose(1, 2), *kv).transpose(1, 2).flatten(2))
    logits = other.read_proj(read)[..., :32] + memory.norm(x) @ memory.open_gate.weight[0][:, None] + memory.open_gate.bias
    add, rows = memory(x, kv, old)
    assert torch.allclose(add, torch.sigmoid(logits) * read, atol=1e-12)
    assert torch.equal(rows, other(x, kv, old)[1]) and not torch.allclose(add, other(x, kv, old)[0], atol=1e-3)
    memory.open_gate.weight.data.zero_(), memory.open_gate.bias.data.zero_()
    assert torch.allclose(memory(x, kv, old)[0], other(x, kv, old)[0], atol=1e-12)
