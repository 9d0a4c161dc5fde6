"""`lm2 info`: facts for people and for programs, without loading weights."""

import json
import sys

import pytest


def facts(result):
    assert result.code == 0 and not result.err, result
    return json.loads(result.out)


def test_model(lm2, tiny):
    found = facts(lm2("info", tiny, "--json"))
    assert found["kind"] == "model" and found["name"] == "tiny" and found["path"] == str(tiny) and found["source"] is None
    assert (found["layers"], found["hidden_size"], found["vocab_size"]) == (2, 32, 259)
    assert (found["memory_cell"], found["memory_slots"], found["memory_chunk"], found["memory_layers"]) == ("gated", 72, 24, [0, 1])
    assert found["state_bytes"] == 2 * 72 * 32 * 4 and found["weights_bytes"] == (tiny / "model.safetensors").stat().st_size
    assert found["parameters"] > found["memory_parameters"] > 0


def test_model_for_people(lm2, tiny):
    result = lm2("info", tiny)
    found = facts(lm2("info", tiny, "--json"))
    lines = dict(line.split("  ", 1) for line in result.out.splitlines())
    assert result.code == 0 and lines["fingerprint"].strip() == found["fingerprint"], "whole, also in a pipe"
    assert not any(line != line.rstrip() or "None" in line for line in result.out.splitlines())
    assert "18 KB (18,432 bytes)" in lines["state bytes"]


def test_source_is_shown(lm2, tiny, tmp_path):
    import shutil

    model = shutil.copytree(tiny, tmp_path / "m")
    (model / "source.json").write_text('{"source": "wheel", "version": "1.2"}')
    assert facts(lm2("info", model, "--json"))["source"]["version"] == "1.2"
    assert "version 1.2" in lm2("info", model).out
    (model / "source.json").write_text("{")
    lm2("info", model).fails(model / "source.json")


@pytest.fixture
def session(lm2, tiny, tmp_path):
    file = tmp_path / "s.lm2s"
    assert lm2("chat", tiny, "--session", file, "--seed", "3", "--max-tokens", "40", stdin="one\ntwo\nthree\n").code == 0
    return file


def test_session(lm2, session, tiny):
    found = facts(lm2("info", session, "--json"))
    assert found["kind"] == "session" and found["model"] == "tiny" and found["saved_by"] == "torch" and found["seed"] == 3
    assert found["fingerprint"] == facts(lm2("info", tiny, "--json"))["fingerprint"]
    assert found["messages"] == 6 and found["undo_steps"] == 3 and found["draws"] == 120 and found["tokens_written"] > 0
    assert found["file_bytes"] == session.stat().st_size and found["bank_shape"] == [2, 1, 72, 32]
    assert all(0 < n <= 72 for n in found["rows_not_zero"]) and found["window_tokens"] <= found["window"] == 64 < found["tokens_seen"]
    assert 0 < found["carried"] < found["window_tokens"] and found["folds"] >= 1
    assert found["tokens_written"] == found["written_before_the_window"] + found["window_tokens"] - found["carried"] == found["tokens_seen"]
    assert "tokens written" in lm2("info", session).out


def test_session_with_a_crafted_document(lm2, session):
    import forge

    good = session.read_bytes()
    session.write_bytes(forge.with_text(good, lambda text: text.replace('"transcript":', '"transcripts":')))
    lm2("info", session).fails(session, "document.transcript is missing", "--new")


def test_names(lm2, tmp_path, monkeypatch):
    lm2("info", tmp_path / "none.lm2s").fails("none.lm2s does not exist")
    lm2("info", tmp_path / "none").fails("model", "none does not exist")
    monkeypatch.setenv("LM2_HOME", str(tmp_path))
    lm2("info", "smollm2").fails("model smollm2 is not here yet: lm2 pull smollm2")


def test_no_ml_library_is_needed(lm2, tiny, session, monkeypatch):
    for name in ("torch", "mlx", "onnxruntime", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    assert facts(lm2("info", tiny, "--json"))["kind"] == "model"
    assert facts(lm2("info", session, "--json"))["kind"] == "session"


def test_whose_words_a_session_holds(lm2, session, tiny, tmp_path):
    """With the model's folder the turns are told in words, without it by number; another model's tokenizer is refused."""
    named = facts(lm2("info", session, "--json", "--model", tiny))["held"]
    bare = facts(lm2("info", session, "--json"))["held"]
    assert [(h["number"], h["rows"]) for h in named] == [(h["number"], h["rows"]) for h in bare] and {0, 2, 3} & {h["number"] for h in named}
    assert any("three" in h["text"] for h in named) and not any(h["text"] for h in bare)
    assert "three" in lm2("info", session, "--model", tiny).out
    lm2("info", session, "--model", "lm2-tiny").fails(session, "saved with tokenizer", "give the model it was saved with")
    lm2("info", session, "--model", tmp_path).fails("tokenizer.json")
