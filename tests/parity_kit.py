"""Tiny models on two backends for the parity tests, and mirrors that are wrong in one place each.

The mutants reach into the MLX mirror on purpose: product code has no switch that makes it wrong.
"""

from dataclasses import replace

import tiny
import tiny_tokenizer

from lm2.models.config import RopeConfig
from lm2.models.weights import random_model, save_folder
from lm2.runtime.loading import load
from lm2.runtime.parity.sides import Side, same_model


def folder(path, cell="gated", talking=False, seed=3, **fields):
    """A random model of one of `tiny.CELLS`, with the byte-level tokenizer and its template if `talking`; returns the folder."""
    config = replace(tiny.CELLS[cell], **({"vocab_size": tiny_tokenizer.VOCAB} if talking else {}), **fields)
    save_folder(random_model(config, seed), path)
    if talking:
        tiny_tokenizer.make(path)
    return path


def sides(path, first="torch", second="mlx", dtype="float32"):
    """Both backends on a folder, as `lm2 parity` loads them."""
    reference = Side(first, load(path, first, "cpu", dtype, 1 if first == "torch" else 0))
    return reference, same_model(reference, load(path, second, "cpu", dtype, 1 if second == "torch" else 0), second)


def swap_gates(monkeypatch):
    """Input and forget gate exchanged."""
    from lm2.lm2_mlx import memory

    right = memory.gated_memory_update
    monkeypatch.setattr(memory, "gated_memory_update", lambda i, f, z, old: right(f, i, z, old))


def drop_output_gate(monkeypatch):
    """All that is read joins the attention output."""
    from lm2.lm2_mlx.memory import GatedMemory

    right = GatedMemory.step

    def step(self, x, k, v, looks=None):
        seen, _, read = right(self, x, k, v, looks)
        return seen, read, read

    monkeypatch.setattr(GatedMemory, "step", step)


def deaf_to_topics(monkeypatch):
    """Memories are read by the token alone."""
    from lm2.lm2_mlx.memory import GatedMemory

    right = GatedMemory.step
    monkeypatch.setattr(GatedMemory, "step", lambda self, x, k, v, looks=None: right(self, x, k, v))


def drop_old_topics(monkeypatch):
    """Nothing is kept of what a row of topics was before it is written again."""
    from lm2.lm2_mlx.topics import Topics

    monkeypatch.setattr(Topics, "rows", lambda self, features, told, old: told * self.write(features))


def topics_of_everything(monkeypatch):
    """A row of topics is written whole, whatever the first memory's input gate says."""
    import mlx.core as mx

    from lm2.lm2_mlx.topics import Topics

    right = Topics.rows
    monkeypatch.setattr(Topics, "rows", lambda self, features, told, old: right(self, features, mx.ones_like(told), old))


def topics_by_another_gate(monkeypatch):
    """A row of topics is written as far as the last memory's input gate is open, not the first's."""
    from lm2.lm2_mlx.memory import GatedMemory
    from lm2.lm2_mlx.topics import Topics

    rewrite, rows, gates = GatedMemory.rewrite, Topics.rows, []

    def noted(self, u, read, old):
        new, told = rewrite(self, u, read, old)
        gates.append(told)
        return new, told

    monkeypatch.setattr(GatedMemory, "rewrite", noted)
    monkeypatch.setattr(Topics, "rows", lambda self, features, told, old: rows(self, features, gates[-1], old))


def shift_rows(monkeypatch):
    """Row t is written where row t + 1 belongs."""
    import mlx.core as mx

    from lm2.lm2_mlx import model

    right = model.placed
    monkeypatch.setattr(model, "placed", lambda bank, rows, first: right(bank, mx.roll(rows, 1, axis=2), first))


def wrong_theta(monkeypatch):
    """A reader that does not find rope_theta and takes 10000."""
    from lm2.lm2_mlx import model

    right = model.rope_tables
    monkeypatch.setattr(model, "rope_tables", lambda config, n: right(replace(config, rope=RopeConfig(10000.0)), n))


def update_before_read(monkeypatch):
    """The chunk's own rows are written before it reads: a token sees what should be read in the next chunk only."""
    import mlx.core as mx

    from lm2.lm2_mlx.model import LM2

    right = LM2._layers

    def layers(self, ids, chunk, past, alone):
        right(self, ids, chunk, past, alone)
        bank, _ = self.commit(chunk._replace(length=past + ids.shape[1]))
        reads = tuple(self.blocks[i].memory.keys_values(bank[j]) for i, j in self.bank_of.items())
        for j in self.bank_of.values():
            chunk.buffers.arrays.setdefault(f"read{j}", mx.zeros((ids.shape[0], self.config.memory.chunk, self.config.hidden_size)))
        return right(self, ids, chunk._replace(reads=reads), past, alone)

    monkeypatch.setattr(LM2, "_layers", layers)


def write_carried_tokens(monkeypatch):
    """Carried tokens are taken for new ones: they are written a second time, by the first fold."""
    from lm2.lm2_mlx.model import LM2

    right = LM2.start
    monkeypatch.setattr(LM2, "start", lambda self, bank, written=0, window=None, carried=0, *more: right(self, bank, written, window, 0, *more))


def stale_reads(monkeypatch):
    """A fold enters its rows and goes on reading the bank as it was."""
    from lm2.runtime.backends.mlx_backend import MLXBackend

    right = MLXBackend.fold
    monkeypatch.setattr(MLXBackend, "fold", lambda self, w: (f := right(self, w))._replace(reads=w.reads if f.folded != w.folded else f.reads))


def forget_the_pointer(monkeypatch):
    """A fold enters its rows where the window began, not after those of the fold before."""
    from lm2.lm2_mlx.model import LM2

    right = LM2.fold
    monkeypatch.setattr(LM2, "fold", lambda self, s: right(self, s)._replace(written=s.written))


def pointer_off_by_one(monkeypatch):
    """A memory that comes from elsewhere is written one row further."""
    from lm2.runtime.backends.mlx_backend import MLXBackend

    right = MLXBackend.from_host
    monkeypatch.setattr(MLXBackend, "from_host", lambda self, bank, written: right(self, bank, written + 1))


def lose_the_head(monkeypatch, side="mlx"):
    """A slide goes on with the last turns alone."""
    from lm2.runtime.session.windows import Windows

    right = Windows._next

    def slid(self, at, head, begin, starts):
        lost = head if type(self.backend).__name__ != "MLXBackend" else ()
        return right(self, at, lost, begin, starts)

    monkeypatch.setattr(Windows, "_next", slid)


def forget_a_key(monkeypatch):
    """Each call loses the key before it: a chunk in one call is right, a chunk in parts is not."""
    from lm2.lm2_mlx.window import Buffers

    right = Buffers.put

    def put(self, name, value, past, axis):
        out = right(self, name, value, past, axis)
        if past and name == "keys1":
            self.arrays[name][:, :, past - 1] = 0
            out = self.arrays[name][:, :, : past + value.shape[axis]]
        return out

    monkeypatch.setattr(Buffers, "put", put)
