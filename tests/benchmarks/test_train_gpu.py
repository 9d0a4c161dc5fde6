"""The recipe in legs, at toy size on the CPU: legs end in an adapter, files stay small, and damaged parts are refused by name."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sources
import tiny_tokenizer

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_gpu.py"


@pytest.fixture(scope="module")
def legs():
    spec = importlib.util.spec_from_file_location("train_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def packed(legs, tmp_path):
    folder = tmp_path / "run"
    (folder / "adapter").mkdir(parents=True)
    (folder / "state.pt").write_bytes(os.urandom(2500))
    (folder / "adapter" / "adapter.json").write_text("{}")
    (folder / "empty").write_bytes(b"")
    legs.pack(folder, tmp_path / "parts", False, limit=1000)
    return folder, tmp_path / "parts"


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_there_and_back(legs, packed, tmp_path):
    folder, parts = packed
    assert max(p.stat().st_size for p in parts.iterdir() if p.name != legs.MANIFEST) == 1000
    assert legs.unpack(parts, tmp_path / "back") is False and contents(tmp_path / "back") == contents(folder)
    (folder / "state.pt").write_bytes(b"later")
    legs.pack(folder, parts, True, limit=1000)
    assert legs.unpack(parts, tmp_path / "back") is True and contents(tmp_path / "back") == contents(folder)
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".new") or "partial" in p.name]


def test_pools_stay_behind(legs, packed, tmp_path):
    folder, parts = packed
    (folder / "pools").mkdir()
    (folder / "pools" / "pool-0-0.pt").write_bytes(os.urandom(5000))
    legs.pack(folder, parts, False, limit=1000)
    legs.unpack(parts, tmp_path / "back")
    assert contents(tmp_path / "back") == {name: data for name, data in contents(folder).items() if not name.startswith("pools/")}


@pytest.mark.parametrize("damage", ["changed", "missing", "swapped", "manifest", "outside"])
def test_damaged_parts_are_named_and_nothing_is_lost(legs, packed, tmp_path, damage):
    folder, parts = packed
    before = contents(folder)
    manifest = json.loads((parts / legs.MANIFEST).read_text())
    state = [p["name"] for p in manifest["files"]["state.pt"]["parts"]]
    word = state[1]
    if damage == "changed":
        (parts / state[1]).write_bytes(b"x" * 1000)
    elif damage == "missing":
        (parts / state[1]).unlink()
    elif damage == "swapped":
        manifest["files"]["state.pt"]["parts"].reverse()
        (parts / legs.MANIFEST).write_text(json.dumps(manifest))
        word = "state.pt"
    elif damage == "manifest":
        (parts / legs.MANIFEST).write_text("{")
        word = legs.MANIFEST
    else:
        manifest["files"] = {"../../outside": manifest["files"]["empty"]}
        (parts / legs.MANIFEST).write_text(json.dumps(manifest))
        word = "../../outside"
    with pytest.raises(SystemExit) as stop:
        legs.unpack(parts, folder)
    assert word in str(stop.value) and contents(folder) == before and not (tmp_path / "outside").exists()


@pytest.mark.parametrize("task", ["chat", "find", "seek", "retell", "read"])
def test_what_is_asked_for_is_a_recipe_of_lm2_train(legs, task):
    """Options that it has, stages that it reads, the device's precision; what a caller says comes last."""
    from lm2.models.training.plan import stages
    from lm2.runtime.commands.train import command

    def read(*more):
        return command.make_context("train", ["smollm2", *legs.options(task, more), "--out", "runs/x"]).params

    usual, toy = read(), read("--device", "cpu", "--steps", "3", "--stages", "1:1x2")
    assert usual["task"] == task and usual["steps"] > toy["steps"] == 3 and usual["half"] is (task in ("chat", "find")) and not toy["half"]
    assert task == "seek" or stages(usual["stages"])[-1].batch > stages(toy["stages"])[-1].batch == 2
    assert legs.result(task) == ("recall" if task in ("seek", "retell", "read") else "adapter")


def ended(model, parts, *options):
    """Legs of one step each, the run folder thrown away between them; the last run folder. The small files are small."""
    command = [sys.executable, str(SCRIPT), str(model), "--parts", str(parts), "--device", "cpu", "--threads", "1", *map(str, options)]
    said = []
    for leg in range(3):
        run = parts.with_name(f"{parts.name} run{leg}")
        done = subprocess.run([*command, "--run", str(run), "--minutes", "0.0001"], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.splitlines()[-1])
        if said[-1] == "finished":
            break
    assert said == ["to be continued: call again with the same arguments", "finished"]
    assert max(p.stat().st_size for p in parts.iterdir()) < 16_000_000
    return run


@pytest.mark.slow
def test_legs_end_in_an_adapter(tmp_path):
    """The result goes onto its backbone."""
    hf = sources.save_hf(sources.llama(vocab=tiny_tokenizer.VOCAB, layers=2, max_position_embeddings=256), tmp_path / "hf")
    tiny_tokenizer.make(hf)
    from lm2.models.checkpoints.convert import convert
    from lm2.models.checkpoints.warmstart import MemoryRequest

    convert(hf, tmp_path / "model", MemoryRequest())
    small = ("--steps", "2", "--stages", "1:1x1", "--memory-layers", "1", "--memory-chunk", "64", "--memory-blocks", "32")
    run = ended(tmp_path / "model", tmp_path / "parts", *small)
    assert convert(hf, tmp_path / "made", MemoryRequest(adapter=run / "adapter"))["memory"]["trained"]


@pytest.mark.slow
def test_legs_end_in_a_recall(tmp_path):
    """The finder in legs, then the opening in legs that begin from it; what comes out is the model's."""
    hf = sources.save_hf(sources.llama(vocab=tiny_tokenizer.VOCAB, layers=2, max_position_embeddings=1600), tmp_path / "hf")
    tiny_tokenizer.make(hf)
    from lm2.models.checkpoints.convert import convert
    from lm2.models.checkpoints.warmstart import MemoryRequest
    from lm2.models.layout import open_folder
    from lm2.models.recall import open_recall

    convert(hf, tmp_path / "model", MemoryRequest())
    config = open_folder(tmp_path / "model").config
    found = ended(tmp_path / "model", tmp_path / "seek", "--task", "seek", "--steps", "2") / "recall"
    told = ended(tmp_path / "model", tmp_path / "retell", "--task", "retell", "--recall", found, "--steps", "2", "--stages", "1:1x2") / "recall"
    first, last = open_recall(found, config), open_recall(told, config)
    assert (first.finder.asking == last.finder.asking).all() and (first.opening.keys != last.opening.keys).any()
    assert set(last.training) == {"seek", "retell"}
