"""Several processes under torchrun: who is who, and the mean of their gradients. One process needs none of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def rank() -> int:
    """This process's number, 0 when alone."""
    return int(os.environ.get("RANK", "0"))


def size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join torchrun's group for the time of a run; nothing happens without torchrun."""
    if size() == 1:
        yield
        return
    torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def average(parameters: list[Tensor]) -> None:
    """Replace every gradient by the mean over processes; a parameter without one counts as zero."""
    if size() == 1:
        return
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        torch.distributed.all_reduce(p.grad)
        p.grad /= size()
