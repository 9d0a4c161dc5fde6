"""A tiny model folder with a byte tokenizer and ChatML, and a backend that knows what was fed to reach each memory."""

import json
from dataclasses import replace

import numpy as np
import tiny
import tiny_tokenizer

from lm2.models.config import BackboneConfig
from lm2.runtime.loading import load

SLIDING = BackboneConfig(windows=(9, None))
CELLS = ("gated", "gated-4T", "gated-topics", "released-causal", "released-chunk")
WINDOW = 64  # cell released: its chunk
FOLD = 24  # cell gated: its chunk


def make(folder, cell="gated", seed=1, window=WINDOW, chunk=FOLD, ends=(tiny_tokenizer.IM_END,)):
    """Write a model folder: 2 layers, windows of `window` tokens, a vocabulary of 259, untrained weights, `ends` that end an answer; returns it.

    gated-sliding: the lower layer sees the last 9 tokens. Cell gated folds after `chunk` tokens at the latest and has 3 or 12 chunks of rows, with topics in the upper layer alone; cell released has chunks of
    `window`.
    """
    from lm2.models.weights import random_model, save_folder

    fields = dict(
        vocab=tiny_tokenizer.VOCAB,
        layers=2,
        eos_token_id=ends,
        name="tiny",
        tie_word_embeddings=False,
    )
    if cell.startswith("released"):
        config = tiny.config("released", cell.removeprefix("released-"), width=window, **fields)
    else:
        memory = dict(memory_layers=(1,), topics=(0,), values="topics", topic_back=6, topic_around=2) if cell == "gated-topics" else dict(memory_layers=(0, 1))
        memory |= dict(backbone=SLIDING) if cell == "gated-sliding" else {}
        config = tiny.config(chunk=chunk, rows=3 if cell == "gated" else 12, window=window, **memory, **fields)
    save_folder(random_model(config, seed), folder)
    tiny_tokenizer.make(folder)
    settings = {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def load_tiny(folder):
    return load(folder, backend="torch", device="cpu", threads=1)


class Fed:
    """A window of the Recorder: the real one, the windows before it, and what it did: tokens fed, how many of them carried, folds."""

    def __init__(self, inner, past, carried=0, tokens=(), folds=()):
        self.inner, self.past, self.carried, self.tokens, self.folds = inner, past, carried, tuple(tokens), tuple(folds)

    @property
    def length(self):
        return self.inner.length

    @property
    def folded(self):
        return self.inner.folded

    @property
    def stale(self):
        return self.inner.stale


class Recorder:
    """Wraps a backend. `windows(state)`: (tokens, carried, folds) of each window that led to a memory, in order, also over a file.

    `fail = (k, error)` raises `error` at the k-th next `extend`, when the work is done but nothing was returned.
    """

    def __init__(self, backend):
        self.real, self.config, self.longest = backend, backend.config, backend.longest
        self.fail, self.calls = None, []
        self._past = {}

    def windows(self, state):
        return self._past.get(self.to_host(state).tobytes(), ())

    def start(self, batch=1, state=None, window=None, carried=0, opening=None):
        inner = self.real.start(batch, state, window, carried, opening)
        return Fed(inner, () if state is None else self.windows(state), carried, (None,) * inner.length)

    def extend(self, tokens, window, all_logits=False):
        logits, inner = self.real.extend(tokens, window.inner, all_logits)
        self.calls.append(len(tokens))
        if self.fail is not None:
            left, error = self.fail
            self.fail = (left - 1, error) if left > 1 else None
            if left == 1:
                raise error
        return logits, Fed(inner, window.past, window.carried, window.tokens + tuple(int(t) for t in tokens), window.folds)

    def rewind(self, window, length):
        return Fed(self.real.rewind(window.inner, length), window.past, window.carried, window.tokens[:length], window.folds)

    def fold(self, window):
        inner = self.real.fold(window.inner)
        folds = window.folds if inner.folded == window.inner.folded else (*window.folds, window.length)
        return Fed(inner, window.past, window.carried, window.tokens, folds)

    def memory(self, window):
        state = self.real.memory(window.inner)
        if window.folded > window.carried:
            self._past[self.to_host(state).tobytes()] = (*window.past, (window.tokens[: window.folded], window.carried, window.folds))
        return state

    def rows(self, window, first, count):
        return self.real.rows(window.inner, first, count)

    def commit(self, window):
        assert len(window.tokens) == window.length
        state = self.real.commit(window.inner)
        if window.length:
            self._past[self.to_host(state).tobytes()] = (*window.past, (window.tokens, window.carried, window.folds))
        return state

    def to_host(self, state):
        return self.real.to_host(state)

    def from_host(self, bank, written):
        return self.real.from_host(bank, written)

    def describe(self, window=None):
        return self.real.describe(window)


def recorded(model):
    """The same model behind a Recorder."""
    return replace(model, backend=Recorder(model.backend))


def replay(model, windows, tokens, carried, folds):
    """Bank after `windows`, each run afresh, and the logits (v,) after the unfinished one's tokens, None without any."""
    backend = getattr(model.backend, "real", model.backend)
    state, size = backend.memory(backend.start(1)), WINDOW
    for ids, known, marks in windows:
        state = backend.commit(run(backend, backend.start(1, state, size, known), ids, marks)[0])
    if not tokens:
        return backend.to_host(state), None
    return backend.to_host(state), run(backend, backend.start(1, state, size, carried), tokens, folds)[1]


def run(backend, window, ids, folds):
    """Feed a window, folded where it says; the window and the last logits (v,)."""
    logits, at = None, 0
    for stop in sorted({*folds, len(ids)}):
        if stop > at:
            known = min(max(window.carried if hasattr(window, "carried") else 0, at), stop)
            for begin, end in ((at, known), (known, stop)):
                if end > begin:
                    out, window = backend.extend(np.array(ids[begin:end]), window)
                    logits = out[0]
            at = stop
        if stop in folds:
            window = backend.fold(window)
    return window, logits
