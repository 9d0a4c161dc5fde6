"""What every test of the reference and its kernels shares."""

import pytest


@pytest.fixture(autouse=True)
def fresh_memory_is_poisoned():
    """Memory that torch hands out unwritten (empty, new_empty, empty_like) is full of NaN: what a kernel forgets to write shows, where it would else hold the
    right numbers of the run before."""
    import torch

    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
