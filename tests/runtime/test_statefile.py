"""Session files: what is written comes back, and every way a file can be wrong is told by its own error."""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import forge
import numpy as np
import pytest

from lm2.models.errors import LM2Error
from lm2.runtime.statefile import check as statecheck
from lm2.runtime.statefile import record as staterecord
from lm2.runtime.statefile.file import Moment, read_session, write_session
from lm2.runtime.statefile.record import (
    SessionCorruptError,
    SessionError,
    SessionFormatError,
    SessionMissingError,
    SessionModelError,
    SessionShapeError,
    SessionTokenizerError,
    SessionTooLargeError,
    SessionTruncatedError,
    SessionValueError,
    SessionVersionError,
)

ATTACKS = sorted(p for p in (Path(__file__).parent / "attacks").glob("*.py"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "chat.lm2s"


@pytest.fixture
def good(path):
    write_session(path, forge.record())
    return path.read_bytes()


def refused(path, data=None, expected=forge.EXPECTED):
    """The error for a file, which must be one line that names it; fails when the file is accepted."""
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(SessionError) as caught:
        read_session(path, expected)
    message = str(caught.value)
    assert str(path) in message and message.isprintable() and len(message) < 1000 and ": " in message
    return caught.value


def load(file):
    spec = importlib.util.spec_from_file_location(f"attack_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# What is written comes back


def test_round_trip(path):
    record = forge.record()
    size = write_session(path, record, forge.EXPECTED)
    data = path.read_bytes()
    assert size == len(data)
    for expected in (forge.EXPECTED, None):
        back = read_session(path, expected)
        assert forge.same(record, back)
        assert back.snapshots[2].bank is back.now.bank and back.snapshots[0].bank is back.snapshots[1].bank
        write_session(path, back)
        assert path.read_bytes() == data


def test_same_notices_every_difference():
    """Negative control of the comparison used above."""
    a = forge.record()
    bank = a.now.bank.copy()
    assert not forge.same(a, replace(a, now=replace(a.now, bank=bank)))  # no longer shared
    bank[0, 0, 0, 0] = -bank[0, 0, 0, 0]
    snapshots = (*a.snapshots[:2], replace(a.snapshots[2], bank=bank))
    assert not forge.same(a, replace(a, now=replace(a.now, bank=bank), snapshots=snapshots))
    assert not forge.same(a, replace(a, now=replace(a.now, tokens=(1, 2, 4))))
    assert not forge.same(a, replace(a, document={}))
    for field, value in (("written", 8), ("carried", 0), ("folds", (2,)), ("folds", ())):
        assert not forge.same(a, replace(a, now=replace(a.now, **{field: value}))), field


def test_shared_banks_are_stored_once(path):
    record = forge.record()
    one = write_session(path, replace(record, snapshots=record.snapshots[:1]))
    two = write_session(path, replace(record, snapshots=record.snapshots[:2]))
    assert two - one < 256  # a bank has 256 bytes


def test_bits_are_kept(path):
    """Negative zero, subnormals and the largest float come back bit for bit, from any memory layout."""
    bank = np.zeros(forge.SHAPE, np.float32)
    bank.flat[:4] = [-0.0, 1e-45, np.finfo(np.float32).max, np.finfo(np.float32).tiny]
    for array in (bank, np.asfortranarray(bank), np.repeat(bank, 2, axis=3)[..., ::2]):
        write_session(path, replace(forge.record(), now=Moment(array, 0, (), {}), snapshots=()))
        assert read_session(path, None).now.bank.tobytes() == bank.tobytes()


@pytest.mark.parametrize("shape", [(0, 1, 4, 8), (1, 1, 1, 1), (2, 1, 64, 64)])
def test_empty_parts(path, shape):
    record = replace(forge.record(shape), snapshots=(), document={})
    record = replace(record, now=replace(record.now, tokens=(), notes={}, carried=0, folds=()))
    write_session(path, record)
    assert forge.same(record, read_session(path, replace(forge.EXPECTED, bank_shape=shape)))


def test_plain_safetensors_reads_it(path, good):
    safetensors = pytest.importorskip("safetensors")
    from safetensors.numpy import load_file

    arrays = load_file(path)
    record = forge.record()
    assert arrays["memory.bank"].tobytes() == record.now.bank.tobytes()
    assert arrays["chunk.tokens"].tolist() == [1, 2, 3]
    assert arrays["snapshots.banks"].shape == (1, *forge.SHAPE)
    with safetensors.safe_open(path, "np") as f:
        assert f.metadata()["format"] == "lm2-session" and f.metadata()["draws"] == "17"


def test_a_second_writer_makes_the_same_bytes(good):
    """The test's own writer, made from the documentation, seals to the very same file: its attacks are well made."""
    header, arrays = forge.split(good)
    assert forge.seal(header, arrays) == good


def test_the_documented_reader_reads_it(path, good):
    """The reader printed in docs/session-file.md, run as it stands there."""
    page = (Path(__file__).parents[2] / "docs" / "session-file.md").read_text(encoding="utf-8")
    space = {}
    exec(page.split("```python\n")[1].split("```")[0], space)
    record = forge.record()
    for data, folds in ((good, [2, 3]), (forge.version_1(good), [])):
        path.write_bytes(data)
        moments = space["moments"](*space["read"](path), forge.CHUNK)
        assert len(moments) == 4 and moments[0]["folds"] == folds
        for said, moment in zip(moments, (record.now, *record.snapshots), strict=True):
            assert said["bank"].tobytes() == moment.bank.tobytes() and tuple(said["tokens"]) == moment.tokens and said["notes"] == moment.notes
            if folds:
                assert (said["written"], said["carried"], tuple(said["folds"])) == (moment.written, moment.carried, moment.folds)
            else:
                assert (said["written"], said["carried"], said["folds"]) == (moment.written // forge.CHUNK * forge.CHUNK, 0, [])
    meta, arrays, text = space["read"](path)
    assert meta["draws"] == "17" and text["document"] == record.document
    assert arrays["memory.bank"].tobytes() == record.now.bank.tobytes() and arrays["chunk.tokens"].tolist() == [1, 2, 3]
    path.write_bytes(good[:-1] + b" ")
    with pytest.raises(AssertionError):
        space["read"](path)
    for name in [*statecheck.KEYS, *statecheck.WRITTEN.values(), *statecheck.ARRAYS, *(e.__name__ for e in SessionError.__subclasses__())]:
        assert f"`{name}`" in page


def test_restored_arrays_can_be_dropped_one_by_one(path):
    record = forge.record()
    banks = [forge.bank(i) for i in range(10, 14)]
    write_session(path, replace(record, snapshots=tuple(Moment(b, 1, (), {}) for b in banks)))
    back = read_session(path, None)
    assert all(s.bank.base is None or s.bank.base.nbytes == s.bank.nbytes for s in back.snapshots)


# Version 1


@pytest.mark.parametrize("expected", [forge.EXPECTED, None])
def test_version_1_counts_chunks(path, good, expected):
    """With a model its chunks are tokens; without one nobody knows how many, and they stay chunks."""
    path.write_bytes(forge.version_1(good))
    back, unit = read_session(path, expected), forge.CHUNK if expected else 1
    assert back.version == 1 and back.now.written == 2 * unit and [s.written for s in back.snapshots] == [unit, unit, 2 * unit]
    assert all(m.carried == 0 and m.folds == () for m in (back.now, *back.snapshots))
    assert [m.tokens for m in (back.now, *back.snapshots)] == [(1, 2, 3), (), (7, 8), (49,)] and back.snapshots[2].bank is back.now.bank


def test_what_is_written_is_version_2(path, good):
    path.write_bytes(forge.version_1(good))
    old = read_session(path, forge.EXPECTED)
    write_session(path, old, forge.EXPECTED)
    header, _ = forge.split(path.read_bytes())
    assert header["__metadata__"]["version"] == "2" and header["__metadata__"]["written"] == "8" and "chunks" not in header["__metadata__"]
    new = read_session(path, forge.EXPECTED)
    assert new.version == 2 and forge.same(old, new)


# Every way a file can be wrong


@pytest.mark.parametrize("file", ATTACKS, ids=lambda p: p.stem)
def test_attack(file, path, good, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    attack = load(file)
    data = attack.attack(good)
    assert data != good, "the attack changed nothing"
    error = refused(path, data)
    assert type(error) is getattr(staterecord, attack.ERROR), f"{type(error).__name__}: {error}"
    assert len(list(tmp_path.iterdir())) == 1  # nothing ran


def test_attacks_cover_every_kind_of_damage():
    kinds = {load(file).ERROR for file in ATTACKS}
    have = {e.__name__ for e in SessionError.__subclasses__()}
    assert have - kinds == {"SessionMissingError", "SessionReadError", "SessionLockedError"}
    assert len(ATTACKS) >= 140


def test_a_byte_flipped_anywhere(path, good):
    """Every byte of the file, header, arrays and text, with two patterns: always a typed error, never a start."""
    for at in range(len(good)):
        for mask in (0x01, 0x80):
            path.write_bytes(good[:at] + bytes([good[at] ^ mask]) + good[at + 1 :])
            for expected in (forge.EXPECTED, None):
                with pytest.raises(SessionError):
                    read_session(path, expected)


def test_flips_in_a_large_file(path):
    shape = (4, 1, 64, 64)
    write_session(path, forge.record(shape))
    data = bytearray(path.read_bytes())
    expected = replace(forge.EXPECTED, bank_shape=shape)
    read_session(path, expected)
    start = 8 + int.from_bytes(data[:8], "little")
    for at in np.random.default_rng(7).integers(start, len(data), 200):
        data[at] ^= 0x40
        path.write_bytes(data)
        with pytest.raises((SessionCorruptError, SessionValueError)):
            read_session(path, expected)
        data[at] ^= 0x40


def test_cut_at_every_length(path, good):
    for length in range(len(good)):
        assert type(refused(path, good[:length])) is SessionTruncatedError, length


def test_missing(path):
    error = refused(path)
    assert type(error) is SessionMissingError and "--new" in str(error)


def test_not_a_file(tmp_path):
    assert type(refused(tmp_path)) is SessionFormatError
    assert "folder" in str(refused(tmp_path))


@pytest.mark.skipif(not hasattr(__import__("os"), "mkfifo"), reason="needs named pipes")
@pytest.mark.timeout(20)
def test_a_pipe_does_not_hang(path):
    import os

    os.mkfifo(path)
    assert type(refused(path)) is SessionFormatError


def test_a_huge_sparse_file_is_refused_unread(path, good):
    with open(path, "r+b") as f:
        f.truncate(staterecord.FILE_BYTES_MAX + 1)
    assert type(refused(path)) is SessionTooLargeError


def test_the_size_cap_follows_the_model(path, good):
    """A right header of a larger file than this model's sessions can be: refused before its arrays are read."""
    banks = (1 << 20) * 4
    data = forge.with_array(good, "snapshots.banks", bytes(32 * banks), [32 * banks // 256, 2, 1, 4, 8])
    error = refused(path, data)
    assert type(error) is SessionTooLargeError and str(len(data)) in str(error)


def test_messages_name_both_values_and_the_remedy(path, good):
    model = str(refused(path, forge.with_meta(good, fingerprint="c" * 64, model="llama-big")))
    for part in (
        "llama-big",
        "tiny",
        "cccccccccccc",
        "aaaaaaaaaaaa",
        "open it with the model it was saved with",
        "`--new`",
    ):
        assert part in model
    tokenizer = str(refused(path, forge.with_meta(good, tokenizer="d" * 64)))
    assert "dddddddddddd" in tokenizer and "bbbbbbbbbbbb" in tokenizer and "`--new`" in tokenizer
    version = str(refused(path, forge.with_meta(good, version="3")))
    assert "made by a newer lm2: upgrade" in version and "'3'" in version and "reads 1 and 2" in version
    window = str(refused(path, forge.with_content(good, lambda c: c["window"].update(folds=[3, 2]))))
    assert "folds [3, 2] must ascend from above 1 (carried) to at most 3 (tokens)" in window
    carried = str(refused(path, forge.with_content(good, lambda c: c["window"].update(carried=4))))
    assert "carried 4 must be a whole number from 0 to 3" in carried
    shape = str(refused(path, good, replace(forge.EXPECTED, bank_shape=(2, 1, 5, 8))))
    assert "[2, 1, 4, 8]" in shape and "[2, 1, 5, 8]" in shape


def test_the_model_is_told_before_its_consequences(path, good):
    """Another model usually has other shapes, sizes and ids too: the message is about the model."""
    other = replace(forge.EXPECTED, fingerprint="e" * 64, tokenizer="f" * 64, bank_shape=(1, 1, 1, 1), chunk=1, vocab_size=2, positions=1)
    assert type(refused(path, good, other)) is SessionModelError
    assert type(refused(path, good, replace(other, fingerprint="a" * 64))) is SessionTokenizerError
    assert type(refused(path, good, replace(forge.EXPECTED, bank_shape=(1, 1, 1, 1)))) is SessionShapeError


def test_without_a_model_all_but_the_match_is_checked(path, good):
    path.write_bytes(forge.with_meta(good, fingerprint="c" * 64, model="other", tokenizer="d" * 64))
    assert read_session(path, None).meta.model == "other"
    skipped = set()
    for file in ATTACKS:
        path.write_bytes(load(file).attack(good))
        try:
            read_session(path, None)
            skipped.add(file.stem)
        except SessionError:
            pass
    needs_model = {
        "foreign_model",
        "foreign_tokenizer",
        "too_many_tokens",
        "token_past_vocabulary",
        "table_tokens_past_chunk",
        "version_1_tokens_past_chunk",
        "version_1_row_tokens_past_chunk",
        "version_1_chunks_past_64_bits",
        "version_1_row_past_64_bits",
    }
    assert skipped == needs_model | {"bank_of_another_shape"}


# What cannot be read back is not written


def broken_records():
    r, nan = forge.record(), forge.bank(1)
    nan[1, 0, 2, 3] = np.nan
    yield "nan", SessionValueError, replace(r, now=replace(r.now, bank=nan))
    yield (
        "snapshot infinity",
        SessionValueError,
        replace(r, snapshots=(replace(r.snapshots[0], bank=np.full(forge.SHAPE, -np.inf, np.float32)),)),
    )
    yield "float64", SessionValueError, replace(r, now=replace(r.now, bank=r.now.bank.astype(np.float64)))
    yield "a list", SessionValueError, replace(r, now=replace(r.now, bank=r.now.bank.tolist()), snapshots=())
    yield "three axes", SessionShapeError, replace(r, now=replace(r.now, bank=r.now.bank[0]))
    yield "batch of two", SessionShapeError, replace(r, now=replace(r.now, bank=np.zeros((2, 2, 4, 8), np.float32)))
    yield (
        "other shape",
        SessionShapeError,
        replace(r, snapshots=(replace(r.snapshots[0], bank=forge.bank(1, (1, 1, 4, 8))),)),
    )
    yield "17 snapshots", SessionTooLargeError, replace(r, snapshots=r.snapshots[:1] * 17)
    yield (
        "5 banks",
        SessionTooLargeError,
        replace(r, snapshots=tuple(Moment(forge.bank(i), 0, (), {}) for i in range(5))),
    )
    for tokens in ((1.5,), (True,), (-1,), (2**31,), ("a",), ((1,), (2,)), (0,) * ((1 << 20) + 1)):
        yield f"tokens {tokens[:2]}", SessionValueError, replace(r, now=replace(r.now, tokens=tokens))
    for written in (-1, 1.0, True, 2**63):
        yield f"written {written}", SessionValueError, replace(r, now=replace(r.now, written=written))
    for carried in (-1, 4, 1.0, True, "1", None):
        yield f"carried {carried!r}", SessionValueError, replace(r, now=replace(r.now, carried=carried, folds=()))
    for folds in ((3, 2), (2, 2), (1,), (4,), (2.0,), (True,), "23", None, {2: 3}, (0,), (np.int64(2),), 3):
        yield f"folds {folds!r}", SessionValueError, replace(r, now=replace(r.now, folds=folds))
    yield "snapshot folds", SessionValueError, replace(r, snapshots=(replace(r.snapshots[1], folds=(3,)),))
    yield "snapshot carried", SessionValueError, replace(r, snapshots=(replace(r.snapshots[1], carried=3, folds=()),))
    for document in (
        {1: "a"},
        {"a": {1, 2}},
        {"a": float("nan")},
        {"a": b"x"},
        {"a": "\udc80"},
        {"a": 2**64},
        {"a": np.int64(1)},
        [],
    ):
        yield f"document {document!a}", SessionValueError, replace(r, document=document)
    yield "large document", SessionTooLargeError, replace(r, document={"a": "x" * (8 << 20)})
    yield "notes", SessionValueError, replace(r, snapshots=(replace(r.snapshots[0], notes=None),))
    for field, value in (
        ("seed", -1),
        ("draws", 1.0),
        ("fingerprint", "x"),
        ("model", "a\nb"),
        ("created", "now"),
        ("backend", None),
    ):
        yield f"meta {field}", SessionValueError, replace(r, meta=replace(r.meta, **{field: value}))


@pytest.mark.parametrize(("kind", "record"), [pytest.param(k, r, id=n) for n, k, r in broken_records()])
def test_a_broken_record_keeps_the_old_file(path, good, kind, record):
    with pytest.raises(kind) as caught:
        write_session(path, record)
    assert path.read_bytes() == good and list(path.parent.iterdir()) == [path]
    assert str(path) in str(caught.value) and "the previous file is unchanged" in str(caught.value)


def test_writing_for_a_model_holds_the_record_against_it(path, good):
    r, e = forge.record(), forge.EXPECTED
    for record, expected, kind in (
        (replace(r, now=replace(r.now, tokens=tuple(range(7)))), e, SessionValueError),
        (replace(r, now=replace(r.now, tokens=(50,))), e, SessionValueError),
        (r, replace(e, bank_shape=(2, 1, 8, 4)), SessionShapeError),
        (r, replace(e, fingerprint="c" * 64), SessionModelError),
        (r, replace(e, tokenizer="c" * 64), SessionTokenizerError),
    ):
        with pytest.raises(kind):
            write_session(path, record, expected)
    assert path.read_bytes() == good


# The rules of the house


def test_errors_have_one_base():
    assert issubclass(SessionError, LM2Error)
    assert SessionVersionError in SessionError.__subclasses__()


def test_no_ml_library_and_no_pickle():
    """Session files need neither; both would show up as imported modules."""
    code = (
        "import sys; before = set(sys.modules); import lm2.runtime.statefile.file, lm2.runtime.statefile.lock, lm2.models.tensorfile;"
        "import inspect; from lm2.runtime.statefile import file as statefile, check as statecheck, text as statejson;"
        "text = ''.join(inspect.getsource(m) for m in (statefile, statecheck, statejson, lm2.models.tensorfile));"
        "assert not any(w in text for w in ('pickle', 'np.load', 'eval(', 'torch')), 'pickle or ML in the source';"
        "print([m for m in ('torch', 'mlx', 'onnxruntime', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert out.stdout.strip() == "[]", out.stderr
