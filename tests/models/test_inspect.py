"""The recorder of gates: what it says must add up to what the model did, and it must leave no trace."""

import pytest
import tiny
import torch
from compare import assert_close

from lm2.models.errors import ModelFileError
from lm2.models.inspect import check_cell, view
from lm2.models.weights import random_model

GATED = [name for name in tiny.CELLS if name.startswith("gated")]


def read(model, ids, bank, written):
    """The same chunk without a recorder: logits and bank."""
    with torch.inference_mode():
        logits, chunk = model.extend(ids, model.start(bank, written), model.tables(), all_logits=True)
        return logits[0], model.commit(chunk)[0]


@pytest.mark.parametrize("name", GATED)
def test_parts_add_up_to_the_bank(name):
    """Three chunks, the last one partial: added + kept * old is the bank the model leaves; attention sums to one, or to nothing before a write."""
    model = random_model(tiny.CELLS[name], 3).eval()
    bank, generator = model.initial_bank(), torch.Generator().manual_seed(0)
    for written, length in ((0, 16), (16, 16), (32, 9)):
        ids = torch.randint(0, 61, (1, length), generator=generator)
        logits, after = read(model, ids, bank, written)
        seen = view(model, ids, bank, written, model.tables())
        assert_close("logits", seen.logits, logits, 0)
        assert_close("bank", seen.bank, after, 0)
        first = int(model.places(written, 1))
        for j, layer in enumerate(seen.layers):
            assert layer.layer == model.config.memory.layers[j]
            old = bank[j, 0, first : first + length]
            assert_close("rows", layer.added + layer.kept * old, after[j, 0, first : first + length], 2e-6)
            never = written == 0 and model.config.memory.init == "zeros"
            assert_close("mass", layer.mass.sum(dim=-1), torch.full((length,), 0.0 if never else 1.0), 1e-5)
            assert layer.mass.shape == (length, model.config.memory.slots) and bool((layer.mass >= 0).all())
            assert_close("forget", layer.forget, layer.kept.mean(dim=-1), 1e-6)
            assert bool(((layer.write > 0) & (layer.write < 1)).all())
        bank = after


def test_swapped_gates_would_not_add_up():
    """Negative control of the test above."""
    model = random_model(tiny.CELLS["gated"], 3).eval()
    ids = torch.arange(16)[None]
    bank = view(model, ids, model.initial_bank(), 0, model.tables()).bank
    seen = view(model, ids, bank, 16, model.tables())
    layer, old, new = seen.layers[0], bank[0, 0], seen.bank[0, 0]
    assert float((layer.added + layer.kept * old - new).abs().max()) < 1e-5
    assert float((layer.added + layer.write[:, None] * old - new).abs().max()) > 1e-3


def test_it_leaves_no_hook_even_after_an_error():
    model = random_model(tiny.CELLS["gated"], 3).eval()
    with pytest.raises(ValueError):
        view(model, torch.zeros(1, 17, dtype=torch.long), model.initial_bank(), 0, model.tables())
    view(model, torch.zeros(1, 4, dtype=torch.long), model.initial_bank(), 0, model.tables())
    assert not any(block.memory is not None and block.memory._forward_hooks for block in model.blocks)


def test_other_cells_are_refused():
    with pytest.raises(ModelFileError, match="'released'"):
        check_cell(random_model(tiny.CELLS["released-causal"], 1))
    with pytest.raises(ModelFileError, match="no memory layer"):
        check_cell(random_model(tiny.config(memory_layers=()), 1))


@pytest.mark.parametrize(("bias", "opened"), [(100.0, 1.0), (-100.0, 0.0)])
def test_an_output_gate_that_the_token_opens_is_seen_open(bias, opened):
    model = random_model(tiny.CELLS["gated-topics"], 3).eval()
    ids = torch.arange(16)[None]
    bank = view(model, ids, model.initial_bank(), 0, model.tables()).bank
    for layer in model.config.memory.layers:
        model.blocks[layer].memory.open_gate.bias.data.fill_(bias)
    for layer in view(model, ids, bank, 16, model.tables()).layers:
        assert_close("output gate", layer.out, torch.full((16,), opened), 1e-6)
