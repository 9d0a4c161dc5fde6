"""The two rules over a backend that only counts: no ML library. A counter's logits name the last token and its place, its memory all tokens so far."""

from typing import NamedTuple

import numpy as np
import pytest

from lm2.models.errors import PromptError
from lm2.runtime.backend import MemoryState, check_rewind, check_room
from lm2.runtime.session.chunks import Chunks
from lm2.runtime.session.cursor import Cursor
from lm2.runtime.session.windows import Windows

SIZE, CHUNK = 32, 6


class Tokens(NamedTuple):
    """A window: `past` what the bank holds, `tokens` what was fed, `buffers` shared by all windows of one start."""

    past: tuple[int, ...]
    tokens: tuple[int, ...]
    folded: int
    carried: int
    size: int
    buffers: dict

    @property
    def length(self):
        return len(self.tokens)

    @property
    def stale(self):
        return self.buffers["folded"] != self.folded


class Counter:
    """A backend whose bank is the tuple of all tokens that were written. Like those with static buffers, a fold makes what was before it stale."""

    class config:
        class memory:
            chunk = CHUNK

    def __init__(self):
        self.log = []

    def start(self, batch=1, state=None, window=None, carried=0, opening=None):
        assert 0 <= carried < window and opening is None
        return Tokens((state or MemoryState((), 0)).bank, (), carried, carried, window, {"folded": carried})

    def extend(self, tokens, window, all_logits=False):
        assert len(tokens) and not window.stale
        assert window.length >= window.carried or window.length + len(tokens) <= window.carried, "carried tokens are fed by themselves"
        check_room(window.length, len(tokens), window.size, window.folded, CHUNK)
        window = window._replace(tokens=window.tokens + tuple(tokens.tolist()))
        self.log.append(len(tokens))
        return np.array([[window.tokens[-1], window.length]]), window

    def rewind(self, window, length):
        check_rewind(window.length, length, window.folded, window.carried)
        return window._replace(tokens=window.tokens[:length])

    def fold(self, window):
        if window.length <= window.folded:
            return window
        self.log.append("fold")
        window.buffers["folded"] = window.length
        return window._replace(past=window.past + window.tokens[window.folded :], folded=window.length)

    def memory(self, window):
        return MemoryState(window.past, len(window.past))

    def commit(self, window):
        past = window.past + window.tokens[window.folded :]
        return MemoryState(past, len(past))


class Whole(Counter):
    """Cell released: its chunk is its window, and it cannot fold."""

    class config:
        class memory:
            chunk = SIZE

    def extend(self, tokens, window, all_logits=False):
        window = window._replace(tokens=window.tokens + tuple(tokens.tolist()))
        assert window.length <= SIZE and not window.carried
        self.log.append(len(tokens))
        return np.array([[window.tokens[-1], window.length]]), window

    def fold(self, window):
        raise AssertionError("cell released was folded")


def windows(overlap=3, size=SIZE, **listeners):
    return Windows(Counter(), size, overlap, **listeners)


def chunks(overlap=3, **listeners):
    return Chunks(Whole(), SIZE, overlap, **listeners)


def ids(n, start=0):
    return tuple(range(start, start + n))


RULES = pytest.mark.parametrize("make", [windows, chunks])

# Both rules


@RULES
def test_new_is_empty(make):
    at = make().new()
    assert at == Cursor(MemoryState((), 0)) and at.filled == 0 and at.written == 0


@RULES
def test_append_feeds_nothing_until_it_must(make):
    fed = []
    f = make(on_feed=fed.append)
    at = f.append(f.new(), ids(SIZE))
    assert not fed and at.pending == ids(SIZE) and at.seen == SIZE
    at = f.append(at, [99])
    assert sum(fed) == SIZE and at.memory == MemoryState(ids(SIZE), SIZE) and at.pending == (29, 30, 31, 99)


@RULES
def test_splits_do_not_matter(make):
    """However a text comes in pieces and is flushed between: the same windows, the same memory, the same folds."""
    f = make()
    whole = f.flush(f.append(f.new(), ids(150)))
    at = f.new()
    for begin, end in ((0, 1), (1, 5), (5, 6), (6, 6), (6, 13), (13, 70), (70, 71), (71, 150)):
        at = f.flush(f.append(at, range(begin, end)))
    assert at.memory == whole.memory and at.tokens == whole.tokens and at.seen == whole.seen == 150
    assert (at.folds, at.carried) == (whole.folds, whole.carried)
    assert f.backend.memory(at.window) == f.backend.memory(whole.window)


@RULES
def test_a_cursor_is_never_changed(make):
    f = make()
    at = f.flush(f.append(f.new(), ids(10)))._replace(starts=(4,))
    before = repr(at._replace(window=None))
    f.append(at, ids(50))
    f.begin(at, ids(3), ids(25), ())
    f.close(at, ids(2))
    f.room(at, (1, 2), (), ())
    f.before_document(at, 30, ())
    assert repr(at._replace(window=None)) == before
    again = f.flush(at._replace(pending=(7,)))
    assert again.tokens == (*ids(10), 7), "what was folded since is run again"


@RULES
def test_flush_runs_the_window_again_when_it_is_gone(make):
    f = make()
    at = f.flush(f.append(f.new(), ids(10)))
    again = f.flush(f.append(at, [50]).at_rest())
    assert again.tokens == (*ids(10), 50) == again.window.tokens and again.logits.tolist() == [50, 11]
    assert f.flush(at) is at


@RULES
def test_logits_after_a_rewind_cost_one_token(make):
    fed = []
    f = make(on_feed=fed.append)
    at = f.flush(f.append(f.new(), ids(5)))
    at = at._replace(tokens=ids(3), window=f.backend.rewind(at.window, 3), logits=None)
    assert f.logits(at).logits.tolist() == [2, 3] and fed == [5, 1]
    assert f.logits(at).tokens == ids(3)


@RULES
def test_logits_of_nothing(make):
    with pytest.raises(PromptError, match="nothing to continue"):
        make().logits(make().new())


@RULES
@pytest.mark.parametrize("overlap", [-1, SIZE // 4 + 1])
def test_overlap_is_checked(make, overlap):
    with pytest.raises(PromptError, match=f"overlap {overlap} must be from 0 to a quarter of the window \\({SIZE // 4}\\)"):
        make(overlap)


# Windows: folds


def test_a_fold_is_only_marked_until_tokens_are_fed():
    told = []
    f = windows(on_write=lambda *a: told.append(a))
    at = f.mark(f.append(f.new(), ids(4)))
    assert at.folds == (4,) and at.written == 4 and not f.backend.log and not told
    assert f.mark(at) is at, "nothing new: no second fold"
    at = f.flush(at)
    assert f.backend.log == [4, "fold"] and told == [(4, 4)] and at.window.folded == 4 and at.memory.written == 0 and at.written == 4
    at = f.flush(f.append(at, ids(3, 4)))
    assert f.backend.log == [4, "fold", 3] and told == [(4, 4)]


def test_pending_tokens_stop_at_every_fold():
    f = windows()
    at = f.new()
    for n in (2, 3, 1):
        at = f.mark(f.append(at, ids(n)))
    f.flush(f.append(at, ids(4)))
    assert f.backend.log == [2, "fold", 3, "fold", 1, "fold", 4]


@pytest.mark.parametrize("n", [CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 2])
def test_a_chunk_without_a_fold_is_folded(n):
    """As soon as one more token comes, and at the same places however tokens come."""
    told = []
    f = windows(on_write=lambda *a: told.append(a))
    at = f.flush(f.append(f.new(), ids(n)))
    want = tuple(range(CHUNK, n, CHUNK))
    assert at.folds == want and told == [(CHUNK, k) for k in want]
    one = f.new()
    for i in range(n):
        one = f.flush(f.append(one, [i]))
    assert one.folds == want and one.window.folded == at.window.folded
    again = f.flush(at.at_rest())
    assert again.window.folded == at.window.folded and again.folds == want


def test_folds_of_a_turn_count_from_the_last_one():
    f = windows()
    at = f.flush(f.append(f.mark(f.append(f.new(), ids(4))), ids(9, 4)))
    assert at.folds == (4, 4 + CHUNK) and f.backend.log == [4, "fold", CHUNK, "fold", 3]


def test_running_a_window_again_tells_nobody():
    """A restore, an undo: what enters the memory again was told before; what comes after is told."""
    told = []
    f = windows(on_write=lambda *a: told.append(a))
    at = f.flush(f.append(f.mark(f.append(f.new(), ids(4))), ids(3, 4)))
    assert told == [(4, 4)]
    at = f.flush(at.at_rest())
    assert told == [(4, 4)]
    f.flush(f.mark(f.append(at.at_rest(), ids(2))))
    assert told == [(4, 4), (5, 9)]


def test_logits_where_the_last_token_is_in_the_memory():
    """It cannot be fed again: the window is run once more."""
    f = windows()
    at = f.flush(f.mark(f.append(f.new(), ids(5))))._replace(logits=None)
    got = f.logits(at)
    assert got.logits.tolist() == [4, 5] and f.backend.memory(got.window) == MemoryState(ids(5), 5)
    assert f.backend.log == [5, "fold", 5, "fold"]


def test_a_stale_window_is_run_again():
    """Two cursors of one window: the one that was left behind by a fold goes on from its own tokens."""
    f = windows()
    at = f.flush(f.append(f.new(), ids(4)))
    folded = f.flush(f.mark(f.append(at, [50])))
    assert at.window.stale and not folded.window.stale
    again = f.flush(f.append(at, [60, 61]))
    assert again.window.tokens == (*ids(4), 60, 61) and again.window.folded == 0 and again.logits.tolist() == [61, 6]
    assert f.backend.memory(folded.window).bank == (*ids(4), 50), "and the other is not touched"


def test_a_stale_window_is_not_taken_for_the_right_one():
    """Negative control of the test above: a backend that never says stale gives itself away."""
    f = windows()
    at = f.flush(f.append(f.new(), ids(4)))
    f.flush(f.mark(f.append(at, [50])))
    with pytest.raises(AssertionError):
        f.backend.extend(np.array([1]), at.window)


# Windows: slides


def turns(f, lengths, head=(90, 91)):
    at, begin = f.new(), 100
    for n in lengths:
        later = ids(n, begin)
        at = f.close(f.begin(at, (*head, *later), later, head), (80,), head)
        begin += 100
    return at


def test_a_slide_carries_the_head_and_the_last_whole_turns():
    slid, told = [], []
    f = windows(on_slide=slid.append, on_write=lambda *a: told.append(a))
    at = turns(f, (9, 6, 5))
    assert at.filled == 2 + 10 + 7 + 6 and at.starts == (2, 12, 19) and not slid
    before = at
    at = f.begin(at, ids(9, 400), ids(9, 400), (90, 91))
    assert slid == [15] and at.carried == 15 and at.folds == () and at.starts == (2, 9, 15)
    assert at.pending == (90, 91, *ids(6, 200), 80, *ids(5, 300), 80, *ids(9, 400)) and not at.tokens
    assert at.memory.bank == (90, 91, *ids(9, 100), 80, *ids(6, 200), 80, *ids(5, 300), 80) and at.memory.written == 25
    assert told[-1][1] == 25 and sum(n for n, _ in told) == 25
    assert at.seen == before.seen + 9, "carried tokens were counted before"
    at = f.flush(f.close(at, (80,)))
    assert at.memory.written == 25 and f.backend.memory(at.window).bank == (*at.memory.bank, *ids(9, 400), 80), "and are not written again"
    assert at.written == 35 and [n for n in f.backend.log if n != "fold"][-3:] == [15, CHUNK, 4], "carried tokens are fed in one call, whatever a chunk is"


def test_what_was_not_folded_is_before_a_slide():
    f = windows()
    at = f.append(turns(f, (9,)), ids(3, 500))
    at = f.begin(at, ids(20, 600), ids(20, 600), (90, 91))
    assert at.memory.bank == (90, 91, *ids(9, 100), 80, *ids(3, 500)) and at.carried < 15


def test_a_turn_longer_than_half_a_window_goes_on_whole_where_it_may():
    f = windows()
    at = f.begin(turns(f, (4,)), (), ids(20, 200), (90, 91))
    assert at.starts == (2, 7) and at.filled == 27
    moved = f.slide(at, (90, 91), SIZE - 4)
    assert moved.pending == (90, 91, *ids(20, 200)) and moved.starts == (2,) and moved.carried == 22
    cut = f.slide(at, (90, 91), 20)
    assert cut.pending == (90, 91, *ids(14, 206)) and cut.starts == () and cut.carried == 16


def test_a_first_turn_is_cut_not_carried_for_ever():
    """One turn from the window's start fills it: its end goes on, so that there is room."""
    f = windows()
    at = f.append(f.begin(f.new(), (90, 91, *ids(20)), (), (90, 91)), ids(10, 20))
    assert at.filled == SIZE
    at = f.room(at, ids(20), ids(10, 20), (90, 91))
    assert at.pending == (90, 91, *ids(14, 16)) and at.carried == 16 and at.memory.written == SIZE


@pytest.mark.parametrize("overlap", [0, 1, 8])
@pytest.mark.parametrize("head", [(), (70, 71)])
def test_a_long_text_is_cut(overlap, head):
    """Every token is written once, in order; each window begins with the head and the overlap, carried."""
    f = windows(overlap)
    at = f.append(f.new(), ids(60), head)
    carried = len(head) + overlap
    assert at.carried == carried and at.pending[: len(head)] == head and at.seen == 60
    assert at.memory.bank == ids(len(at.memory.bank)) and at.pending[len(head) : carried] == at.memory.bank[len(at.memory.bank) - overlap :]
    assert at.memory.bank + at.pending[carried:] == ids(60)


def test_undo_falls_on_a_fold():
    """What a session does: a cursor kept at a turn's end is run again, and everything is as it was."""
    f = windows()
    kept = f.flush(turns(f, (9, 6))).at_rest()
    want = f.flush(kept)
    after = f.flush(turns(f, (9, 6, 5, 9)))
    assert after.memory.written
    got = f.flush(kept)
    assert got.window.tokens == want.window.tokens and f.backend.memory(got.window) == f.backend.memory(want.window)
    assert f.backend.memory(got.window).written == kept.written == 19


# Chunks


@pytest.mark.parametrize("overlap", [0, 1, 8])
@pytest.mark.parametrize("head", [(), (70, 71)])
def test_chunks_are_cut_and_written_whole(overlap, head):
    f = chunks(overlap)
    at = f.append(f.new(), ids(100), head)
    step = SIZE - overlap - len(head)
    assert at.memory.written == SIZE * -(-(100 - SIZE) // step) and at.seen == 100 and at.carried == 0 and at.folds == ()
    kept = at.memory.bank[:SIZE]
    for i in range(SIZE, len(at.memory.bank), SIZE):
        chunk = at.memory.bank[i : i + SIZE]
        assert chunk[: len(head)] == head and chunk[len(head) : len(head) + overlap] == kept[len(kept) - overlap :]
        kept += chunk[len(head) + overlap :]
    assert kept + at.pending[len(head) + overlap :] == ids(100)


def test_commit_says_what_it_commits():
    told = []
    f = chunks(on_write=lambda *a: told.append(a))
    at = f.commit(f.append(f.new(), ids(5)))
    assert told == [(5, 5)] and at == Cursor(MemoryState(ids(5), 5), seen=5)
    assert f.commit(at).memory == at.memory and told == [(5, 5)], "an empty chunk is not committed"
    assert f.commit(f.append(at, ids(5, 5)), 2).memory == MemoryState(ids(7), 7)


def test_a_full_chunk_moves_the_turn():
    f = chunks()
    at = f.append(f.new(), ids(9))
    at = f.append(at._replace(starts=(9,)), ids(SIZE - 9, 9))
    moved = f.room(at, (50, 51), ids(6, 60), ())
    assert moved.memory == MemoryState(ids(9), 9) and moved.pending == (50, 51, *ids(6, 60)) and moved.starts == (0,) and moved.seen == SIZE
    cut = f.room(at, ids(30, 200), (), (70,))
    assert cut.memory.bank == ids(SIZE) and cut.pending == (70, 29, 30, 31), "a turn that will not fit is cut"


def test_closing_tokens_without_room_are_left_out():
    f = chunks()
    at = f.append(f.new(), ids(SIZE - 1))
    assert f.close(at, (80, 81)) is at and f.close(at, (80,)).filled == SIZE
