"""The chunk rule, written a second time, and what a session's place must be equal to. For sessions over a `tiny_model.Recorder`."""

from compare import assert_close
from tiny_model import CHUNK, replay
from tiny_tokenizer import IM_END, IM_START

RESERVE = CHUNK // 8


class Oracle:
    """The chunk rule with lists only, one token after another. `done`: finished chunks; `open`: the one in hand."""

    def __init__(self, overlap=CHUNK // 8, system=None):
        self.overlap, self.head = overlap, chatml([("system", system)] if system else [], answer=False)
        self.done, self.open = [], []

    def say(self, message, answer):
        later = chatml([("user", message)])
        first, began = self.head + later, len(self.open)
        if self.open and began + len(later) + RESERVE > CHUNK:
            self.end()
            began = 0
        head = self.head if len(first if not began else later) > CHUNK else []
        for token in later if began else first:
            if len(self.open) == CHUNK:
                self.cut(head)
                began = 0
            self.open.append(token)
        for i, token in enumerate(answer):
            if len(self.open) == CHUNK and began and len(first) + i <= CHUNK - RESERVE:
                self.open = self.open[:began]
                self.end()
                self.open, began = first + list(answer[:i]), 0
            elif len(self.open) == CHUNK:
                self.cut(self.head)
                began = 0
            self.open.append(token)
        closing = [IM_END, 10]
        if len(self.open) + len(closing) <= CHUNK:
            self.open += closing

    def plain(self, ids):
        for token in ids:
            if len(self.open) == CHUNK:
                self.cut([])
            self.open.append(token)

    def end(self):
        self.done.append(tuple(self.open))
        self.open = []

    def cut(self, head):
        tail = self.open[len(self.open) - self.overlap :] if self.overlap else []
        self.end()
        self.open = list(head) + tail


def chatml(messages, answer=True):
    """Token ids of ChatML with one token a byte, written by hand."""
    ids = []
    for role, content in messages:
        ids += [IM_START, *f"{role}\n{content}".encode(), IM_END, 10]
    return [*ids, IM_START, *b"assistant\n"] if answer else ids


def standing(session):
    """Chunks committed, and the tokens of the unfinished one."""
    return session.model.backend.chunks(session.at.memory), session.at.tokens + session.at.pending


def check(session):
    """The memory and the next logits are those of the same tokens fed afresh, chunk by chunk."""
    chunks, unfinished = standing(session)
    assert len(chunks) == session.at.memory.chunks and session.at.filled <= CHUNK
    bank, logits = replay(session.model, chunks, unfinished)
    assert_close("bank", session.model.backend.to_host(session.at.memory), bank, 2e-5, 1e-4)
    if logits is not None:
        assert_close("logits", session.feeder.logits(session.at).logits, logits, 1e-4, 1e-4)
