"""Training a recall from the command line, at toy size: going on, and what is refused."""

import json

import tiny_model
from recall_training_kit import FINDER, ONE, same

from lm2 import Sampling, Session
from lm2.models.layout import open_folder
from lm2.models.recall import open_recall
from lm2.models.training import retell_task
from lm2.runtime.loading import load


def test_seek_then_retell(lm2, folder, tmp_path):
    """Stopped and gone on with, a run ends in the bits of one that was not; the model with the result answers from what it was told."""
    runs = {}
    for name, until in (("whole", ()), ("parted", ("--until", "2"))):
        args = ("train", folder, "--task", "seek", "--steps", "4", "--out", tmp_path / name, *ONE)
        first = lm2(*args, *until)
        assert first.code == 0, first
        if until:
            assert "stopped at step 2 of 4" in first.out and not (tmp_path / name / "recall").exists()
            assert lm2(*args).code == 0
        runs[name] = open_recall(tmp_path / name / "recall", open_folder(folder).config)
    sought = runs["whole"]
    assert same(sought, runs["parted"]) and sought.backbone == runs["parted"].backbone
    assert set(sought.training) == {"seek"}
    again = lm2("train", folder, "--task", "seek", "--steps", "4", "--out", tmp_path / "whole", *ONE)
    assert again.code == 0 and "is there already, and is left as it is" in again.out
    for name, until in (("whole", ()), ("parted", ("--until", "2"))):
        args = ("train", folder, "--task", "retell", "--steps", "4", "--stages", "1:1x2", "--rate", "0.05")
        args = (*args, "--recall", tmp_path / "whole" / "recall", "--out", tmp_path / f"retell {name}", *ONE)
        first = lm2(*args, *until)
        assert first.code == 0, first
        assert not until or lm2(*args).code == 0
        runs[name] = open_recall(tmp_path / f"retell {name}" / "recall", open_folder(folder).config)
    told = runs["whole"]
    assert same(told, runs["parted"])
    assert same(told, sought, FINDER) and not same(told, sought, ("keys",)) and not same(told, sought, ("values",))
    assert set(told.training) == {"seek", "retell"} and "--recall FIRST" in json.dumps(told.training["retell"])
    for file in (tmp_path / "retell whole" / "recall").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    try:
        session = Session(load(folder, "torch", device="cpu", threads=1), sampling=Sampling(temperature=0.0))
        assert session.recalling is not None
        assert same(session.recalling.recall, told)
    finally:
        for name in ("recall.json", "recall.safetensors"):
            (folder / name).unlink()


def test_retell_needs_a_recall(lm2, folder, tmp_path):
    said = lm2("train", folder, "--task", "retell", "--out", tmp_path / "out", *ONE)
    assert said.code == 1 and "--task retell needs --recall: the folder that --task seek wrote" in said.err, said
    (tmp_path / "empty").mkdir()
    said = lm2("train", folder, "--task", "retell", "--recall", tmp_path / "empty", "--out", tmp_path / "out", *ONE)
    said.fails("recall.json does not exist: give a recall's folder")


def test_a_recall_of_another_backbone(lm2, folder, tmp_path):
    other = tiny_model.make(tmp_path / "other", seed=2)
    from safetensors.numpy import load_file, save_file

    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    save_file(weights, other / "model.safetensors")
    (other / "fingerprint.json").unlink(missing_ok=True)
    made = lm2("train", other, "--task", "seek", "--steps", "1", "--out", tmp_path / "seek", *ONE)
    assert made.code == 0, made
    said = lm2("train", folder, "--task", "retell", "--recall", tmp_path / "seek" / "recall", "--out", tmp_path / "out", *ONE)
    assert said.code == 1 and "is a recall of tiny (backbone " in said.err and "train one with --task seek" in said.err, said


def test_a_model_without_a_template(lm2, tmp_path):
    bare = tiny_model.make(tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    said = lm2("train", bare, "--task", "seek", "--steps", "1", "--out", tmp_path / "out", *ONE)
    assert said.code == 1 and "has no chat_template.jinja: a recall needs a chat model" in said.err, said


def test_a_model_of_too_few_positions(lm2, tmp_path, monkeypatch):
    """The examples that an opening begins as do not fit: said, not a shape that does not match."""
    few = tiny_model.make(tmp_path / "few")
    config = json.loads((few / "config.json").read_text())
    config["max_position_embeddings"] = 96
    (few / "config.json").write_text(json.dumps(config))
    (few / "fingerprint.json").unlink(missing_ok=True)
    monkeypatch.setattr(retell_task, "SHOWN", ((("x" * 90,), "What?", "That."),))
    said = lm2("train", few, "--task", "seek", "--steps", "1", "--out", tmp_path / "out", *ONE)
    said.fails("a question with its passages takes 144 positions", "the model has 96: take another")
    assert "step 1" not in said.out, "said at once, not after the training"


# what a step does
