"""A model's recall goes along with what is made of the model, and is found for a pulled model of the catalogue."""

from dataclasses import replace

import pytest
import recall_kit
import tiny
import tiny_tokenizer

from lm2 import Sampling, Session
from lm2.models.checkpoints import catalog, recalls
from lm2.models.checkpoints.adapter import folder_key
from lm2.models.errors import ModelFileError
from lm2.models.layout import open_folder
from lm2.models.recall import RECORD, TENSORS
from lm2.models.recall.folder import write_recall
from lm2.models.weights import random_model, save_folder
from lm2.runtime.loading import find_recall, load


def chat_model(folder, seed):
    """Widths that can be packed."""
    config = tiny.config(vocab=tiny_tokenizer.VOCAB, chunk=128, width=64, intermediate_size=128, head_dim=16, max_position_embeddings=1024, eos_token_id=(258,))
    save_folder(random_model(replace(config, memory=replace(config.memory, head_dim=16)), seed), folder)
    tiny_tokenizer.make(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A chat model with a recall in its folder."""
    folder = chat_model(tmp_path_factory.mktemp("models") / "gated", 1)
    opened = open_folder(folder)
    write_recall(folder, opened.config, recall_kit.recall(opened.config, backbone=("tiny", folder_key(opened))))
    return folder


def exported(source, out):
    pytest.importorskip("onnx")
    from lm2.export.export import export_model

    export_model(source, out)
    return "onnx"


def packed(source, out):
    pytest.importorskip("mlx.core")
    from lm2.lm2_mlx.quantize import quantize_folder

    quantize_folder(source, out, 8, 32)
    return "mlx"


@pytest.mark.parametrize("made", [exported, packed], ids=lambda f: f.__name__)
def test_it_goes_along(source, tmp_path, made):
    backend = made(source, tmp_path / "out")
    for name in (RECORD, TENSORS):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    model = replace(load(tmp_path / "out", backend, device="cpu"), eos=frozenset())
    session = Session(model, sampling=Sampling(temperature=0.0), seed=1)
    session.hear("my zebra eats plums", "fine")
    session.say("zebra eats plums?", 3)
    assert [p.text for p in session.recalled] == ["my zebra eats plums"]
    (tmp_path / "out" / RECORD).unlink()
    assert load(tmp_path / "out", backend, device="cpu").recall is None


def test_one_of_another_backbone_is_refused_by_name(source, tmp_path):
    other = chat_model(tmp_path / "other", 7)
    for name in (RECORD, TENSORS):
        (other / name).write_bytes((source / name).read_bytes())
    with pytest.raises(ModelFileError, match="was trained on tiny .* has another .*train one for this model"):
        find_recall(open_folder(other))


def test_a_pulled_model_has_the_one_that_comes_with_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("LM2_HOME", str(tmp_path))
    pulled = tmp_path / "models" / "smollm2"
    assert recalls.place_of(pulled) == recalls.shipped_folder() / "smollm2-recall"
    assert recalls.place_of(tmp_path / "smollm2") is None and recalls.place_of(tmp_path / "models" / "other") is None
    assert {name for name, entry in catalog.CATALOG.items() if entry.recall == "smollm2-recall"} == {"smollm2", "smollm2-memory"}
    assert recalls.place_of(tmp_path / "models" / "gemma3-270m") is None
    pulled.mkdir(parents=True)
    (pulled / RECORD).write_text("{}")
    assert recalls.place_of(pulled) == pulled, "its own goes before"
