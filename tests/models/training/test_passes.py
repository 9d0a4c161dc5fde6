"""The passes that training uses compute what `LM2.forward` computes: banks, answers and gradients."""

import pytest
import tiny
import torch
import training_kit

from lm2.models.training import passes

T, B = 16, 3
LENGTHS = [(16, 16, 16), (16, 9, 1), (4, 16, 7), (11, 2, 16)]


@pytest.fixture(params=["zeros-2", "zeros-1", "eye-2", *tiny.BACKBONES])
def model(request):
    if request.param in tiny.BACKBONES:
        return training_kit.model(rows=2, backbone=tiny.BACKBONES[request.param]).double()
    init, rows = request.param.split("-")
    return training_kit.model(rows=int(rows), init=init).double()


def chunks():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randint(0, 61, (B, T), generator=generator), torch.tensor(n)) for n in LENGTHS]


def forward(model, upto=None):
    """The banks after every chunk, by the model itself."""
    bank, out = model.initial_bank(B), []
    for c, (ids, lengths) in enumerate(chunks()[:upto]):
        _, bank = model(ids, bank, c * T, lengths)
        out.append(bank)
    return out


def trained(model, begin=0, recompute=False, gates=None, wrong_row=False):
    """The same by the training passes; layers below `begin` run beforehand."""
    banks, out = list(model.initial_bank(B)), []
    for c, (ids, lengths) in enumerate(chunks()):
        x = model.embed_tokens(ids)
        cos, sin = model.tables()
        for block in model.blocks[:begin]:
            x = block.finish(x, block.self_attn(block.input_layernorm(x), cos, sin, passes.whole))
        present = torch.arange(T) < lengths[:, None]
        reads = passes.keys_values(model, banks)
        first = 0 if wrong_row else model.first_row(c)
        banks = passes.read(model, x, banks, reads, first, present, begin, gates, recompute)
        out.append(torch.stack(banks))
    return out


def test_banks_after_each_chunk(model):
    for own, wanted in zip(trained(model), forward(model), strict=True):
        assert torch.allclose(own, wanted, rtol=0, atol=1e-12)
        assert own.abs().max() > 0.1


def test_the_comparison_can_fail():
    model = training_kit.model().double()
    wrong, wanted = trained(model, wrong_row=True), forward(model)
    assert torch.equal(wrong[0], wanted[0]) and (wrong[1] - wanted[1]).abs().max() > 0.1


def test_from_the_first_memory_on():
    """Layers below the first memory may be computed once and kept."""
    model = training_kit.model(layers=4, memory_layers=(2, 3)).double()
    for own, wanted in zip(trained(model, begin=2), forward(model), strict=True):
        assert torch.allclose(own, wanted, rtol=0, atol=1e-12)


def test_answers(model):
    """Several questions of one bank at once, without changing it."""
    banks = forward(model)[-1]
    questions = torch.randint(0, 61, (B, 4, 6), generator=torch.Generator().manual_seed(1))
    reads = passes.keys_values(model, list(banks))
    own = model.lm_head(passes.answer(model, model.embed_tokens(questions), reads))
    for q in range(4):
        wanted, _ = model(questions[:, q], banks, T * len(LENGTHS))
        assert torch.allclose(own[:, q], wanted, rtol=0, atol=1e-12)
    others, _ = model(questions[:, 0], banks.roll(1, 1), T * len(LENGTHS))
    assert (own[:, 0] - others).abs().max() > 1e-3, "another stream's bank is another answer"


def test_a_bank_of_zeros_may_be_none():
    model = training_kit.model().double()
    x = model.embed_tokens(torch.randint(0, 61, (B, 2, 6), generator=torch.Generator().manual_seed(1)))
    zeros = passes.keys_values(model, list(model.initial_bank(B)))
    assert torch.equal(passes.answer(model, x, zeros), passes.answer(model, x, [None, None]))
    present = torch.ones(B, 6, dtype=torch.bool)
    one = passes.read(model, x[:, 0], list(model.initial_bank(B)), zeros, 0, present)
    other = passes.read(model, x[:, 0], list(model.initial_bank(B)), [None, None], 0, present)
    assert torch.allclose(torch.stack(one), torch.stack(other), rtol=0, atol=1e-12)


def gradients(model, last):
    model.zero_grad()
    last.square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_through_chunks(model):
    wanted = gradients(model, forward(model)[-1])
    own = gradients(model, trained(model)[-1])
    gates = []
    again = gradients(model, trained(model, recompute=True, gates=gates)[-1])
    assert set(own) == set(again) <= set(wanted) and len(gates) == 2 * len(LENGTHS)
    for name, g in wanted.items():
        if name in own:
            scale = g.abs().max()
            assert (own[name] - g).abs().max() <= 1e-10 * scale and (again[name] - g).abs().max() <= 1e-10 * scale, name
        else:
            assert not g.any(), f"{name}: what a bank does not depend on"
    assert own["layers.0.memory.token_proj.weight"].abs().max() > 0


@pytest.mark.parametrize("recompute", [False, True])
def test_gates_are_those_of_the_cell(recompute):
    model = training_kit.model().double()
    gates = []
    trained(model, recompute=recompute, gates=gates)
    memory = model.blocks[0].memory
    x = model.embed_tokens(chunks()[0][0])
    wanted = torch.sigmoid(memory.token_proj(memory.norm(x))[..., :32] + memory.input_bias)
    assert torch.allclose(gates[0], wanted, rtol=0, atol=1e-12)
    assert not memory.token_proj._forward_hooks, "no hook stays behind"
