"""lm2-tiny, loaded once, behind a real server. Without the extra `serve`, or the clients, these tests skip."""

import warnings
from dataclasses import replace
from importlib.util import find_spec

import pytest
from serve_kit import Letters, Web, served

NEEDED = ("starlette", "uvicorn", "prometheus_client", "openai")
MISSING = [name for name in NEEDED if find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []
if MISSING:
    warnings.warn(f"TESTS OF THE SERVER DID NOT RUN: {', '.join(MISSING)} not installed", stacklevel=1)


@pytest.fixture(scope="session")
def model():
    """lm2-tiny: trained, greedy, windows of 64 tokens, no system prompt."""
    from lm2.runtime.loading import load

    return load("lm2-tiny", backend="torch", device="cpu", threads=1)


@pytest.fixture(scope="session")
def talker(tmp_path_factory):
    """An untrained model that takes system prompts, draws letters, and ends no answer before its limit of tokens."""
    return talker_of(tmp_path_factory, "gated", window=256, chunk=32)


@pytest.fixture(scope="session")
def released(tmp_path_factory):
    """The same with the released cell, whose windows are chunks."""
    return talker_of(tmp_path_factory, "released-causal", window=128)


def talker_of(folders, cell, **sizes):
    import tiny_model

    made = tiny_model.load_tiny(tiny_model.make(folders.mktemp("talker") / "tiny", cell, ends=(), **sizes))
    return replace(made, backend=Letters(made.backend))


@pytest.fixture(scope="session")
def server(model):
    """One server of lm2-tiny for all tests that need nothing special; it has no keys."""
    with served(model) as running:
        yield running


@pytest.fixture(scope="session")
def web(server):
    return Web(server)


@pytest.fixture(scope="session")
def talking(talker):
    with served(talker) as running:
        yield running


@pytest.fixture(scope="session")
def talk(talking):
    return Web(talking)
