"""A tiny model folder, and the `lm2` command as a function."""

import command_line
import pytest
import tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A model folder whose answers end only at --max-tokens."""
    return tiny_model.make(tmp_path_factory.mktemp("model") / "tiny", ends=())


@pytest.fixture
def lm2(monkeypatch):
    """`lm2(*args, stdin=b"")` runs the command in this process."""

    def run(*args, stdin=b"", **options):
        return command_line.call(monkeypatch, args, stdin, **options)

    return run
