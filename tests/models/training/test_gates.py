"""The probe that starts the input gates finds a direction that was put there, says so honestly, and is what the gate then does."""

import torch
import training_kit

from lm2.models.training import gates


def planted(n=6000, d=24, strength=4.0, seed=0):
    """States whose dimensions have very different sizes; tokens to keep lie further along one direction."""
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(n, generator=generator) < 0.15
    direction = torch.nn.functional.normalize(torch.randn(d, generator=generator), dim=0)
    states = torch.randn(n, d, generator=generator) + strength * keep[:, None] * direction
    return states * torch.logspace(-1, 1, d), keep, direction / torch.logspace(-1, 1, d)


def test_a_planted_direction():
    states, keep, direction = planted()
    probe = gates.fit(states, keep, 0)
    scaled = torch.logspace(-1, 1, 24)
    assert torch.cosine_similarity(probe.weight * scaled, direction * scaled, dim=0) > 0.9
    assert probe.caught > 0.93 and probe.false_alarms < 0.06
    fresh, labels, _ = planted(seed=0)
    said = fresh @ probe.weight + probe.bias > 0
    assert (said == labels).float().mean() > 0.93


def test_nothing_to_find_is_not_found():
    states, _, _ = planted()
    keep = torch.rand(len(states), generator=torch.Generator().manual_seed(5)) < 0.15
    probe = gates.fit(states, keep, 0)
    assert probe.caught < 0.3, "held-out tokens are judged, not those it saw"


def test_a_function_of_the_seed():
    states, keep, _ = planted(2000)
    one, two = gates.fit(states, keep, 3), gates.fit(states, keep, 3)
    assert torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)


def test_the_gate_becomes_the_probe():
    model = training_kit.model()
    memory = model.blocks[0].memory
    states, keep, _ = planted(3000, d=32)
    probe = gates.fit(states, keep, 0)
    content = memory.token_proj.weight[32:].clone()
    before = memory.token_proj.weight[:32].clone()
    gates.install(memory, probe)
    gate = torch.sigmoid(memory.token_proj(states)[:, :32] + memory.input_bias).mean(-1)
    assert gate[keep].mean() > 0.8 and gate[~keep].mean() < 0.2
    assert torch.equal(memory.token_proj.weight[32:], content) and torch.allclose(
        memory.token_proj.weight[:32], probe.weight + 0.1 * before
    )
