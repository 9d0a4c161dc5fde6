"""Good session files for tests, and a second hand that takes them apart and seals altered ones.

`split` and `seal` follow docs/session-file.md alone (json, hashlib, struct): they share no code with the package, so a
file they seal and the package reads also shows that the page is enough to write one.
"""

import hashlib
import json
import struct

import numpy as np

from lm2.runtime.statefile.file import Expected, Meta, Moment, Record

SHAPE = (2, 1, 4, 8)
CHUNK = 4
WINDOW = 6
VOCAB = 50
META = Meta(
    fingerprint="a" * 64,
    model="tiny",
    tokenizer="b" * 64,
    backend="torch",
    dtype="float32",
    tokens_seen=1234,
    seed=2**64 - 1,
    draws=17,
    created="2025-01-31T12:00:00Z",
    updated="2025-02-01T08:30:00.125+00:00",
)
EXPECTED = Expected("a" * 64, "tiny", "b" * 64, SHAPE, CHUNK, VOCAB, WINDOW)


def bank(seed, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)  # (l, 1, n, d)


def record(shape=SHAPE, meta=META):
    """Three snapshots, of which one shares the current bank and two share an older one."""
    new, old = bank(1, shape), bank(2, shape)
    return Record(
        now=Moment(new, 9, (1, 2, 3), {"starts": [1]}, 1, (2, 3)),
        snapshots=(
            Moment(old, 5, (), {"starts": []}),
            Moment(old, 5, (7, 8), {}, 0, (1,)),
            Moment(new, 9, (49,), {"starts": [0], "at": 0.5}, 1),
        ),
        document={"system": "Be brief.", "transcript": [{"role": "user", "text": "héllo \U0001f600"}]},
        meta=meta,
    )


def same(a, b):
    """Whether two records hold the same values and share banks alike."""
    moments = list(zip((a.now, *a.snapshots), (b.now, *b.snapshots), strict=True))
    values = all(
        x.bank.dtype == y.bank.dtype and x.bank.shape == y.bank.shape and x.bank.tobytes() == y.bank.tobytes()
        and (x.written, tuple(x.tokens), x.notes) == (y.written, tuple(y.tokens), y.notes)
        and (x.carried, tuple(x.folds)) == (y.carried, tuple(y.folds))
        for x, y in moments
    )  # fmt: skip
    shared = all((x.bank is p.bank) == (y.bank is q.bank) for x, y in moments for p, q in moments)
    return values and shared and a.document == b.document and a.meta == b.meta


def split(data):
    """Header as a dict without its own digest, and the array bytes by name."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    del header["__metadata__"]["header_sha256"]
    body = data[8 + length :]
    return header, {n: body[e["data_offsets"][0] : e["data_offsets"][1]] for n, e in header.items() if n != "__metadata__"}


def dumps(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def seal(header, arrays, text=lambda t: t, pad=b" "):
    """A file with right digests around whatever `header` says. `text` may edit the header's JSON before that."""
    body = b"".join(arrays.values())
    header["__metadata__"]["sha256"] = hashlib.sha256(body).hexdigest()
    raw = text(dumps(header)).encode("utf-8", "surrogatepass")
    own = hashlib.sha256(raw).hexdigest().encode()
    raw = raw.replace(b'"model":', b'"header_sha256":"' + own + b'","model":', 1)
    raw += pad * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw + body


def lay_out(header, arrays):
    """Give every array the offsets its bytes have."""
    at = 0
    for name, data in arrays.items():
        header[name]["data_offsets"] = [at, at + len(data)]
        at += len(data)


def with_array(good, name, data, shape=None):
    """`good` with other bytes (and shape) for one array, laid out and sealed."""
    header, arrays = split(good)
    arrays[name] = data
    if shape is not None:
        header[name]["shape"] = shape
    lay_out(header, arrays)
    return seal(header, arrays)


def with_text(good, edit):
    """`good` with session.json's text replaced by `edit(text)`, laid out and sealed."""
    data = edit(split(good)[1]["session.json"].decode()).encode("utf-8", "surrogatepass")
    return with_array(good, "session.json", data, [len(data)])


def with_table(good, edit):
    """`good` with the table of snapshots edited in place."""

    return with_content(good, lambda content: edit(content["snapshots"]))


def with_content(good, edit):
    """`good` with the content of session.json edited in place."""

    def change(text):
        content = json.loads(text)
        edit(content)
        return dumps(content)

    return with_text(good, change)


def version_1(good, chunk=CHUNK):
    """`good` as version 1 had it: whole chunks counted in place of tokens, nothing of windows and folds."""

    def change(content):
        del content["window"]
        for row in content["snapshots"]:
            row["chunks"] = row.pop("written") // chunk
            del row["carried"], row["folds"]

    written = split(good)[0]["__metadata__"]["written"]
    return with_meta(with_content(good, change), version="1", written=None, chunks=str(int(written) // chunk))


def with_meta(good, **changes):
    """`good` with other metadata (None removes a key), sealed."""
    header, arrays = split(good)
    merged = header["__metadata__"] | changes
    header["__metadata__"] = {k: merged[k] for k in sorted(merged) if merged[k] is not None}
    return seal(header, arrays)
