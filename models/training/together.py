"""Several processes under torchrun: who is who, and the mean of their gradients. One process needs none of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def rank() -> int:
    """This process's number, 0 when alone."""
    return int(os.environ.get("RANK", "0"))


def own_device(device: str) -> str:
    """The device of this process: under torchrun `cuda` becomes the GPU of its own number."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and size() > 1 else device


def size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join torchrun's group for the time of a run; nothing happens without torchrun."""
    if size() == 1:
        yield
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield
        torch.distributed.barrier()  # nobody leaves while another still talks
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def first_alone() -> Iterator[None]:
    """Process 0 does the block before the others do: what it writes they find."""
    if size() > 1 and rank() > 0:
        torch.distributed.barrier()
    yield
    if size() > 1 and rank() == 0:
        torch.distributed.barrier()


def same(parameters: list[Tensor]) -> None:
    """Give every process the values of process 0."""
    if size() > 1:
        for p in parameters:
            torch.distributed.broadcast(p.data, 0)


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process, so that all stop after the same step."""
    if size() == 1:
        return flag
    count = torch.tensor(float(flag), device=device)
    torch.distributed.all_reduce(count)
    return bool(count > 0)


def average(parameters: list[Tensor]) -> None:
    """Replace every gradient by the mean over processes; a parameter without one counts as zero."""
    if size() == 1:
        return
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        torch.distributed.all_reduce(p.grad)
        p.grad /= size()
