"""`lm2 eval --task harm` as a user types it."""

import json

import pytest
import tiny_model

ARGS = ("--task", "harm", "--samples", "3", "--answer-tokens", "2", "--threads", "1", "--backend", "torch")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model.make(tmp_path_factory.mktemp("model") / "tiny", window=512, chunk=200)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    from lm2.runtime.evaluation import natural

    monkeypatch.setattr(natural, "FILLERS", 30)
    monkeypatch.setattr(natural, "FILLER_TOKENS", 3)


def test_table_json_and_going_on(lm2, model, tmp_path):
    out = tmp_path / "out"
    result = lm2("eval", model, *ARGS, "--out", out)
    assert result.code == 0 and "nats a token" in result.out and "never written" in result.out and "<= 0.02" in result.out and "seed 0" in result.out
    kept = (out / "answers" / "harm.jsonl").read_bytes()
    again = json.loads(lm2("eval", model, *ARGS, "--out", out, "--json").out)
    assert (out / "answers" / "harm.jsonl").read_bytes() == kept, "nothing is asked twice"
    (cell,) = again["cells"]
    assert cell["count"] == 3 and cell["control"]["divergence"] < 1e-9 and cell["control"]["first_sentence"]["share"] == 1.0
    assert again["task"] == "harm" and again["whole"] and again["settings"]["window"] == 512 and again["settings"]["samples"] == 3
    assert json.loads((out / "result.json").read_text()) == again
    more = json.loads(lm2("eval", model, *ARGS, "--samples", "4", "--out", out, "--json").out)
    assert more["cells"][0]["count"] == 4 and (out / "answers" / "harm.jsonl").read_bytes().startswith(kept)
    lm2("eval", model, *ARGS, "--seed", "1", "--out", out).fails("choose another --out")


def test_what_is_wrong_is_said(lm2, model, tmp_path):
    lm2("eval", model, *ARGS, "--window", "8").fails("--window 8 must be from 16")
    lm2("eval", model, *ARGS, "--samples", "206").fails("--samples 206: there are 205 ordinary held-out questions")
    released = tiny_model.make(tmp_path / "released", "released-causal")
    lm2("eval", released, *ARGS).fails("needs a memory of cell gated")
