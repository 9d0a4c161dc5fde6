"""What a new memory of a finished model starts as: the layer's own attention, head by head or one head for each key/value head."""

from dataclasses import replace

import pytest
import tiny
import torch

from lm2.models.errors import ConvertError
from lm2.models.layout import open_folder
from lm2.models.training import start
from lm2.models.weights import random_model, save_folder, slots_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("start") / "m"
    save_folder(random_model(tiny.config(memory_layers=()), 3), path)
    return open_folder(path)


def test_a_head_for_each_key_value_head(folder):
    """Values that all heads look at alike join the stream as the attention's own would, but for what is drawn beyond its width."""
    c = folder.config
    memory = start.adapter_memory(c, (1,), 16, 2)
    assert (memory.heads, memory.head_dim, memory.keys) == (2, 16, "pair") and c.num_attention_heads == 4 and c.head_dim == 8
    slots = dict(slots_of(start.warm(folder, memory, 0, False)))
    p = "model.layers.1."
    own, made = (
        {part: slots[f"{p}{where}.{part}_proj.weight"] for part in "qkvo"} for where in ("self_attn", "memory")
    )
    for k in range(2):
        heads = range(2 * k, 2 * k + 2)
        assert torch.equal(made["k"].view(2, 16, -1)[k, :8], own["k"].view(2, 8, -1)[k])
        assert torch.equal(made["v"].view(2, 16, -1)[k, :8], own["v"].view(2, 8, -1)[k])
        assert torch.allclose(made["o"].view(-1, 2, 16)[:, k, :8], sum(own["o"].view(-1, 4, 8)[:, h] for h in heads), atol=1e-6)
        assert torch.allclose(made["q"].view(2, 16, -1)[k, :8], sum(own["q"].view(4, 8, -1)[h] for h in heads) / 2, atol=1e-6)
    whole = dict(slots_of(start.warm(folder, replace(memory, heads=4, head_dim=8), 0, False)))
    assert torch.equal(whole[f"{p}memory.q_proj.weight"], own["q"]), "as many heads as the attention: the attention's"


def test_a_seed_decides_what_is_drawn(folder):
    memory = start.adapter_memory(folder.config, (0, 2), 16, 2)
    one, same, other = (dict(slots_of(start.warm(folder, memory, seed, False))) for seed in (1, 1, 2))
    name = "model.layers.2.memory.v_proj.weight"
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])


@pytest.mark.parametrize(("heads", "width"), [(1, 32), (2, 4), (3, 8)])
def test_other_heads_are_refused(folder, heads, width):
    memory = replace(start.adapter_memory(folder.config, (1,), 16, 2), heads=heads, head_dim=width)
    with pytest.raises(ConvertError, match=f"memory.heads {heads} of {width} must be the attention's 4 of 8, or 2, one for each"):
        start.warm(folder, memory, 0, False)


@pytest.mark.parametrize("name", tiny.BACKBONES)
def test_a_memory_of_another_decoder_starts_as_conversion_starts_it(tmp_path, name):
    """Norms of queries and keys, and after attention, are in the copies; where attention sees the stream as it is, so does the memory."""
    from lm2.models.checkpoints.source import stored_tensors, whole
    from lm2.models.checkpoints.warmstart import attention_matrix

    save_folder(random_model(tiny.config(memory_layers=(), backbone=tiny.BACKBONES[name]), 3), tmp_path / "m")
    folder = open_folder(tmp_path / "m")
    c, p = folder.config, "model.layers.1."
    memory = replace(start.adapter_memory(c, (1,), 16, 2), heads=4, head_dim=8)
    slots = dict(slots_of(start.warm(folder, memory, 0, False)))
    tensors = stored_tensors(folder.weights, folder.header)
    for part in ("q_proj.weight", "o_proj.weight"):
        want, plain = torch.from_numpy(whole(attention_matrix(c, p, part, tensors))), slots[f"{p}self_attn.{part}"]
        assert torch.allclose(slots[f"{p}memory.{part}"], want, atol=1e-6)
        assert torch.allclose(want, plain) == (c.backbone.norms == "before" if part[0] == "o" else c.backbone.qk_norm == "none"), "a norm is in it"
    norm = slots[f"{p}memory.norm.weight"]
    assert torch.equal(norm, torch.ones_like(norm) if c.backbone.norms == "after" else slots[f"{p}input_layernorm.weight"])


def test_values_begin_by_saying_the_words_they_look_at():
    """What the projection makes of a row's topics is likest the row's own token in the head, as loud as asked; nothing is said of other tokens' rows."""
    model = random_model(replace(tiny.CELLS["gated-topics"], vocab_size=40, tie_word_embeddings=False), 3)
    of_token = torch.randn(40, 32, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(400) % 40
    rows = of_token[ids] + 0.05 * torch.randn(400, 32, generator=torch.Generator().manual_seed(2))
    start.begin_words(model, rows, ids, (10.0, 20.0))
    for layer, loud in ((2, 10.0), (3, 20.0)):
        memory = model.blocks[layer].memory
        k, v = memory.keys_values(torch.zeros(1, 400, 32), torch.float32, told=rows[None])  # (1, h, n, e) each
        said = memory.o_proj(v[0].transpose(0, 1).reshape(400, -1)).detach()  # (n, d)
        assert not k.any() and (model.lm_head(said).argmax(-1) == ids).float().mean() > 0.9
        assert 0.3 < said.norm(dim=-1).mean() / (start.SPOKEN * loud) < 1.2
    start.begin_words(model, rows, ids.roll(1), (10.0, 20.0))
    _, v = memory.keys_values(torch.zeros(1, 400, 32), torch.float32, told=rows[None])
    assert (model.lm_head(memory.o_proj(v[0].transpose(0, 1).reshape(400, -1))).argmax(-1) == ids).float().mean() < 0.1, "the control"
