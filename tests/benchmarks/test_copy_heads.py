"""benchmarks/copy_heads.py: a head that was made to look at one thing is found there, and chance is small."""

import importlib.util
from pathlib import Path

import pytest
import tiny_tokenizer
import torch
import training_kit

from lm2.models.training import prefixed

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "copy_heads.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("copy_heads", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.WINDOW = 120
    return module


def test_shares(script):
    model = training_kit.model(vocab=tiny_tokenizer.VOCAB, layers=3, chunk=64).eval()
    with torch.inference_mode():
        turned, plain, facts = script.heads_of(model, training_kit.people(), 2, 0)
        again = script.heads_of(model, training_kit.people(), 2, 0)
    assert facts > 2 and turned.shape == plain.shape == (3, 4) and torch.equal(turned, again[0]) and torch.equal(plain, again[1])
    assert turned.min() >= 0 and turned.max() < 0.5 and plain.max() < 0.5, "random heads find little"


def test_the_head_that_looks_there_is_found(script, monkeypatch):
    """Scores that are largest where the value begins, in one head of one layer: all of its looks are counted, and no other head's."""
    model = training_kit.model(vocab=tiny_tokenizer.VOCAB, layers=3, chunk=64).eval()
    threads = training_kit.people()
    told: list[int] = []
    question = threads.question

    def noted(rng, fact):
        told.append(fact.at[0])
        return question(rng, fact)

    threads.question = noted
    layers = prefixed.layers

    def planted(model, x, tables, reads, begin, end, before=None, keys=None, seen=None):
        out = layers(model, x, tables, reads, begin, end, before, keys, seen)
        if keys and begin == 1 and before is None:
            k, v = keys[0]
            k = torch.zeros_like(k)
            for at in told:
                k[0, 0, at] = 1.0  # heads 0 and 1 look with the first of two key heads
            keys[0] = (k, v)
        return out

    monkeypatch.setattr(script.prefixed, "layers", planted)
    monkeypatch.setattr(script, "rotate", lambda x, cos, sin: x.abs() + 1.0)
    with torch.inference_mode():
        turned, _, facts = script.heads_of(model, threads, 1, 0)
    first = len({told[0]}) / facts if len(set(told)) > 1 else 1.0
    assert turned[1, 0] == turned[1, 1] >= first and turned[1, 2] == turned[1, 3] < turned[1, 0]
