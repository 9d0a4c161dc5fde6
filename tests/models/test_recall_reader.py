"""The reader against torch, what it reads, its files, and what is refused."""

import json
from types import SimpleNamespace

import encoder_kit
import numpy as np
import pytest

from lm2.models.errors import ModelFileError
from lm2.models.recall import Reader, Use, bert, from_bert, reader
from lm2.models.recall.reader import pieces, reader_shapes
from lm2.models.recall.reader_files import FILES, open_reader, write_reader

ASKED = "is my brother a baker?"
MESSAGES = ["my brother is a baker", "the zebra eats plums", "a striped horse is the animal b c", " ".join(["zebra"] * 60)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    encoder_kit.bert(folder)
    return from_bert(folder, {"model": "tiny"}, weight=10.0, among=3)


@pytest.fixture(scope="module")
def maps(encoder):
    """A reader's parameters in torch, with ends of some size."""
    import torch

    from lm2.models.training.read_task import ReaderMaps

    made = ReaderMaps(encoder, 3).eval()
    with torch.no_grad():
        made.ends.mul_(50)
        made.other.add_(torch.randn(24, generator=torch.Generator().manual_seed(1)))
    return made


@pytest.fixture(scope="module")
def made(encoder, maps):
    return Reader.rounded(encoder, maps.arrays(), Use(2, 1.5, -0.5, 2.0), {"steps": 3})


def in_torch(encoder, maps):
    """Logits (t, 2) of each message, computed together and padded."""
    import torch

    from lm2.models.training.read_task import ReadTask

    task = ReadTask(SimpleNamespace(requires_grad_=lambda on: SimpleNamespace(device="cpu"), device="cpu"), encoder, lambda rng: ("", "", ""), 0)
    task.maps = maps
    texts = [pieces(encoder.tokenizer, ASKED, m, 32) for m in MESSAGES]
    with torch.no_grad():
        return texts, task.logits(texts).numpy()


def largest(encoder, maps, made, monkeypatch):
    """How far the two are apart, of all logits in reach."""
    seen = []
    monkeypatch.setattr(reader, "_best", lambda logits, text, *message: seen.append((text, logits)))
    made.read(ASKED, MESSAGES)
    texts, theirs = in_torch(encoder, maps)
    assert [t for t, _ in seen] == texts
    return max(np.abs(own[k] - other[k]).max() for (t, own), other in zip(seen, theirs, strict=True) for k in (0, *range(t.begin, len(t.ids) - 1)))


def test_the_logits_are_torchs(encoder, maps, made, monkeypatch):
    """Measured: 4e-6 of numbers up to 10."""
    assert largest(encoder, maps, made, monkeypatch) < 1e-4


def test_one_segment_for_both_is_not(encoder, maps, made, monkeypatch):
    other = Reader(encoder, {**made.own, "segment.message": made.own["segment"]}, made.use, {})
    assert largest(encoder, maps, other, monkeypatch) > 1e-2


def test_what_is_read(encoder):
    text = pieces(encoder.tokenizer, "is a horse?", "My zebras")
    words = [encoder_kit.WORDS[i] for i in text.ids]
    assert words == ["[CLS]", "is", "a", "horse", "?", "[SEP]", "my", "zebra", "##s", "[SEP]"]
    assert text.begin == 6 and text.offsets[6:9] == ((0, 2), (3, 8), (8, 9))
    long = pieces(encoder.tokenizer, "b " * 90, "c " * 90, 32)
    assert len(long.ids) == 32 and long.begin == 16


def fixed(begins, ends, nothing=0.0):
    """Logits of the message's pieces, behind a question of two; `nothing` for each end."""
    rows = [(nothing, nothing), (9.0, 9.0), (9.0, 9.0), *zip(begins, ends, strict=True), (9.0, 9.0)]
    return np.array(rows, np.float32)


def text_of(message):
    offsets, at = [], 0
    for word in message.split():
        offsets.append((at, at + len(word)))
        at += len(word) + 1
    return SimpleNamespace(ids=(0,) * (len(offsets) + 4), begin=3, offsets=((0, 0),) * 3 + tuple(offsets) + ((0, 0),))


@pytest.mark.parametrize(
    ("begins", "ends", "words", "odds"),
    [
        ((0, 3, 0, 0), (0, 0, 2, 0), "two three", 5.0),
        ((0, 0, 0, 4), (5, 0, 0, 0), "one", 5.0),  # an end before its beginning is none: 4 + 5 would be
        ((1, 0, 0, 0), (0, 0, 0, 1), "one two three four", 2.0),
        ((-9, -9, -9, -1), (-9, -9, -9, -2), "four", -3.0),
    ],
)
def test_the_likeliest_words(begins, ends, words, odds):
    message = "one two three four"
    found = reader._best(fixed(begins, ends), text_of(message), message)
    assert (found.words, found.odds) == (words, pytest.approx(odds))
    assert reader._best(fixed(begins, ends, 2.0), text_of(message), message).odds == pytest.approx(odds - 4)


@pytest.mark.parametrize(("lead", "words"), [(0, "one two"), (4, "two"), (5, "three"), (14, "four"), (99, "")])
def test_words_of_what_was_said_before_answer_nothing(lead, words):
    found = reader._best(fixed((4, 3, 2, 1), (0, 5, 4, 3)), text_of("one two three four"), "one two three four", lead)
    assert found.words == words


def test_what_was_said_before_is_read_with_a_message(made):
    """The same as one text, of which only the message's words may answer."""
    (found,), (whole,) = made.read(ASKED, ["the zebra eats plums"], ["is a horse?"]), made.read(ASKED, ["is a horse? the zebra eats plums"])
    (alone,) = made.read(ASKED, ["the zebra eats plums"])
    assert found.words in "the zebra eats plums" and found.odds <= whole.odds + 1e-5 and found.odds != pytest.approx(alone.odds, abs=1e-3)
    assert made.read(ASKED, ["the zebra eats plums"], [""]) == [alone]


def test_words_are_not_longer_than_an_answer():
    message = " ".join(f"w{i}" for i in range(60))
    begins, ends = [0.0] * 60, [0.0] * 60
    begins[0] = ends[59] = 5.0
    assert len(reader._best(fixed(begins, ends), text_of(message), message).words.split()) <= reader.LONGEST


def test_a_message_without_pieces_answers_nothing(made):
    assert made.read(ASKED, [""])[0] == ("", -np.inf) and made.read(ASKED, []) == []


def test_a_message_is_the_same_beside_others(made, monkeypatch):
    together = made.read(ASKED, MESSAGES)
    monkeypatch.setattr(reader, "PART", 20)
    for own, a, m in zip(made.read(ASKED, MESSAGES), together, MESSAGES, strict=True):
        assert own.words == a.words == made.read(ASKED, [m])[0].words and own.odds == pytest.approx(a.odds, abs=1e-4)


def test_files_hold_what_was_written(encoder, made, tmp_path):
    write_reader(tmp_path, made)
    again = open_reader(tmp_path, encoder)
    assert {f.name for f in tmp_path.iterdir()} == set(FILES)
    assert (again.use, again.training) == (Use(2, 1.5, -0.5, 2.0), {"steps": 3}) and again.read(ASKED, MESSAGES) == made.read(ASKED, MESSAGES)
    assert open_reader(tmp_path / "nowhere", encoder) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 1}, "format 1 must be 2"),
        ({"format": True}, "format True must be 2"),
        ({"head": "mean"}, "'head' is not a field"),
        ({"among": 0}, "among 0 must be a whole number from 1 to 256"),
        ({"among": True}, "among True must be a whole number"),
        ({"weight": -1}, "weight -1 must be a number from 0"),
        ({"doubt": "none"}, "doubt 'none' must be a number from -1000"),
        ({"doubt": float("nan")}, "doubt nan must be a number"),
        ({"sure": None}, "sure None must be a number from -1000"),
        ({"training": []}, "training must be an object"),
    ],
)
def test_what_does_not_fit_is_refused(encoder, made, tmp_path, change, words):
    write_reader(tmp_path, made)
    record = json.loads((tmp_path / "reader.json").read_text())
    (tmp_path / "reader.json").write_text(json.dumps({**record, **change}))
    with pytest.raises(ModelFileError, match=words):
        open_reader(tmp_path, encoder)


def test_a_reader_needs_its_encoder(made, tmp_path):
    write_reader(tmp_path, made)
    with pytest.raises(ModelFileError, match=r"needs the encoder .* no encoder\.json"):
        open_reader(tmp_path, None)


def test_tensors_that_are_others_are_refused(encoder, made, tmp_path):
    write_reader(tmp_path, made)
    body = (tmp_path / "reader.safetensors").read_bytes()
    (tmp_path / "reader.safetensors").write_bytes(body[: len(body) // 2])
    with pytest.raises(ModelFileError, match="reader.safetensors"):
        open_reader(tmp_path, encoder)
    wrong = Reader(encoder, {**made.own, "ends": np.zeros((3, 24), np.float32)}, made.use, {})
    with pytest.raises(ValueError, match="ends"):
        bert.rounded(reader_shapes(encoder.sizes), {**made.own, "ends": wrong.own["ends"]})
