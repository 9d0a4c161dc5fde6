"""Whose a row is, told from the bank before and after a fold: rows made of known parts, and what forgetting then takes."""

import numpy as np
import pytest

from lm2.runtime.session.ledger import HEAD, PARTS, UNKNOWN, Ledger, heard, moved, spans_of, turns_of

N, D, EPS = 8, 64, 1e-6


def directions(count, seed=0):
    """Orthogonal rows of RMS 1, (count, D): parts of a row can then be told apart exactly."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((D, count)))
    return q.T * np.sqrt(D)


def fold(ledger, bank, first, parts, turns, tokens=None):
    """Fold rows of (kept share of the old row, content (D,)) in both banks; the ledger and the bank after it."""
    places = (first + np.arange(len(parts))) % N
    before, after = bank[:, places], bank.copy()
    for at, (keep, content) in zip(places, parts, strict=True):
        after[:, at] = keep * bank[:, at] + content
    ids = tokens or [100 + first + i for i in range(len(parts))]
    return ledger.folded(first, ids, np.array(turns), before, after[:, places], EPS), after


@pytest.fixture
def empty():
    return Ledger.empty(N), np.zeros((2, N, D))


def owners(ledger):
    return ledger.rows["turns"][:, 0].tolist()


def test_a_token_owns_what_it_wrote(empty):
    e = directions(3)
    ledger, _ = fold(*empty, 5, [(1.0, e[0]), (1.0, 0.5 * e[1]), (1.0, 0 * e[2])], [1, 1, 2])
    assert owners(ledger) == [0, 0, 0, 0, 0, 1, 1, 2]
    assert ledger.rows["number"].tolist() == [-1] * 5 + [5, 6, 7] and ledger.rows["token"].tolist() == [-1] * 5 + [105, 106, 107]
    assert ledger.rows["sizes"][5:, 0] == pytest.approx([1, 0.5, 0], abs=1e-5) and not ledger.rows["sizes"][:, 1:].any()
    assert ledger.parts(1).sum() == pytest.approx(1.5, abs=1e-5) and ledger.owned(2).tolist() == [False] * 7 + [True]


def test_an_old_token_outlives_weak_ones_and_fades(empty):
    e = directions(4)
    ledger, bank = fold(*empty, 0, [(1.0, e[0])], [1])
    ledger, bank = fold(ledger, bank, N, [(0.8, 0.1 * e[1])], [2])
    row = ledger.rows[0]
    assert (row["number"], row["token"], row["turns"].tolist()) == (0, 100, [1, 2, 0, 0])
    size = heard(bank[:, :1], EPS)[0]
    assert row["sizes"][:2] == pytest.approx([0.8, 0.1], rel=1e-4) and np.hypot(0.8, 0.1) == pytest.approx(size, rel=1e-4)
    ledger, bank = fold(ledger, bank, 2 * N, [(0.5, 0.9 * e[2])], [3])
    row = ledger.rows[0]
    assert (row["number"], row["token"], row["turns"].tolist()) == (2 * N, 100 + 2 * N, [3, 1, 2, 0])
    assert row["sizes"][1] / row["sizes"][2] == pytest.approx(8, rel=1e-3), "what was there fades together"


def test_a_row_that_is_wiped_is_the_new_tokens(empty):
    e = directions(2)
    ledger, bank = fold(*empty, 0, [(1.0, e[0])], [1])
    ledger, bank = fold(ledger, bank, N, [(0.0, 0 * e[1])], [2])
    assert owners(ledger)[0] == 2 and not ledger.rows["sizes"].any() and not ledger.knows(1)


def test_more_turns_than_parts(empty):
    e = directions(PARTS + 2)
    ledger, bank = empty
    for turn in range(1, PARTS + 3):
        ledger, bank = fold(ledger, bank, (turn - 1) * N, [(1.0, e[turn - 1] * (1.0 if turn == 1 else 0.9 - 0.1 * turn))], [turn])
    assert ledger.rows["turns"][0].tolist() == [1, 2, 3, 4][:PARTS] and owners(ledger)[0] == 1
    assert (np.diff(ledger.rows["sizes"][0]) <= 0).all()


@pytest.mark.parametrize("size", [0.3, 2.0])
def test_a_turn_that_goes_round_is_counted_once(empty, size):
    e = directions(3)
    ledger, bank = fold(*empty, 0, [(1.0, e[0])], [1])
    ledger, bank = fold(ledger, bank, N, [(1.0, 0.2 * e[1])], [2])
    ledger, bank = fold(ledger, bank, 2 * N, [(1.0, size * e[2])], [1])
    row = ledger.rows[0]
    assert row["turns"].tolist() == [1, 2, 0, 0] and row["number"] == (2 * N if size > 1 else 0)
    assert row["sizes"][:2] == pytest.approx([np.hypot(1, size), 0.2], rel=1e-4)


def test_forgetting_takes_owned_rows_and_those_it_has_a_good_part_of(empty):
    e = directions(6)
    ledger, bank = fold(*empty, 0, [(1.0, e[i]) for i in range(4)], [1, 1, 1, 2])
    ledger, bank = fold(ledger, bank, N, [(0.0, e[4]), (0.5, e[4]), (0.05, e[4]), (0.05, e[4])], [3, 3, 3, 3])
    assert ledger.of(1).tolist() == [False, True] + [False] * 6, "a tenth of a row and more"
    assert ledger.knows(1) and ledger.knows(2)
    gone = ledger.without(1)
    assert not gone.knows(1) and not (gone.rows["turns"] == 1).any() and gone.knows(2)
    assert gone.rows[1] == Ledger.empty(1).rows[0] and owners(gone)[0] == owners(gone)[2] == 3
    assert ledger.knows(1), "the ledger before stays as it was"
    with pytest.raises(ValueError, match="read-only"):
        ledger.rows["number"][0] = 7


def test_what_a_reader_does_not_hear():
    bank = np.stack([np.full((1, D), size) for size in (1.0, 1e-2, 1e-3, 1e-4, 0.0)], axis=1)  # (1, 5, D)
    assert heard(bank, EPS) == pytest.approx([1, 1e-2, 1e-3 / np.sqrt(2), 1e-5, 0], rel=0.01, abs=1e-9)
    assert heard(np.zeros((0, 3, D)), EPS).tolist() == [0, 0, 0]


def test_of_older_files_nothing_is_known():
    bank = np.zeros((2, N, D))
    bank[:, 2] = 0.5
    ledger = Ledger.unknown(bank, EPS)
    assert owners(ledger) == [HEAD, HEAD, UNKNOWN] + [HEAD] * 5 and not ledger.known.any()
    after, _ = fold(ledger, bank, 2, [(1.0, 0.01 * directions(1)[0])], [1])
    assert owners(after)[2] == UNKNOWN and after.rows["token"][2] == -1 and after.knows(1) and not after.of(1).any()


def test_turns_of_a_window():
    spans = ((0, 0), (3, 1), (7, 2))
    assert turns_of(spans, 2, 9).tolist() == [0, 1, 1, 1, 1, 2, 2] and turns_of((), 0, 2).tolist() == [UNKNOWN] * 2
    assert moved(spans, 5, 3) == ((0, 0), (3, 1), (5, 2)) and moved(spans, 7, 0) == ((0, 2),) and moved((), 4, 2) == ((0, 0), (2, -1))
    assert spans_of([0, 0, 2, 2, 3]) == ((0, 0), (2, 2), (4, 3)) and spans_of([]) == ()
