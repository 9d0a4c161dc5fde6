"""Session files under random content and damage: round trips are exact, and bad files raise only SessionErrors."""

import json
import random
from dataclasses import replace

import forge
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lm2.runtime.statefile.file import Meta, Moment, Record, read_session, write_session
from lm2.runtime.statefile.record import SessionError

SEED = 20250131
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(words, below, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(words, json_values, max_size=4)
sha256 = st.text("0123456789abcdef", min_size=64, max_size=64)
names = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20)
dates = st.datetimes().map(lambda d: d.isoformat() + "Z")
counts = st.integers(0, 2**63 - 1)
tokens = st.lists(st.integers(0, 2**31 - 1), max_size=8).map(tuple)


@st.composite
def moment(draw, bank):
    ids = draw(tokens)
    marks = draw(st.sets(st.integers(0, len(ids)), max_size=6))
    carried, *folds = sorted(marks) or [0]
    return Moment(bank, draw(counts), ids, draw(objects), carried, tuple(folds))


@st.composite
def records(draw):
    shape = (draw(st.integers(0, 3)), 1, draw(st.integers(1, 4)), draw(st.integers(1, 4)))  # (l, 1, n, d)
    banks = [draw(hnp.arrays(np.float32, shape, elements=finite)) for _ in range(draw(st.integers(1, 5)))]
    moments = [draw(moment(banks[i])) for i in [0, *draw(st.lists(st.integers(0, len(banks) - 1), max_size=16))]]
    meta = Meta(
        draw(sha256), draw(names), draw(sha256), draw(names), draw(names),
        draw(counts), draw(st.integers(0, 2**64 - 1)), draw(counts), draw(dates), draw(dates),
    )  # fmt: skip
    return Record(moments[0], tuple(moments[1:]), draw(objects), meta)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(records())
def test_any_record_comes_back(tmp_path_factory, record):
    path = tmp_path_factory.getbasetemp() / "any.lm2s"
    write_session(path, record)
    data = path.read_bytes()
    back = read_session(path, None)
    assert forge.same(record, back)
    write_session(path, back)
    assert path.read_bytes() == data


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "chat.lm2s"
    write_session(path, forge.record())
    return path.read_bytes()


def outcome(path, data):
    """The record a file gives, or None when it is refused with a message of one line. Anything else fails the test."""
    path.write_bytes(data)
    try:
        return read_session(path, forge.EXPECTED)
    except SessionError as error:
        assert str(error).isprintable() and len(str(error)) < 1000
        return None


def test_random_damage(tmp_path, good):
    """Bytes changed, cut out, put in, moved, doubled: refused unless nothing changed."""
    rng, path = random.Random(SEED), tmp_path / "chat.lm2s"
    print(f"seed {SEED}")
    for _ in range(2000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
            b = min(b, a + rng.choice([1, 4, 64, 4096]))
            kind = rng.randrange(5)
            if kind == 0:
                data[a:b] = rng.randbytes(b - a)
            elif kind == 1:
                del data[a:b]
            elif kind == 2:
                data[a:a] = rng.randbytes(rng.choice([1, 8, 100]))
            elif kind == 3:
                at = rng.randrange(len(data) + 1)
                data[at:at] = data[a:b]
            else:
                data[a:b] = bytes(b - a)
            if not data:
                break
        assert outcome(path, bytes(data)) is None or data == good


JUNK = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    2**70,
    1.5,
    1e308,
    "",
    "0",
    "x" * 300,
    "\x1b[2J",
    [],
    [0],
    [-1, 2],
    {},
    {"a": 1},
    [[]],
]


def spots(value, out):
    """Every place in nested JSON, as (container, key)."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in list(pairs):
        out.append((value, key))
        spots(below, out)
    return out


def test_damage_under_right_digests(tmp_path, good):
    """Junk values in the header and in session.json, then sealed: what is accepted can be saved and read again."""
    rng, path = random.Random(SEED), tmp_path / "chat.lm2s"
    accepted = 0
    for _ in range(2000):
        header, arrays = forge.split(good)
        text = json.loads(arrays["session.json"])
        where = rng.choice([header, text])
        for _ in range(rng.randint(1, 2)):
            container, key = rng.choice(spots(where, []))
            if isinstance(container, dict) and rng.random() < 0.2:
                container[rng.choice(["bank", "tokens", "x", "shape", "carried", "folds", "written", "chunks", "window"])] = rng.choice(JUNK)
            else:
                container[key] = rng.choice(JUNK)
        if where is text:
            arrays["session.json"] = forge.dumps(text).encode()
            header["session.json"]["shape"] = [len(arrays["session.json"])]
            forge.lay_out(header, arrays)
        if not isinstance(header.get("__metadata__"), dict):
            continue
        back = outcome(path, forge.seal(header, arrays))
        if back is not None:
            accepted += 1
            write_session(path, back, replace(forge.EXPECTED))
            assert forge.same(back, read_session(path, forge.EXPECTED))
    print(f"seed {SEED}: {accepted} of 2000 accepted")
    assert 0 < accepted < 1000  # notes and document may hold any JSON; else the test would say nothing about accepted files
