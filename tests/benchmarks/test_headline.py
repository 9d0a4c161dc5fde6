"""The comparison's table says what was counted and what the paper says; the whole of it runs at toy size, and goes on after a kill."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import wait_for

HERE = Path(__file__).parent.parent.parent / "benchmarks"


def module(name):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


table = module("headline_table")
ABOUT = {"parameters": 1411968, "state_bytes": 1048576, "window": 32, "loss": 1.25}


def cell(name, label, right, count, floor=0.2):
    return table.Found(name, int(label[:-1]) * 1000, label, right, count, floor)


def test_seeds_are_counted_together_and_lengths_stand_in_order():
    runs = [[cell("qa2", "16k", 1, 4), cell("qa1", "0k", 3, 4)], [cell("qa1", "0k", 2, 4), cell("qa2", "16k", 4, 4)]]
    both = table.merged(runs)
    assert [(c.name, c.label, c.right, c.count) for c in both] == [("qa1", "0k", 5, 8), ("qa2", "16k", 5, 8)]


def test_the_table_has_figures_intervals_floors_and_the_papers():
    found = {"lm2": [cell("qa1", "0k", 9, 10), cell("qa2", "0k", 5, 10), cell("qa1", "4k", 2, 10)], "none": [cell("qa1", "0k", 4, 10)]}
    text = table.markdown("title", found, {"lm2": ABOUT, "none": ABOUT | {"state_bytes": 0}}, {"lm2": 1, "none": 2})
    for words in ("LM2: 1,411,968 parameters, 1,048,576 bytes carried, 32 tokens at a time, 1 seed, loss at the end 1.25", "2 seeds",
                  "| LM2 | 70 [48-85] of 20 | 20 [6-51] of 10 |", "| Llama | 40 [17-69] of 10 |  |", "| floor | 20 | 20 |",
                  "| LM2-1.7B, the paper | 94 | 42 |", "| Llama-1.7B, the paper | 86 | 21 |", "| qa1 | LM2 | 90 [60-98] | 20 [6-51] |", "| qa2 | Llama |  |  |"):  # fmt: skip
        assert words in text, words
    assert table.paper("rmt", "0k", ["qa1", "qa10"]) == (85 + 76) / 2 and table.paper("lm2", "64k", ["qa1"]) is None
    assert "Nothing was measured" in table.markdown("title", {}, {}, {})


def test_the_figure_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    table.draw({"lm2": [cell("qa1", "0k", 9, 10), cell("qa1", "4k", 2, 10)], "rmt": [cell("qa1", "0k", 9, 10)]}, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_it_runs_and_goes_on_after_a_kill(tmp_path):
    data = tmp_path / "data"
    (data / "babi").mkdir(parents=True)
    (data / "background").mkdir()
    rooms = ("kitchen", "office", "garden", "hallway", "bedroom", "bathroom")
    moves = "".join(f"1 Mary moved to the {a}.\n2 John went to the {b}.\n3 Where is Mary?\t{a}\t1\n" for a in rooms for b in rooms)
    (data / "babi" / "qa1_x_train.txt").write_text(moves)
    north = "".join(f"1 The {a} is north of the {b}.\n2 What is north of the {b}?\t{a}\t1\n" for a in rooms for b in rooms if a != b)
    (data / "babi" / "qa4_x_train.txt").write_text(north)
    for name in ("a", "b", "c"):
        (data / "background" / f"{name}.txt").write_text(f"It was {name} that stood above the quiet river all through the long night. " * 40 + "\n")
    out = tmp_path / "out"
    args = [sys.executable, str(HERE / "headline.py"), "--data", str(data), "--out", str(out), "--arms", "rmt,none", "--size", "tiny"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(args, env=env, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        wait_for(lambda: (out / "rmt-0" / "model").is_dir(), "the first model", 300)
        os.killpg(process.pid, signal.SIGKILL)
    before = (out / "rmt-0" / "model" / "model.safetensors").stat().st_mtime_ns
    done = subprocess.run(args, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / "rmt-0" / "model" / "model.safetensors").stat().st_mtime_ns == before, "what is there is not made again"
    found = json.loads((out / "results.json").read_text())
    assert set(found["cells"]) == {"rmt", "none"} and all(len(c) == 4 for c in found["cells"].values())
    counts = [a["parameters"] for a in found["about"].values()]
    assert max(counts) - min(counts) < 2304 and (out / "headline.png").exists()
    other = subprocess.run([*args[:-1], "small"], env=env, capture_output=True, text=True)
    assert other.returncode == 1 and "is of size tiny" in other.stderr
