"""`lm2 eval` as a user types it: table, JSON, files, wrong command lines, Ctrl-C and going on."""

import json
import os
import signal

import pytest
import tiny_model
from command_line import spawn, wait_for

FEW = ("--samples", "3", "--threads", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model with chunks of 256 bytes: a story and its template fit."""
    return tiny_model.make(tmp_path_factory.mktemp("model") / "tiny", chunk=256)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "babi").mkdir()
    lines = "".join(f"1 Mary{i} moved to the garden.\n2 Where is Mary{i}?\tgarden\t1\n" for i in range(60))
    (folder / "babi" / "qa1_x_train.txt").write_text(lines)
    (folder / "books").mkdir()
    for name in ("a", "b"):
        (folder / "books" / f"{name}.txt").write_text(f"It was {name} that stood above the quiet river all through the night.\n" * 60)
    return folder


def test_json_of_recall(lm2, model):
    args = ("eval", model, "--task", "recall", "--only", "story,chat", "--distances", "1,2", "--seed", "5", *FEW, "--json")
    result = lm2(*args)
    report = json.loads(result.out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert result.code == 0 and (report["format"], report["version"], report["whole"]) == ("lm2-eval", 1, True)
    assert [(c["name"], c["at"], c["count"]) for c in report["cells"]] == [
        ("story", 1, 3), ("story", 2, 3), ("chat", 1, 3), ("chat", 2, 3),
    ]  # fmt: skip
    for cell in report["cells"]:
        assert {"accuracy", "low", "high", "control", "floor", "kinds", "chunks_mean", "tokens_mean"} <= set(cell)
        assert cell["low"] <= cell["accuracy"] <= cell["high"] and 0 < cell["floor"]["share"] < 1
        assert set(cell["control"]) == {"right", "accuracy", "low", "high"}
    assert report["settings"]["seed"] == 5 and report["settings"]["part"] == "validation"
    assert len(result.err.splitlines()) == 4 and lm2(*args).out == result.out, "the same seed, the same report"


def test_table_and_files_of_babilong(lm2, model, data, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    args = ("eval", model, "--task", "babilong", "--data", data, "--lengths", "0k,500", "--out", out, *FEW)
    result = lm2(*args)
    assert result.code == 0, result
    for words in (
        "fingerprint",
        "validation part",
        "whole words",
        "an estimate of GPT-2's tokens",
        "with memory",
        "without",
        "100.0 (garden)",
        "reset",
    ):
        assert words in result.out, words
    assert (out / "babilong.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "result.json").read_text())["cells"][1]["at"] == 500
    first = [json.loads(line) for line in (out / "answers" / "qa1-500.jsonl").read_text().splitlines()]
    assert [a["number"] for a in first] == [0, 1, 2] and first[0]["answer"] == "garden"
    more = lm2(*args[:-4], "--samples", "5", "--threads", "1")
    assert more.code == 0 and "100.0 (garden)" in more.out
    after = [json.loads(line) for line in (out / "answers" / "qa1-500.jsonl").read_text().splitlines()]
    assert after[:3] == first and len(after) == 5, "answers that were there are kept"
    lm2(*args, "--seed", "9").fails("settings.json", "seed", "choose another --out")


def test_perplexity(lm2, model, data, tmp_path):
    result = lm2("eval", model, "--task", "perplexity", "--data", data, "--lengths", "600", "--out", tmp_path / "o", "--json", *FEW)
    report = json.loads(result.out)
    (cell,) = report["cells"]
    assert result.code == 0 and cell["count"] == 3 and cell["low"] <= cell["ratio"] <= cell["high"] and cell["control"]["perplexity"] > 1
    assert (tmp_path / "o" / "perplexity.png").exists()


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ((), "--task"),
        (("--task", "chess"), "'chess'"),
        (("--task", "babilong"), "--data"),
        (("--task", "recall", "--distances", "0"), "--distances"),
        (("--task", "recall", "--distances", "1,x"), "--distances"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(lm2, model, args, word):
    result = lm2("eval", model, *args)
    assert result.code == 2 and word in result.err


def test_what_cannot_be_measured_is_one_line(lm2, model, tiny, data, tmp_path):
    lm2("eval", tiny, "--task", "recall", "--chunk", "20", *FEW).fails("in a chunk of 20")
    lm2("eval", model, "--task", "babilong", "--data", tmp_path).fails(tmp_path, "no file")
    lm2("eval", model, "--task", "babilong", "--data", data, "--lengths", "long").fails("'long'")
    lm2("eval", model, "--task", "babilong", "--data", data, "--only", "qa7").fails("qa7", "qa1")
    lm2("eval", model, "--task", "recall", "--only", "poem").fails("poem", "story, chat")
    lm2("eval", model, "--task", "recall", "--chunk", "300").fails("300", "256")
    lm2("eval", model, "--task", "recall", "--out", tmp_path / "no" / "such").fails("does not exist")
    (tmp_path / "t.json").write_text("{}")
    lm2("eval", model, "--task", "babilong", "--data", data, "--counter", tmp_path / "t.json").fails("t.json")


def test_without_matplotlib_there_is_a_line(lm2, model, monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = lm2("eval", model, "--task", "recall", "--distances", "1", "--out", tmp_path / "o", *FEW)
    assert result.code == 0 and "pip install matplotlib" in result.err and (tmp_path / "o" / "result.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to a process")
def test_ctrl_c_prints_what_there_is_and_the_run_goes_on(model, tmp_path, lm2):
    out = tmp_path / "o"
    args = (
        "eval",
        model,
        "--task",
        "recall",
        "--distances",
        "1",
        "--samples",
        "5000",
        "--threads",
        "1",
        "--batch",
        "4",
        "--out",
        out,
        "--json",
    )
    with spawn(args) as process:
        file = out / "answers" / "story-1.jsonl"
        wait_for(lambda: file.exists() and file.stat().st_size, "the first answers")
        process.send_signal(signal.SIGINT)
        text, err = process.communicate(timeout=60)
    report = json.loads(text)
    count = report["cells"][0]["count"]
    assert process.returncode == 130 and report["whole"] is False and 4 <= count < 5000, err
    assert b"goes on" in err and count == len(file.read_text().splitlines())
    again = lm2(*args[:7], str(count + 2), *args[8:])
    assert again.code == 0 and json.loads(again.out)["cells"][0]["count"] == count + 2
