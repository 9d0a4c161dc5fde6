"""Banks kept as blocks hold what whole banks hold: rows, keys and values, gradients, beyond the point where rows are written again."""

import pytest
import torch
import training_kit

from lm2.models.training import passes
from lm2.models.training.ring import Rings

T, B = 16, 3
LENGTHS = [(16, 16, 16), (16, 9, 1), (4, 16, 7), (11, 2, 16), (5, 16, 3)]


def chunks():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randint(0, 61, (B, T), generator=generator), torch.tensor(n)) for n in LENGTHS]


def by_blocks(model, blocks):
    rings, written, gates = Rings(model, B, blocks), [], []
    for c, (ids, lengths) in enumerate(chunks()):
        written.append(rings.read(model.embed_tokens(ids), c, torch.arange(T) < lengths[:, None], gates))
    return rings, written, gates


def by_banks(model, blocks):
    banks, gates = [torch.zeros(B, blocks * T, model.config.hidden_size, dtype=model.dtype) for _ in model.bank_of], []
    for c, (ids, lengths) in enumerate(chunks()):
        reads = passes.keys_values(model, banks)
        present = torch.arange(T) < lengths[:, None]
        banks = passes.read(model, model.embed_tokens(ids), banks, reads, c % blocks * T, present, gates=gates)
    return banks, gates


@pytest.mark.parametrize("blocks", [1, 2, 3, 8])
def test_blocks_are_the_banks(blocks):
    model = training_kit.model(init="zeros").double()
    rings, written, gates = by_blocks(model, blocks)
    banks, wanted_gates = by_banks(model, blocks)
    assert len(gates) == len(wanted_gates) == len(LENGTHS) * len(banks)
    for j, bank in enumerate(banks):
        assert bank.abs().max() > 0.1
        assert torch.allclose(torch.cat(rings.rows[j], dim=1), bank, rtol=0, atol=1e-12)
        assert torch.equal(written[-1][j], rings.rows[j][(len(LENGTHS) - 1) % blocks])
    for own, wanted in zip(rings.reads, passes.keys_values(model, banks), strict=True):
        for x, y in zip(own, wanted, strict=True):
            assert torch.allclose(x, y, rtol=0, atol=1e-12)


def test_the_comparison_can_fail():
    model = training_kit.model(init="zeros").double()
    rings, banks = by_blocks(model, 2)[0], by_banks(model, 3)[0]
    assert (torch.cat(rings.rows[0], dim=1) - banks[0][:, : 2 * T]).abs().max() > 0.1


def test_gradients():
    model = training_kit.model(init="zeros").double()
    found = []
    for reads in (by_blocks(model, 3)[0].reads, passes.keys_values(model, by_banks(model, 3)[0])):
        loss = torch.stack([x.square().mean() for kv in reads for x in kv]).sum()
        model.zero_grad()
        loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert set(found[0]) == set(found[1]) and "layers.0.memory.token_proj.weight" in found[0]
    for name, grad in found[0].items():
        assert torch.allclose(grad, found[1][name], rtol=1e-9, atol=1e-12), name


def test_only_zeros():
    with pytest.raises(ValueError, match="zeros"):
        Rings(training_kit.model(init="eye"), B, 2)
