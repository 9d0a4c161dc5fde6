"""What the tests of windows and folds in ONNX share: gates, a memory to begin from, the float64 oracle over a model folder."""

import numpy as np
import torch
from window_kit import SCRIPTS, Script, whole

from lm2.models.layout import open_folder
from lm2.models.weights import load_model
from lm2.runtime.backend import MemoryState

LOGITS, BANK, RTOL = 5e-5, 2e-5, 1e-4
W = 48  # three chunks of 16


def reference(source):
    """The model of a folder in float64."""
    return load_model(open_folder(source), torch.device("cpu"), torch.float64)


def memory_of(model, batch=1, count=3, ahead=5):
    """A bank (l, b, n, d) written in `count` chunks, exact in float32, and a pointer that is no multiple of a chunk."""
    bank, chunk = model.initial_bank(batch), model.config.memory.chunk
    with torch.inference_mode():
        for c in range(count):
            _, bank = model(torch.as_tensor(tokens(batch, chunk, 30 + c)), bank, c * chunk)
    return bank.float().double(), count * chunk + ahead


def tokens(batch, length, seed=5):
    return np.random.default_rng(seed).integers(0, 61, (batch, length))  # (b, t)


def script_of(what, batch=2):
    folds, carried, length = SCRIPTS[what]
    return Script(torch.as_tensor(tokens(batch, length)), folds, carried)


def oracle(model, bank, written, script):
    with torch.inference_mode():
        return whole(model, bank, written, script)


def state_of(bank, written):
    """The same memory for a backend."""
    return MemoryState(bank.numpy().astype(np.float32), written)
