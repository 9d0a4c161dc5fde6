"""The GGUF reader against the gguf package's own, and against damaged and hostile files: one ConvertError each,
nothing else."""

import random
import struct
import time

import pytest
import sources

from lm2.models.checkpoints.gguf_file import open_gguf
from lm2.models.checkpoints.gguf_header import read_gguf
from lm2.models.errors import ConvertError


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"

    def keys(w):
        w.add_string("general.name", "näme")
        w.add_array("some.list", ["a", "b", ""])
        w.add_array("some.numbers", [1, -2, 3])
        w.add_bool("some.flag", True)
        w.add_float64("some.double", 0.1)

    sources.write_gguf(path, sources.llama(layers=1), "Q8_0", keys=keys)
    return path


def test_agrees_with_the_gguf_package(good):
    from gguf import GGUFReader

    reader, header = GGUFReader(good), read_gguf(good)
    assert len(header.metadata) == len(reader.fields) - 3
    for key, value in header.metadata.items():
        assert value == reader.fields[key].contents(), key
    assert {t.name for t in reader.tensors} == set(header.tensors)
    for t in reader.tensors:
        mine = header.tensors[t.name]
        assert (mine.kind, mine.begin, mine.nbytes) == (t.tensor_type.name, t.data_offset, t.n_bytes)
        assert list(reversed(mine.shape)) == t.shape.tolist()


def test_cut_at_any_length(good, tmp_path):
    data = good.read_bytes()
    bad = tmp_path / "bad.gguf"
    header = read_gguf(good)
    start = min(t.begin for t in header.tensors.values())
    last = max(t.begin + t.nbytes for t in header.tensors.values())
    lengths = [*range(0, 64), *range(64, start, 17), start, start + 1, last - 1]
    for length in lengths:
        bad.write_bytes(data[:length])
        with pytest.raises(ConvertError, match="bad.gguf") as caught:
            read_gguf(bad)
        assert "\n" not in str(caught.value)


def test_flipped_bytes_never_end_in_anything_but_a_convert_error(good, tmp_path):
    data = good.read_bytes()
    start = min(t.begin for t in read_gguf(good).tensors.values())
    rng = random.Random(11)
    bad = tmp_path / "bad.gguf"
    refused = 0
    for _ in range(400):
        spoiled = bytearray(data)
        for _ in range(rng.choice((1, 1, 3))):
            spoiled[rng.randrange(start)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        bad.write_bytes(spoiled)
        try:
            open_gguf(bad)
        except ConvertError as error:
            refused += "bad.gguf" in str(error)
    assert refused > 100


def text(s):
    return struct.pack("<Q", len(s)) + s


HEAD = b"GGUF" + struct.pack("<I", 3)
HOSTILE = {
    "endless array": (HEAD + struct.pack("<QQ", 0, 1) + text(b"k") + struct.pack("<IIQ", 9, 0, 1 << 60), "array of 1152921504606846976"),
    "endless string": (HEAD + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1 << 62), "needs 4611686018427387904 more bytes"),
    "many keys": (HEAD + struct.pack("<QQ", 0, 1 << 60), "metadata keys"),
    "many tensors": (HEAD + struct.pack("<QQ", 1 << 60, 0), "tensors"),
    "nested array": (HEAD + struct.pack("<QQ", 0, 1) + text(b"k") + struct.pack("<IIQ", 9, 9, 1) + bytes(64), "array of value type 9"),
    "value type": (HEAD + struct.pack("<QQ", 0, 1) + text(b"k") + struct.pack("<I", 99), "value type 99"),
    "not utf-8": (HEAD + struct.pack("<QQ", 0, 1) + text(b"\xff\xfe") + bytes(64), "not UTF-8"),
    "twice": (HEAD + struct.pack("<QQ", 0, 2) + (text(b"k") + struct.pack("<IB", 0, 1)) * 2, "appears twice"),
    "version 1": (b"GGUF" + struct.pack("<I", 1) + bytes(64), "GGUF version 1 must be 2 or 3"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(64), "big-endian"),
    "huge dimension": (HEAD + struct.pack("<QQ", 1, 0) + text(b"t") + struct.pack("<IQIQ", 1, 1 << 60, 0, 0), "has shape"),
    "no dimension": (HEAD + struct.pack("<QQ", 1, 0) + text(b"t") + struct.pack("<I", 0) + bytes(32), "has 0 dimensions"),
    "unknown type": (HEAD + struct.pack("<QQ", 1, 0) + text(b"t") + struct.pack("<IQIQ", 1, 4, 999, 0) + bytes(64), "ggml type 999"),
    "past the end": (HEAD + struct.pack("<QQ", 1, 0) + text(b"t") + struct.pack("<IQIQ", 1, 4, 0, 1 << 40), "ends at byte"),
    "misaligned": (HEAD + struct.pack("<QQ", 1, 0) + text(b"t") + struct.pack("<IQIQ", 1, 4, 0, 3) + bytes(64), "starts at data byte 3"),
    "alignment": (HEAD + struct.pack("<QQ", 0, 1) + text(b"general.alignment") + struct.pack("<II", 4, 3), "general.alignment 3"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_end_quickly(tmp_path, case):
    data, message = HOSTILE[case]
    (tmp_path / "bad.gguf").write_bytes(data)
    began = time.monotonic()
    with pytest.raises(ConvertError, match=message):
        read_gguf(tmp_path / "bad.gguf")
    assert time.monotonic() - began < 2


def test_overlapping_tensors(tmp_path):
    entry = struct.pack("<IQIQ", 1, 8, 0, 0)
    (tmp_path / "bad.gguf").write_bytes(HEAD + struct.pack("<QQ", 2, 0) + text(b"a") + entry + text(b"b") + entry + bytes(256))
    with pytest.raises(ConvertError, match="starts at data byte 0, inside"):
        read_gguf(tmp_path / "bad.gguf")
