"""A model whose memory is made by hand: it knows who went where, and forgets on demand. For testing what is measured, not models."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import tiny
import tiny_model

from lm2.models.tasks.recall import PEOPLE, ROOMS
from lm2.runtime.backend import Description, MemoryState

CHUNK = 96
END = 0


class Words:
    """A tokenizer with one id a word or mark, made as words come."""

    def __init__(self):
        self.ids = {"<end>": END}

    def encode(self, text):
        return [self.ids.setdefault(word, len(self.ids)) for word in re.findall(r"\w+|[^\w\s]", text)]

    def decode(self, ids, skip_special=False):
        names = {i: word for word, i in self.ids.items()}
        return " ".join(names[i] for i in ids)


class Chunk(SimpleNamespace):
    """tokens (b, t) so far, and the bank they read. Never folded: an evaluation reads whole chunks."""

    folded = 0

    @property
    def length(self):
        return self.tokens.shape[1]


class Clerk:
    """A backend that writes down where people go: row p of the only bank has the room of person p, as a token id, or 0.

    forgets: each chunk's notes replace all of those before it. Answers `Where is X?` with the room, else with `nowhere`.
    """

    def __init__(self, words, forgets=False):
        self.words, self.forgets = words, forgets
        self.config = replace(tiny.config(chunk=CHUNK, memory_layers=(0,), vocab=5000), max_position_embeddings=CHUNK)
        self.people = [words.encode(name)[0] for name in PEOPLE]
        self.rooms = {words.encode(name)[0] for name in ROOMS}
        self.nowhere = words.encode("nowhere")[0]
        self.fed = 0
        self.fail_after = None

    def start(self, batch=1, state=None, window=None, carried=0, opening=None):
        assert window in (None, CHUNK) and not carried and opening is None
        bank = np.zeros(self.config.bank_shape(batch), np.float32) if state is None else state.bank
        assert bank.shape == self.config.bank_shape(batch)
        return Chunk(bank=bank, written=0 if state is None else state.written, tokens=np.zeros((batch, 0), np.int64))

    def extend(self, tokens, chunk, all_logits=False):
        tokens = np.concatenate([chunk.tokens, np.atleast_2d(tokens)], axis=1)
        assert tokens.shape[1] <= CHUNK and not all_logits
        self.fed += tokens.size - chunk.tokens.size
        logits = np.zeros((len(tokens), self.config.vocab_size), np.float32)
        for b, row in enumerate(tokens.tolist()):
            logits[b, END if any(i in self.rooms or i == self.nowhere for i in row) else self._room(chunk.bank[0, b], row)] = 1
        return logits, Chunk(bank=chunk.bank, written=chunk.written, tokens=tokens)

    def _room(self, bank, row):
        asked = [p for p, i in enumerate(self.people) if i in row]
        return int(bank[asked[-1], 0]) if asked and bank[asked[-1], 0] else self.nowhere

    def rewind(self, chunk, length):
        return Chunk(bank=chunk.bank, written=chunk.written, tokens=chunk.tokens[:, :length])

    def commit(self, chunk):
        bank = np.zeros_like(chunk.bank) if self.forgets and chunk.length else chunk.bank.copy()
        for b, row in enumerate(chunk.tokens.tolist()):
            who = None
            for i in row:
                who = self.people.index(i) if i in self.people else who
                if i in self.rooms and who is not None:
                    bank[0, b, who, 0], who = i, None
        return MemoryState(bank, chunk.written + chunk.length)

    def to_host(self, state):
        return state.bank.copy()

    def from_host(self, bank, written):
        return MemoryState(bank.copy(), written)

    def describe(self, window=None):
        return Description("clerk", "cpu", "float32", "none", {}, 1, 1)


def whole_windows(tmp_path_factory):
    """Cell -> a tiny model without end tokens whose chunk is a whole window."""
    folder = tmp_path_factory.mktemp("whole")
    made = {cell: tiny_model.make(folder / cell, cell, chunk=tiny_model.WINDOW) for cell in tiny_model.CELLS}
    return {cell: replace(tiny_model.load_tiny(path), eos=frozenset()) for cell, path in made.items()}


def clerk_model(forgets=False):
    """A Model, as far as an evaluation looks at one, on a Clerk."""
    words = Words()
    backend = Clerk(words, forgets)
    return SimpleNamespace(
        config=backend.config, backend=backend, text=words, template=None, end_of_turn="", eos=frozenset([END]), name="clerk",
        fingerprint="0" * 64, encode=lambda text, add_special=False, plain=False: words.encode(text),
    )  # fmt: skip
