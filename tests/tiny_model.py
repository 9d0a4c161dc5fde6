"""A tiny model folder with a byte tokenizer and ChatML, and a backend that knows what was fed to reach each memory."""

import json
from dataclasses import replace

import numpy as np
import tiny
import tiny_tokenizer

from lm2.runtime.backend import MemoryState
from lm2.runtime.loading import load

CELLS = ("gated", "gated-4T", "released-causal", "released-chunk")
CHUNK = 64


def make(folder, cell="gated", seed=1, chunk=CHUNK, ends=(tiny_tokenizer.IM_END,)):
    """Write a model folder: 2 layers, chunks of `chunk` tokens, a vocabulary of 259, untrained weights, `ends` that end an answer; returns it."""
    from lm2.models.weights import random_model, save_folder

    fields = dict(
        vocab=tiny_tokenizer.VOCAB,
        layers=2,
        eos_token_id=ends,
        name="tiny",
        tie_word_embeddings=False,
    )
    if cell.startswith("released"):
        config = tiny.config("released", cell.removeprefix("released-"), width=chunk, **fields)
    else:
        config = tiny.config(chunk=chunk, rows=4 if cell.endswith("4T") else 1, memory_layers=(0, 1), **fields)
    save_folder(random_model(config, seed), folder)
    tiny_tokenizer.make(folder)
    settings = {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def load_tiny(folder):
    return load(folder, backend="torch", device="cpu", threads=1)


class Fed:
    """A chunk of the Recorder: the real one, the tokens in it, and the chunks before it."""

    def __init__(self, inner, past, tokens=()):
        self.inner, self.past, self.tokens = inner, past, tuple(tokens)

    @property
    def length(self):
        return self.inner.length


class Recorder:
    """Wraps a backend. `chunks(state)`: the tokens of each chunk that led to a memory, in order, also over a file.

    `fail = (k, error)` raises `error` at the k-th next `extend`, when the work is done but nothing was returned.
    """

    def __init__(self, backend):
        self.real, self.config = backend, backend.config
        self.fail, self.calls = None, []
        self._past = {}

    def chunks(self, state):
        return self._past.get(self.to_host(state).tobytes(), ())

    def start(self, batch=1, state=None):
        return Fed(self.real.start(batch, state), () if state is None else self.chunks(state))

    def extend(self, tokens, chunk, all_logits=False):
        logits, inner = self.real.extend(tokens, chunk.inner, all_logits)
        self.calls.append(len(tokens))
        if self.fail is not None:
            left, error = self.fail
            self.fail = (left - 1, error) if left > 1 else None
            if left == 1:
                raise error
        return logits, Fed(inner, chunk.past, chunk.tokens + tuple(int(t) for t in tokens))

    def rewind(self, chunk, length):
        return Fed(self.real.rewind(chunk.inner, length), chunk.past, chunk.tokens[:length])

    def commit(self, chunk):
        assert len(chunk.tokens) == chunk.length
        state = self.real.commit(chunk.inner)
        if chunk.length:
            self._past[self.to_host(state).tobytes()] = (*chunk.past, chunk.tokens)
        return state

    def to_host(self, state):
        return self.real.to_host(state)

    def from_host(self, bank, chunks):
        return self.real.from_host(bank, chunks)

    def describe(self):
        return self.real.describe()


def recorded(model):
    """The same model behind a Recorder."""
    return replace(model, backend=Recorder(model.backend))


def replay(model, chunks, unfinished):
    """Bank after `chunks`, each fed whole, and the logits (v,) after the `unfinished` tokens, None without any."""
    backend = getattr(model.backend, "real", model.backend)
    state = MemoryState(backend.commit(backend.start(1)).bank, 0)
    for tokens in chunks:
        state = backend.commit(backend.extend(np.array(tokens), backend.start(1, state))[1])
    logits = backend.extend(np.array(unfinished), backend.start(1, state))[0][0] if unfinished else None
    return backend.to_host(state), logits
