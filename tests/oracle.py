"""The rules of windows and of chunks, written a second time, and what a session's place must be equal to. For sessions over a `tiny_model.Recorder`."""

from compare import assert_close
from tiny_model import FOLD, WINDOW, replay
from tiny_tokenizer import IM_END, IM_START

RESERVE = WINDOW // 8
CLOSING = [IM_END, 10]


def oracle(session, overlap=WINDOW // 8):
    """The oracle of a session's rule."""
    kind = Chunks if session.model.config.memory.cell == "released" else Windows
    return kind(overlap, session.system)


class Rule:
    """Lists only, one token after another. `done`: windows that were left, (tokens, carried, folds); `open`: the tokens of the one in hand."""

    def __init__(self, overlap=WINDOW // 8, system=None):
        self.overlap, self.head = overlap, chatml([("system", system)] if system else [], answer=False)
        self.done, self.open, self.carried, self.folds, self.starts = [], [], 0, [], []

    def standing(self):
        return tuple(self.done), tuple(self.open), self.carried, tuple(self.folds)


class Windows(Rule):
    """Cell gated."""

    def say(self, message, answer):
        later = chatml([("user", message)])
        if self.open and len(self.open) + len(later) + RESERVE > WINDOW:
            self.slide(WINDOW - RESERVE - len(later))
        ids = later if self.open else self.head + later
        self.starts.append(len(self.open) or len(self.head))
        self.put(ids, self.head if len(ids) > WINDOW else [])
        for token in answer:
            if len(self.open) == WINDOW:
                self.slide(WINDOW - RESERVE)
            self.add(token)
        if len(self.open) + len(CLOSING) > WINDOW:
            self.slide(WINDOW - RESERVE)
        for token in CLOSING:
            self.add(token)
        self.fold()

    def plain(self, prompt, answer):
        self.put(prompt, [])
        for token in answer:
            if len(self.open) == WINDOW:
                self.slide(WINDOW - RESERVE, [])
            self.add(token)

    def put(self, ids, head):
        for token in ids:
            if len(self.open) == WINDOW:
                self.leave(head, self.open[WINDOW - self.overlap :] if self.overlap else [], [])
            self.add(token)

    def add(self, token):
        if len(self.open) >= self.carried and len(self.open) - self.last() == FOLD:
            self.fold()
        self.open.append(token)

    def last(self):
        return self.folds[-1] if self.folds else self.carried

    def fold(self):
        if len(self.open) > self.last():
            self.folds.append(len(self.open))

    def slide(self, most, head=None):
        """The last whole turns within half a window; else the last one within `most`; else the end of it."""
        head, half = self.head if head is None else head, min(most, WINDOW // 2)
        size = {s: len(head) + len(self.open) - s for s in self.starts if s > 0}
        keep = [s for s in size if size[s] <= half] or [s for s in [max(size, default=0)] if s and s == self.starts[-1] and size[s] <= most]
        if keep:
            begin = min(keep)
            self.leave(head, self.open[begin:], [s - begin + len(head) for s in self.starts if s >= begin])
        else:
            self.leave(head, self.open[len(self.open) - max(0, half - len(head)) :] if half > len(head) else [], [])

    def leave(self, head, tail, starts):
        self.fold()
        tokens, carried = tuple(self.open), self.carried
        if self.folds:
            self.done.append((tokens, carried, tuple(self.folds)))
        self.open = [*head, *tail]
        self.carried, self.folds, self.starts = len(self.open), [], starts


class Chunks(Rule):
    """Cell released."""

    def say(self, message, answer):
        later = chatml([("user", message)])
        first, began = self.head + later, len(self.open)
        if self.open and began + len(later) + RESERVE > WINDOW:
            self.end()
            began = 0
        head = self.head if len(first if not began else later) > WINDOW else []
        for token in later if began else first:
            if len(self.open) == WINDOW:
                self.cut(head)
                began = 0
            self.open.append(token)
        for i, token in enumerate(answer):
            if len(self.open) == WINDOW and began and len(first) + i <= WINDOW - RESERVE:
                self.open = self.open[:began]
                self.end()
                self.open, began = first + list(answer[:i]), 0
            elif len(self.open) == WINDOW:
                self.cut(self.head)
                began = 0
            self.open.append(token)
        if len(self.open) + len(CLOSING) <= WINDOW:
            self.open += CLOSING

    def plain(self, prompt, answer):
        for token in [*prompt, *answer]:
            if len(self.open) == WINDOW:
                self.cut([])
            self.open.append(token)

    def end(self):
        self.done.append((tuple(self.open), 0, ()))
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
    """The windows left behind, and the one in hand: its tokens, how many were carried, and where it is folded."""
    at = session.feeder.flush(session.at)
    return session.model.backend.windows(at.memory), at.tokens, at.carried, at.folds


def written(session):
    """Every token that entered the memory or stands in the window, in order, each once (a cut's overlap twice)."""
    left, tokens, carried, _ = standing(session)
    return [t for ids, known, _ in left for t in ids[known:]] + list(tokens[carried:])


def check(session):
    """The memory and the next logits are those of the same tokens fed afresh, window by window."""
    left, tokens, carried, folds = standing(session)
    assert session.at.filled <= WINDOW
    if session.model.config.memory.cell != "released":
        assert session.at.memory.written == sum(len(ids) - known for ids, known, _ in left)
    bank, logits = replay(session.model, left, tokens, carried, folds)
    assert_close("bank", session.model.backend.to_host(session.at.memory), bank, 2e-5, 1e-4)
    if logits is not None:
        assert_close("logits", session.feeder.logits(session.at).logits, logits, 1e-4, 1e-4)
