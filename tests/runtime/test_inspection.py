"""What `lm2 inspect` shows: histories add up, rows are credited to who wrote them, pages and pictures hold it and nothing foreign."""

import itertools
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
from compare import assert_close
from evaluation_kit import whole_windows

from lm2.models.errors import BackendError, ModelFileError, PromptError
from lm2.models.tasks.recall import Turn
from lm2.runtime.evaluation.render import Renderer
from lm2.runtime.evaluation.streams import Reader
from lm2.runtime.inspection import history as history_module
from lm2.runtime.inspection.history import History, rms
from lm2.runtime.inspection.look import Looker
from lm2.runtime.inspection.page import page
from lm2.runtime.inspection.picture import picture
from lm2.runtime.inspection.pixels import EMPTY, RED, png
from lm2.runtime.inspection.subject import built_in, look_at_model, look_at_session, look_into_session, read_turns
from lm2.runtime.session.session import Session


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return whole_windows(tmp_path_factory)


@pytest.fixture
def model(models):
    return models["gated"]


TURNS = [(Turn("user", "My cat <b>Tom</b> & co"),), (Turn("user", "A rainy day $5"),), (Turn("user", "Ok"),)]


def look(model, question="Who is it?"):
    renderer = Renderer(model, answer=4)
    return look_at_model(model, renderer, TURNS, question, 4, ["a note <i>"])


def test_a_history_is_the_bank_and_its_own_sum(models, monkeypatch):
    """Against the plain way of reading, four rows a position included; older chunks told apart no more, the sum stays."""
    for cell in ("gated", "gated-4T", "gated-topics"):
        chunks = [tuple(range(n, n + 40)) for n in range(6)] + [(1, 2, 3)]
        for apart in (32, 2):
            monkeypatch.setattr(history_module, "TOLD_APART", apart)
            history, bank = Looker(models[cell]).read(chunks)
            (want,) = Reader(models[cell].backend, (), 1).read([chunks])
            assert_close("bank", bank, want, 2e-5, 1e-4)
            bank = bank[: len(history.layers)]  # the memories'
            assert_close("sum", history.bank(), bank[:, 0], 2e-5, 1e-4)
            names, shares = history.shares()
            assert names == [None, *range(7 - min(7, apart), 7)]
            assert_close("shares", shares.sum(axis=0), (rms(bank[:, 0]) > 0).astype(float), 1e-6)
            assert_close("norms", history.norms()[..., -1], rms(bank[:, 0]), 2e-5)


def test_rows_are_credited_to_who_wrote_them():
    """By hand: chunk 2 refuses row 0 and keeps it, overwrites row 1, does not reach row 2."""
    history = History((4,), np.zeros((1, 4, 2), np.float32))
    ones = np.ones((1, 3, 2), np.float32)
    history.add((10, 11, 12), 0, ones[..., 0], ones[..., 0], ones, ones)
    write = np.array([[0.0, 1.0]])
    added, kept = np.array([[[0.0, 0.0], [1.0, 1.0]]], np.float32), np.array([[[1.0, 1.0], [0.0, 0.0]]], np.float32)
    history.add((20, 21), 0, write, 1 - write, added, kept)
    holders = history.holders()[0]
    assert [(h.chunk, h.position, h.share) for h in holders[:3]] == [(0, 0, 1.0), (1, 1, 1.0), (0, 2, 1.0)]
    assert holders[3].share == 0.0, "a row nobody wrote is nobody's"
    assert np.isnan(history.gate("write")[0, 2, 1]) and history.gate("write")[0, 0, 1] == 0.0
    assert history.norms().shape == (1, 4, 3) and history.norms()[0, 3].max() == 0


def test_a_faded_row_is_shared():
    history = History((0,), np.zeros((1, 1, 1), np.float32))
    one, half = np.ones((1, 1, 1), np.float32), np.full((1, 1, 1), 0.5, np.float32)
    history.add((1,), 0, one[..., 0], one[..., 0], one, one)
    history.add((2,), 0, half[..., 0], half[..., 0], one, half)
    (holder,) = history.holders()[0]
    assert (holder.chunk, holder.share) == (1, pytest.approx(2 / 3))


def test_what_an_answer_read(model):
    """The reads are the largest attention of the positions that chose the answer, with the text of the rows; the answer is the plain one."""
    seen = look(model)
    answered = seen.answered
    reader = Reader(model.backend, model.eos, 4)
    renderer = Renderer(model, answer=4)
    ids = [part for turns in TURNS for part in renderer.chunks(turns)]
    (bank,) = reader.read([ids])
    question = renderer.question("Who is it?")
    (want,) = reader.ask([bank], [question])
    assert answered.answer == model.text.decode(want, skip_special=True).strip()
    assert answered.begin == len(question) and len(answered.pieces) == len(question) + len(want)
    assert_close("reading", answered.reading, answered.mass[:, len(question) - 1 : len(question) + 3].mean(axis=1), 1e-6)
    for bank_number, reads in enumerate(seen.reads()):
        masses = [read.mass for read in reads]
        assert masses == sorted(masses, reverse=True) and masses[0] == pytest.approx(answered.reading[bank_number].max())
        read = next(r for r in reads if r.holder is not None and r.holder.chunk is not None)
        text = "".join(seen.texts[read.holder.chunk])
        assert read.before + read.token + read.after in text
    total = sum(c.sum() for c in seen.credit())
    assert 0.3 < total <= 1.0 + 1e-6


def test_a_memory_that_was_never_written_is_read_by_nobody(model):
    seen = look_at_model(model, Renderer(model, answer=4), [], "Who?", 4, [])
    assert seen.answered.mass.max() == 0 and seen.answered.answer == seen.answered.without
    assert seen.reads() == [[], []] and "never written" in page(seen)


def test_the_page_is_whole_and_escaped(model):
    text = page(look(model))
    assert ">&lt;</span>" in text and ">&amp;</span>" in text, "one token a byte"
    for bad in ("<b>", "<i>", "<script", "http:", "https:", "@import", "url("):
        assert bad not in text, bad
    sources = re.findall(r"src='([^']*)'", text)
    assert len(sources) == 8 and all(s.startswith("data:image/png;base64,") for s in sources)
    for words in ("Layer 0", "Layer 1", "a note &lt;i&gt;", "Who is it?", "write gate", "forget gate", "without memory"):
        assert words in text, words
    evil = "<script>alert('x')</script>\" onmouseover='y"
    evil_look = look_at_model(model, Renderer(model, answer=4), [(Turn("user", "<u>'\"</u>"),)], "a<s>", 4, [evil])
    content = page(evil_look)
    assert "<script>" not in content and "<u>" not in content and "<s>" not in content and "onmouseover='y" not in content


def test_pixels():
    image = png(np.array([[0.0, 1.0, np.nan], [0.5, 2.0, -1.0]]), 0.0, 1.0, RED)
    assert image[:8] == b"\x89PNG\r\n\x1a\n" and image[16:24] == (3).to_bytes(4, "big") + (2).to_bytes(4, "big")
    size = int.from_bytes(image[33:37], "big")
    raw = np.frombuffer(zlib.decompress(image[41 : 41 + size]), np.uint8).reshape(2, 10)
    assert (raw[:, 0] == 0).all()
    pixels = raw[:, 1:].reshape(2, 3, 3)
    assert pixels[0, 0].tolist() == [255] * 3 == pixels[1, 2].tolist()
    assert tuple(pixels[0, 1]) == RED == tuple(pixels[1, 1]) and tuple(pixels[0, 2]) == EMPTY
    with pytest.raises(ValueError):
        png(np.zeros((0, 3)), 0, 1, RED)


def test_the_picture(model, tmp_path):
    matplotlib = pytest.importorskip("matplotlib.image")
    picture(look(model), tmp_path / "a.png")
    pixels = matplotlib.imread(tmp_path / "a.png")
    assert pixels.shape[0] > 800 and pixels.shape[1] > 1000 and pixels.std() > 0.05


def test_a_session(model, tmp_path):
    """Its rows' sizes without the model; with it the window is run again, fold by fold, and a question asked, and the file stays as it was."""
    session = Session(model, seed=0)
    for words in ("one", "two", "three"):
        session.say(words, max_tokens=4)
    assert session.at.carried and session.at.folds, "the window slid, and was folded since"
    file = tmp_path / "s.lm2s"
    session.save(file)
    seen, record = look_at_session(file)
    assert seen.word == "bank" and seen.answered is None and seen.norms.shape[:2] == (2, 192) and record.now.written > 0
    assert_close("now", seen.norms[..., -1], rms(model.backend.to_host(session.at.memory)[:, 0]), 1e-7)
    before = file.read_bytes()
    asked = look_into_session(model, file, "And?", 4)
    assert_close("after", asked.norms[..., -1], rms(model.backend.to_host(session.memory())[:, 0]), 2e-5)
    ids, folds = session.at.tokens, (session.at.carried, *session.at.folds)
    spelled = "".join(asked.carried), ["".join(text) for text in asked.texts]
    assert spelled == (model.text.decode(ids[: folds[0]]), [model.text.decode(ids[a:b]) for a, b in itertools.pairwise(folds)])
    assert asked.unit == "fold" and len(asked.times) - asked.begin == len(asked.texts)
    assert asked.answered.question == "And?" and asked.word == "layer" and file.read_bytes() == before
    shown = page(asked)
    assert all(words in shown for words in ("run again, fold by fold", "carried over into this window", "<div>fold 1</div>")) and "chunk 1" not in shown
    assert "Bank 0" in page(seen) and "carried over into this window" not in page(seen)


def test_the_bank_of_topics_is_no_layers(models, tmp_path):
    model = models["gated-topics"]
    session = Session(model, seed=0)
    for words in ("one", "two", "three"):
        session.say(words, max_tokens=4)
    session.save(tmp_path / "s.lm2s")
    asked = look_into_session(model, tmp_path / "s.lm2s", "And?", 4)
    memory = model.backend.to_host(session.memory())
    assert len(memory) == 2 and asked.layers == (1,) and len(asked.norms) == len(asked.reads()) == len(asked.answered.mass) == 1
    assert_close("after", asked.norms[..., -1], rms(memory[:1, 0]), 2e-5)
    assert "Layer 1" in page(asked) and "Layer 0" not in page(asked)
    assert len(look_at_session(tmp_path / "s.lm2s")[0].norms) == 2


def test_what_can_be_read(model, tmp_path):
    renderer = Renderer(model, answer=4)
    (tmp_path / "a.txt").write_text("It rains. It pours! The old man snores.")
    assert [turns[0].content for turns in read_turns(tmp_path / "a.txt", renderer)] == ["It rains. It pours!", "The old man snores."]
    (tmp_path / "b.json").write_text('[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]')
    assert read_turns(tmp_path / "b.json", renderer) == [(Turn("user", "Hi"), Turn("assistant", "Ho"))]
    for name, content in (("c.json", "[]"), ("d.json", "{"), ("e.json", '[{"role": "cat", "content": "x"}]'), ("f.txt", " \n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(PromptError, match=name):
            read_turns(tmp_path / name, renderer)
    with pytest.raises(PromptError, match=r"g\.txt"):
        read_turns(tmp_path / "g.txt", renderer)
    (tmp_path / "h.txt").write_bytes(b"\xff")
    with pytest.raises(PromptError, match="UTF-8"):
        read_turns(tmp_path / "h.txt", renderer)


def test_the_built_in_conversation_is_the_seeds(tmp_path):
    import tiny_model

    model = tiny_model.load_tiny(tiny_model.make(tmp_path / "m", chunk=256))
    renderer = Renderer(model, answer=4)
    assert built_in(renderer, "story", 2, 1) == built_in(renderer, "story", 2, 1) != built_in(renderer, "story", 2, 2)
    assert built_in(renderer, "chat", 3, 1).distance == 3


def test_other_cells_and_backends_are_refused(models):
    with pytest.raises(ModelFileError, match="released"):
        Looker(models["released-causal"])

    class Other:
        def describe(self):
            return models["gated"].backend.describe()._replace(backend="mlx")

    with pytest.raises(BackendError, match="this is mlx"):
        Looker(replace(models["gated"], backend=Other()))
