"""The chunk rule over a backend that only counts: no ML library. A counter's logits name the last token, its memory all tokens so far."""

from typing import NamedTuple

import numpy as np
import pytest

from lm2.models.errors import PromptError
from lm2.runtime.backend import MemoryState
from lm2.runtime.session.cursor import Cursor, Feeder

SIZE = 16


class Tokens(NamedTuple):
    past: tuple[int, ...]
    chunks: int
    tokens: tuple[int, ...] = ()

    @property
    def length(self):
        return len(self.tokens)


class Counter:
    """A backend whose bank is the tuple of all tokens committed."""

    class config:
        class memory:
            chunk = SIZE

    def start(self, batch=1, state=None):
        return Tokens(*(state or MemoryState((), 0)))

    def extend(self, tokens, chunk, all_logits=False):
        assert len(tokens) and chunk.length + len(tokens) <= SIZE
        chunk = chunk._replace(tokens=chunk.tokens + tuple(tokens.tolist()))
        return np.array([[chunk.tokens[-1], chunk.length]]), chunk

    def rewind(self, chunk, length):
        assert 0 <= length <= chunk.length
        return chunk._replace(tokens=chunk.tokens[:length])

    def commit(self, chunk):
        return MemoryState(chunk.past + chunk.tokens, chunk.chunks + bool(chunk.tokens))


def feeder(overlap=3, **listeners):
    return Feeder(Counter(), overlap, **listeners)


def ids(n, start=0):
    return tuple(range(start, start + n))


def test_new_is_empty():
    at = feeder().new()
    assert at == Cursor(MemoryState((), 0)) and at.filled == 0


def test_append_feeds_nothing_until_it_must():
    fed = []
    f = feeder(on_feed=fed.append)
    at = f.append(f.new(), ids(SIZE))
    assert not fed and at.pending == ids(SIZE) and at.seen == SIZE
    at = f.append(at, [99])
    assert fed == [SIZE] and at.memory == MemoryState(ids(SIZE), 1) and at.pending == (13, 14, 15, 99)


@pytest.mark.parametrize("overlap", [0, 1, 4])
@pytest.mark.parametrize("head", [(), (70, 71)])
def test_append_cuts(overlap, head):
    f = feeder(overlap)
    at = f.append(f.new(), ids(60), head)
    step = SIZE - overlap - len(head)
    assert at.memory.chunks == -(-(60 - SIZE) // step) and at.seen == 60
    assert at.pending[: len(head) + overlap] == (*head, *at.memory.bank[len(at.memory.bank) - overlap :])
    assert at.pending[-1] == 59
    kept = at.memory.bank[:SIZE]
    for i in range(SIZE, len(at.memory.bank), SIZE):
        chunk = at.memory.bank[i : i + SIZE]
        assert chunk[: len(head)] == head and chunk[len(head) : len(head) + overlap] == kept[len(kept) - overlap :]
        kept += chunk[len(head) + overlap :]
    assert kept + at.pending[len(head) + overlap :] == ids(60)


def test_splits_do_not_matter():
    f = feeder()
    whole = f.append(f.new(), ids(100))
    at = f.new()
    for begin, end in ((0, 1), (1, 15), (15, 16), (16, 16), (16, 70), (70, 100)):
        at = f.flush(f.append(at, range(begin, end)))
    assert at.memory == whole.memory and at.tokens == f.flush(whole).tokens and at.seen == whole.seen


def test_a_cursor_is_never_changed():
    f = feeder()
    at = f.flush(f.append(f.new(), ids(10)))
    before = repr(at)
    f.append(at, ids(50))
    f.commit(at)
    f.commit(at, 4)
    f.move(at._replace(turn=4), (1, 2))
    f.cut(at)
    assert repr(at) == before


def test_flush_runs_the_chunk_again_when_it_is_gone():
    f = feeder()
    at = f.flush(f.append(f.new(), ids(10)))
    again = f.flush(f.append(at, [50]).at_rest())
    assert again.tokens == (*ids(10), 50) and again.chunk.tokens == again.tokens and again.logits.tolist() == [50, 11]
    assert f.flush(at) is at


def test_logits_after_a_rewind_cost_one_token():
    fed = []
    f = feeder(on_feed=fed.append)
    at = f.flush(f.append(f.new(), ids(10)))
    at = at._replace(tokens=ids(6), chunk=f.backend.rewind(at.chunk, 6), logits=None)
    assert f.logits(at).logits.tolist() == [5, 6] and fed == [10, 1]
    assert f.logits(at).tokens == ids(6)


def test_logits_of_nothing():
    with pytest.raises(PromptError, match="nothing to continue"):
        feeder().logits(feeder().new())


def test_commit_says_what_it_commits():
    told = []
    f = feeder(on_commit=lambda *a: told.append(a))
    at = f.commit(f.append(f.new(), ids(5)))
    assert told == [(1, 5)] and at == Cursor(MemoryState(ids(5), 1), seen=5)
    assert f.commit(at).memory == at.memory and told == [(1, 5)], "an empty chunk is not committed"
    assert f.commit(f.append(at, ids(5, 5)), 2).memory == MemoryState(ids(7), 2)


def test_move_ends_the_chunk_where_the_turn_began():
    f = feeder()
    at = f.append(f.new(), ids(SIZE))._replace(turn=9)
    at = f.move(at, (50, *ids(7, 9)))
    assert at.memory == MemoryState(ids(9), 1) and at.pending == (50, *ids(7, 9)) and at.turn == 0 and at.seen == SIZE


@pytest.mark.parametrize("overlap", [-1, SIZE // 4 + 1])
def test_overlap_is_checked(overlap):
    with pytest.raises(PromptError, match=f"overlap {overlap} must be from 0 to a quarter of a chunk"):
        feeder(overlap)
