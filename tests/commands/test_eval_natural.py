"""`lm2 eval --task recall --only natural` as a user types it."""

import json

import pytest
import tiny_model

ARGS = ("--task", "recall", "--only", "natural", "--samples", "7", "--distances", "40,0", "--answer-tokens", "2", "--threads", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model.make(tmp_path_factory.mktemp("model") / "tiny", "gated-4T")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    from lm2.runtime.evaluation import natural

    monkeypatch.setattr(natural, "FILLERS", 3)
    monkeypatch.setattr(natural, "FILLER_TOKENS", 3)


def test_table_json_and_going_on(lm2, model, tmp_path):
    result = lm2("eval", model, *ARGS, "--out", tmp_path / "out")
    assert result.code == 0 and "at once" in result.out and "40 tokens out of sight" in result.out and "another's memory" in result.out
    kept = (tmp_path / "out" / "answers" / "natural.jsonl").read_bytes()
    again = json.loads(lm2("eval", model, *ARGS, "--out", tmp_path / "out", "--json").out)
    assert (tmp_path / "out" / "answers" / "natural.jsonl").read_bytes() == kept, "nothing is asked twice"
    assert [(c["at"], c["count"]) for c in again["cells"]] == [(0, 7), (40, 7)] and again["settings"]["window"] == 64 and again["whole"]
    assert set(again["cells"][0]["arms"]) == {"memory", "other", "off", "whole"}


def test_a_run_belongs_to_its_part(lm2, model, tmp_path):
    """Without --part the unseen conversations are asked, and a folder of theirs is not gone on with on the known ones."""
    from lm2.models.tasks.natural import talk

    asked, args = {}, (*ARGS, "--distances", "0")
    for name, more, part in (("auto", (), "test"), ("known", ("--part", "validation"), "validation")):
        result = json.loads(lm2("eval", model, *args, *more, "--out", tmp_path / name, "--json").out)
        assert result["settings"]["part"] == part
        rows = [json.loads(line) for line in (tmp_path / name / "answers" / "natural.jsonl").read_text().splitlines()]
        asked[name] = {row["question"] for row in rows if row["source"] == "written"}
    unseen, known = ({q.question for t in talks for q in t.questions} for talks in (talk.unseen(), talk.talks()))
    assert asked["auto"] <= unseen and asked["known"] <= known and all(asked.values())
    lm2("eval", model, *args, "--part", "validation", "--out", tmp_path / "auto").fails('answers for part "test", this run has "validation"')
    lm2("eval", model, *args, "--part", "train").fails("--part train: natural asks what training does not use")


def test_what_is_wrong_is_said(lm2, model, tmp_path):
    for args, words in ((("--only", "natural,story"), "natural is measured alone"), (("--only", "natural", "--distances", "-1"), "'-1'")):
        result = lm2("eval", model, "--task", "recall", *args)
        assert result.code == 2 and words in result.err
    lm2("eval", model, *ARGS, "--window", "8").fails("--window 8 must be from 16")
    lm2("eval", model, *ARGS, "--data", tmp_path).fails("slots.jsonl")
