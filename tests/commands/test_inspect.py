"""`lm2 inspect` as a user types it."""

import pytest
import tiny_model

FEW = ("--threads", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model.make(tmp_path_factory.mktemp("model") / "tiny", chunk=256)


def test_a_model_reads_the_built_in_conversation(lm2, model, tmp_path):
    result = lm2("inspect", model, "--out", tmp_path / "a.html", "--distance", "2", *FEW)
    text = (tmp_path / "a.html").read_text()
    assert result.code == 0 and "built-in conversation: story, seed 0" in text and "2 chunks ago" in text
    assert [line.split()[0] for line in result.out.splitlines()] == ["question", "answer", "without"]
    assert result.err == f"written: {tmp_path / 'a.html'}\n"
    again = lm2("inspect", model, "--out", tmp_path / "b.html", "--distance", "2", *FEW)
    assert again.code == 0 and (tmp_path / "b.html").read_text() == text, "the same seed, the same page"


def test_a_text_and_a_question(lm2, model, tmp_path):
    (tmp_path / "t.txt").write_text("Mary moved to the garden. " * 30)
    result = lm2("inspect", model, "--text", tmp_path / "t.txt", "--ask", "Where is Mary?", "--out", tmp_path / "a.html", *FEW)
    text = (tmp_path / "a.html").read_text()
    assert result.code == 0 and "it read t.txt" in text and "Where is Mary?" in text and "chunk 4" in text
    silent = lm2("inspect", model, "--text", tmp_path / "t.txt", "--out", tmp_path / "b.html", *FEW)
    assert silent.code == 0 and not silent.out and "rows the answer" not in (tmp_path / "b.html").read_text()


def test_a_picture(lm2, model, tmp_path):
    pytest.importorskip("matplotlib")
    assert lm2("inspect", model, "--out", tmp_path / "a.png", *FEW).code == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_session(lm2, model, tmp_path):
    file = tmp_path / "s.lm2s"
    assert lm2("chat", model, "--session", file, "--max-tokens", "4", "--seed", "1", *FEW, stdin="Hello there\nHow are you?\n").code == 0
    assert lm2("inspect", file, "--out", tmp_path / "a.html").code == 0
    assert "4 messages" in (tmp_path / "a.html").read_text()
    result = lm2("inspect", file, "--ask", "And?", "--model", model, "--out", tmp_path / "b.html", *FEW)
    assert result.code == 0 and result.out.startswith("question  And?")
    other = tiny_model.make(tmp_path / "other", chunk=256, seed=2)
    lm2("inspect", file, "--ask", "And?", "--model", other, "--out", tmp_path / "c.html", *FEW).fails("model")
    assert not (tmp_path / "c.html").exists()


def test_what_cannot_be_shown_is_one_line(lm2, model, tmp_path, monkeypatch):
    import sys

    assert lm2("inspect", model, "--out", tmp_path / "a.gif").code == 2
    lm2("inspect", model, "--out", tmp_path / "no" / "a.png").fails("does not exist")
    lm2("inspect", tmp_path / "no.lm2s", "--out", tmp_path / "a.png").fails("no.lm2s")
    lm2("inspect", model, "--text", tmp_path / "no.txt", "--out", tmp_path / "a.png", *FEW).fails("no.txt")
    released = tiny_model.make(tmp_path / "released", "released-causal")
    lm2("inspect", released, "--text", __file__, "--out", tmp_path / "a.html", *FEW).fails("'released'")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    lm2("inspect", model, "--out", tmp_path / "a.png", *FEW).fails("pip install matplotlib")


def test_another_backend_is_refused(lm2, model, tmp_path):
    pytest.importorskip("mlx.core")
    lm2("inspect", model, "--backend", "mlx", "--device", "cpu", "--out", tmp_path / "a.html").fails("torch", "mlx")
