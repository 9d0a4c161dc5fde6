"""Paths whose bytes are no UTF-8: read, written, printed and kept like any other, or refused in one clear line."""

import json
import os
import shutil
import sys

import pytest
import sources
import tiny_tokenizer

from lm2.models.oserrors import shown

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
FEW = ("--max-tokens", "3", "--seed", "1", "--threads", "1")
ODD = os.fsdecode(b"b\xffd")


@pytest.fixture
def odd(tmp_path):
    """A folder of such a name."""
    folder = tmp_path / ODD
    folder.mkdir()
    return folder


def good(result):
    assert result.code == 0 and "Traceback" not in result.err, result
    return result


def test_shown():
    assert shown(ODD) == r"b\xffd" and shown("é/x") == "é/x" and shown(b"\xff") == r"\xff" and shown("\ud800") == r"\ud800"


def test_a_model_and_a_session(lm2, odd):
    """From checkpoint to answer: the name that is kept is text."""
    src = sources.save_hf(sources.llama(vocab=300, layers=2), odd / "src")
    (src / "tokenizer.json").write_text(tiny_tokenizer.library().to_str())
    model, session = odd / os.fsdecode(b"m\xff"), odd / os.fsdecode(b"s\xff.lm2s")
    summary = json.loads(good(lm2("convert", src, model, "--memory-slots", "32", "--json")).out)
    assert summary["name"] == r"m\xff" and os.fsencode(summary["path"]) == os.fsencode(model)
    assert json.loads((model / "config.json").read_text())["name"] == r"m\xff"
    facts = json.loads(good(lm2("info", model, "--json")).out)
    assert os.fsencode(facts["path"]) == os.fsencode(model)
    text = odd / os.fsdecode(b"t\xff.txt")
    text.write_text("A line of text.\n")
    lines = f"hello\n/read {text}\n/stats\n/save {odd}/q\udcff.lm2s\n".encode("utf-8", "surrogateescape")
    result = good(lm2("chat", model, *FEW, "--session", session, stdin=lines))
    assert "saved to" in result.err and (odd / "q\udcff.lm2s").exists()
    good(lm2("info", session))
    assert json.loads(good(lm2("info", session, "--json")).out)["messages"] == 2 + ("read" in result.err)
    json.loads(good(lm2("generate", model, *FEW, "--prompt-file", text, "--context", text, "--json")).out)
    assert "is ready" not in good(lm2("convert", src, odd / "b", "--name", ODD, "--memory-slots", "32")).err
    good(lm2("chat", odd / "b", *FEW, "--session", odd / "b.lm2s", stdin="hello\n"))


def test_errors_name_them(lm2, tiny, odd):
    for args in (["info", odd / "none"], ["generate", tiny, "--prompt-file", odd / "none"], ["convert", odd / "none", odd / "x"],
                 ["chat", tiny, "--session", odd / "no" / "s.lm2s"], ["export", tiny, odd], ["build-ops", "--out", odd / "no" / "x"]):  # fmt: skip
        if args[0] == "export":
            (odd / "precious").touch()
        lm2(*args, stdin="x\n").fails(r"b\xffd")


def test_stdout_of_a_strict_encoding(tiny, odd, tmp_path):
    """As in a UTF-8 terminal: the name is escaped, not an error."""
    from command_line import shell

    model = shutil.copytree(tiny, odd / "model")
    result = shell(["info", model], env={"LC_ALL": "en_US.UTF-8", "PYTHONIOENCODING": "utf-8:strict"})
    assert result.code == 0 and r"b\udcffd" in result.out and result.err == ""


def test_inspection_and_evaluation(lm2, odd):
    pytest.importorskip("matplotlib")
    text = odd / os.fsdecode(b"t\xff.txt")
    text.write_text("Mary went to the kitchen. John moved to the garden.\n")
    for suffix in (".html", ".png"):
        good(lm2("inspect", "lm2-tiny", "--text", text, "--ask", "Where is Mary?", "--out", odd / f"x{suffix}"))
        assert (odd / f"x{suffix}").stat().st_size > 1000
    ask = ("eval", "lm2-tiny", "--samples", "1", "--out")
    good(lm2(*ask, odd / "e", "--task", "recall", "--distances", "1"))
    books = odd / "data" / "background"
    books.mkdir(parents=True)
    (books / os.fsdecode(b"book\xff.txt")).write_text("It was a long and quiet winter in the small town by the sea. " * 300)
    result = good(lm2(*ask, odd / "p", "--task", "perplexity", "--data", odd / "data", "--lengths", "1k", "--json"))
    assert json.loads(result.out)["cells"] and json.loads((odd / "p" / "result.json").read_text())["cells"]


@pytest.mark.slow
def test_exports(lm2, tiny, odd, monkeypatch):
    """Libraries that take UTF-8 only get another way to the same folder; a server's configuration cannot."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from lm2.export.export import export_model

    ask = ("generate", *FEW, "-p", "x", "--backend")
    want = good(lm2(*ask, "torch", tiny)).out
    good(lm2("export", tiny, odd / "x"))
    export_model(tiny, odd / "aside", inline_max=1)
    monkeypatch.setenv("LM2_HOME", str(odd / "home"))
    for folder in (odd / "x", odd / "aside", tiny):
        assert good(lm2(*ask, "onnx", folder)).out == want
    if shutil.which("cc") or shutil.which("gcc"):
        good(lm2("build-ops"))
        assert good(lm2(*ask, "onnx", tiny)).out == want
    good(lm2("parity", tiny, "--backends", f"torch,onnx@{odd / 'aside'}", "--chunks", "1", "--greedy", "0", "--explain"))
    good(lm2("export", tiny, odd / "four", "--precision", "int4"))
    lm2("export", tiny, "--triton", odd / "server").fails(r"b\xffd", "not UTF-8", "--triton-root")
    assert not (odd / "server").exists()


def test_packed_folders(lm2, odd):
    pytest.importorskip("mlx")
    src = sources.save_hf(sources.llama(vocab=300, layers=2), odd / "src")
    (src / "tokenizer.json").write_text(tiny_tokenizer.library().to_str())
    for name, source in (("packed", src), (os.fsdecode(b"\xff"), odd / "model")):
        if source != src:
            good(lm2("convert", src, source, "--memory-slots", "32"))
        good(lm2("convert", source, odd / name, "--mlx", "--group-size", "32"))
        assert json.loads((odd / name / "config.json").read_text())["name"] == shown(name)
        good(lm2("generate", odd / name, *FEW[:4], "-p", "x", "--backend", "mlx"))


def test_gguf_files(lm2, odd):
    pytest.importorskip("gguf")
    file = odd / os.fsdecode(b"w\xff.gguf")
    sources.write_gguf(file, sources.llama(layers=2))
    good(lm2("convert", file, odd / "m", "--memory-slots", "32"))
    assert json.loads((odd / "m" / "source.json").read_text())["files"][0]["file"] == r"w\xff.gguf"
