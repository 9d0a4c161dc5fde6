"""Which form of an operator runs: Triton on a CUDA device, or plain PyTorch. Knows environment variables and devices, no arithmetic.

`LM2_KERNELS=reference` asks for plain PyTorch everywhere. Triton's interpreter (`TRITON_INTERPRET=1`, read once like Triton itself does) makes the kernels
run on CPU tensors, slowly: for tests.
"""

import functools
import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HALF_OR_SINGLE = (torch.float32, torch.bfloat16, torch.float16)


def wanted() -> bool:
    """Whether anything faster than the reference may run. Read anew each time."""
    return os.environ.get("LM2_KERNELS", "auto") != "reference"


@functools.cache
def installed() -> bool:
    """Whether Triton can be imported, without importing it."""
    try:
        return importlib.util.find_spec("triton") is not None
    except (ImportError, ValueError):
        return False


def triton_runs(x: Tensor) -> bool:
    """Whether kernels are launched for tensors like x: on CUDA (or interpreted), installed, and not switched off."""
    return (x.is_cuda or INTERPRETED) and installed() and wanted()


def fused(x: Tensor) -> bool:
    """Whether a model whose residual stream is x uses the operators: `triton_runs`, in a dtype they are written for (not float64)."""
    return triton_runs(x) and x.dtype in HALF_OR_SINGLE


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Makes x's device the current one: Triton launches there, wherever its arguments lie."""
    return torch.cuda.device_of(x) if x.is_cuda else nullcontext()


def describe(device: torch.device) -> str:
    """One line for a person: what computes the memory on this device, and why when it is not the kernels."""
    if not wanted():
        return "plain PyTorch (LM2_KERNELS=reference)"
    if device.type != "cuda" and not INTERPRETED:
        return "plain PyTorch"
    if not installed():
        return "plain PyTorch (triton is not installed: pip install triton for the CUDA kernels)"
    try:
        return f"triton {version('triton')}" + (" (interpreted)" if INTERPRETED else "")
    except PackageNotFoundError:
        return "triton"
