"""Tiny models of every cell, behind a recording backend."""

from dataclasses import replace

import pytest
import tiny_model
from tiny_model import CELLS, recorded


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Cell -> a loaded tiny model without end tokens, so that a test says how long an answer is."""
    folder = tmp_path_factory.mktemp("models")
    return {c: replace(tiny_model.load_tiny(tiny_model.make(folder / c, c)), eos=frozenset()) for c in CELLS}


@pytest.fixture(params=CELLS)
def model(models, request):
    return recorded(models[request.param])


@pytest.fixture
def gated(models):
    return recorded(models["gated"])
