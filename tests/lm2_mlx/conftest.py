"""What every test of the MLX mirror shares."""

import poison
import pytest


@pytest.fixture(autouse=True)
def fresh_buffers_are_poisoned(monkeypatch):
    poison.mlx(monkeypatch)
