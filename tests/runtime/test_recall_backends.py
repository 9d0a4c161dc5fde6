"""Recalls in models' folders and on every backend: the same passages are read, the same tokens answered."""

from dataclasses import replace

import pytest
import recall_kit
import tiny_model
from recalled_kit import ASK, GREEDY, OTHER, talked, texts

from lm2.models.recall import Found, Use, save_recall
from lm2.runtime.loading import load


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny model's folder with a recall of its own in it."""
    from lm2.models.checkpoints.adapter import folder_key
    from lm2.models.layout import open_folder

    folder = tiny_model.make(tmp_path_factory.mktemp("recalling") / "model", ends=())
    opened = open_folder(folder)
    made = folder.parent / "recall"
    save_recall(made, opened.config, recall_kit.recall(opened.config, backbone=("tiny", folder_key(opened))))
    for file in made.iterdir():
        file.rename(folder / file.name)
    return folder


def test_a_model_folder_with_a_recall(folders, tmp_path):
    from lm2.models.errors import ModelFileError

    model = replace(load(folders, "torch", device="cpu", threads=1), eos=frozenset())
    assert model.recall is not None
    assert load(folders, "torch", device="cpu", threads=1, memory=False).recall is None
    import shutil

    other = shutil.copytree(folders, tmp_path / "other")
    recall_kit.changed(other, backbone={"name": "somebody else's", "key": "1" * 64})
    with pytest.raises(ModelFileError, match=r"recall.json was trained on somebody else's \(backbone 111111111111\), .* take the file away, or train one"):
        load(other, "torch", device="cpu", threads=1)


@pytest.fixture(scope="module")
def wanted(folders):
    return conversation(folders, "torch", folders)


def conversation(folder, backend, source):
    from lm2.models.config import read_json
    from lm2.models.recall import open_recall

    assert read_json(source / "recall.json")
    model = load(folder, backend, device="cpu", threads=0 if backend == "mlx" else 1)
    return both(replace(model, eos=frozenset(), recall=open_recall(source, model.config)))


def both(model):
    """What is answered, and where the session then stands, without a reader and then with one: no answer of the second begins as one of the first."""
    out = []
    for reader in (None, LastWord()):
        session = talked(replace(model, recall=model.recall._replace(reader=reader)), sampling=GREEDY)
        for message in (ASK, OTHER + "!", "0000", ASK):
            session.say(message, 14)
            out.append((session.reply.tokens, texts(session.recalled)))
        out.append(standing_of(session))
    return out


class LastWord:
    """A reader for which the last word of a message answers everything."""

    use = Use(4, 0.0, -1e3, 1e3)

    def read(self, question, messages, before=()):
        return [Found(m.split()[-1], 1.0) for m in messages]


def standing_of(session):
    return session.at.tokens + session.at.pending, session.at.carried, session.at.folds


@pytest.mark.parametrize("side", ["static", "mlx", "onnx"])
def test_every_backend_answers_the_same(folders, wanted, side, tmp_path):
    assert [bool(r) for _, r in wanted[:4]] == [bool(r) for _, r in wanted[5:9]] == [True, True, False, True]
    assert wanted[0] != wanted[5] and wanted[1] != wanted[6], "what the reader finds is said"
    if side == "static":
        import torch

        from lm2.models.layout import open_folder
        from lm2.models.recall import open_recall
        from lm2.models.weights import load_model
        from lm2.runtime.backends.torch_backend import TorchBackend

        model = load(folders, "torch", device="cpu", threads=1)
        static = TorchBackend(load_model(open_folder(folders), torch.device("cpu"), torch.float32), static=True)
        assert both(replace(model, backend=static, eos=frozenset(), recall=open_recall(folders, model.config))) == wanted
        return
    if side == "mlx":
        pytest.importorskip("mlx.core")
        assert conversation(folders, "mlx", folders) == wanted
        return
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from lm2.export.export import export_model
    from lm2.export.options import Options

    for options in (Options(), Options(window=512)):
        export_model(folders, tmp_path / f"{options.window}", options)
        assert conversation(tmp_path / f"{options.window}", "onnx", folders) == wanted
    export_model(folders, tmp_path / "64", Options(window=64))
    assert not any(recalled for _, recalled in conversation(tmp_path / "64", "onnx", folders)[:4])
