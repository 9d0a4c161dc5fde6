"""The encoder of sentences against transformers' BERT, its files, and what is refused."""

import json

import encoder_kit
import numpy as np
import pytest

from lm2.models.errors import ModelFileError
from lm2.models.recall import bert
from lm2.models.recall import encoder as made
from lm2.models.recall.bert import gelu
from lm2.models.recall.encoder import nearness
from lm2.models.recall.encoder_files import FILES, from_bert, open_encoder, write_encoder

TEXTS = ["the zebra eats plums", "my brother is a baker", "?", "a striped horse", " ".join(["zebra"] * 60)]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    model = encoder_kit.bert(folder)
    return folder, model, from_bert(folder, {"model": "tiny"}, weight=10.0, among=3)


def reference(model, encoder, text):
    """Unit states of transformers' model with the encoder's own numbers in its matrices."""
    import torch

    w, state = encoder_kit.wide(encoder), model.state_dict()
    state["embeddings.word_embeddings.weight"], state["embeddings.position_embeddings.weight"] = map(torch.tensor, (w["words"], w["places"]))
    for i in range(encoder.sizes.layers):
        at = f"encoder.layer.{i}."
        for name, part in zip(("query", "key", "value"), np.split(w[f"{i}.qkv"], 3), strict=True):
            state[f"{at}attention.self.{name}.weight"] = torch.tensor(part)
        for ours, theirs in (("out", "attention.output.dense"), ("up", "intermediate.dense"), ("down", "output.dense")):
            state[f"{at}{theirs}.weight"] = torch.tensor(w[f"{i}.{ours}"])
    model.load_state_dict(state)
    ids = torch.tensor([encoder.tokenizer.encode(text).ids[: encoder.sizes.positions]])
    with torch.no_grad():
        return torch.nn.functional.normalize(model(ids).last_hidden_state[0, 1:-1], dim=1).numpy()


def largest(model, encoder):
    return max(float(np.abs(a - reference(model, encoder, t)).max(initial=0)) for a, t in zip(encoder.vectors(TEXTS), TEXTS, strict=True))


def test_the_vectors_are_transformers(opened):
    """Texts computed together, one of them longer than there are places. Measured: 1e-6."""
    _, model, encoder = opened
    assert largest(model, encoder) < 1e-5


@pytest.mark.parametrize("fault", ["gelu", "_attention"])
def test_another_function_is_not(opened, monkeypatch, fault):
    _, model, encoder = opened
    wrong = {"gelu": lambda x: np.maximum(x, 0), "_attention": lambda qkv: qkv[:, 2].reshape(len(qkv), -1)}[fault]
    monkeypatch.setattr(bert, fault, wrong)
    assert largest(model, encoder) > 1e-2


def test_a_text_is_the_same_beside_others(opened):
    encoder = opened[2]
    together = encoder.vectors(TEXTS)
    assert all(np.allclose(a, encoder.vectors([t])[0], atol=1e-5) for a, t in zip(together, TEXTS, strict=True))
    assert encoder.vectors([]) == [] and encoder.vectors([""])[0].shape == (0, 24)


def test_parts_are_cut_between_texts(opened, monkeypatch):
    encoder = opened[2]
    whole = encoder.vectors(TEXTS)
    monkeypatch.setattr(made, "PART", 7)
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(whole, encoder.vectors(TEXTS), strict=True))


def test_gelu_is_by_the_normal_distribution():
    from math import erf

    x = np.linspace(-8, 8, 4001, dtype=np.float32)
    assert np.abs(gelu(x) - [v * 0.5 * (1 + erf(v / 2**0.5)) for v in x.astype(float)]).max() < 1e-6


def test_nearness():
    a, b = np.eye(3, dtype=np.float32)[:2], np.eye(3, dtype=np.float32)
    assert nearness(a, b) == 1 and nearness(b, a) == pytest.approx(2 / 3) and nearness(a, b[:0]) == nearness(a[:0], b) == 0


def test_files_hold_what_was_written(opened, tmp_path):
    encoder = opened[2]
    write_encoder(tmp_path, encoder)
    again = open_encoder(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == set(FILES)
    assert (again.sizes, again.weight, again.among, again.source) == (encoder.sizes, 10.0, 3, {"model": "tiny"})
    assert all(np.array_equal(a, b) for a, b in zip(encoder.vectors(TEXTS), again.vectors(TEXTS), strict=True))
    assert open_encoder(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("encoder.json", {"format": 2}, "format 2 must be 1"),
        ("encoder.json", {"format": True}, "format True must be 1"),
        ("encoder.json", {"pooling": "max"}, "'pooling' is not a field"),
        ("encoder.json", {"heads": 5}, "width 24 must be a multiple of heads 5"),
        ("encoder.json", {"heads": True}, "heads True must be a whole number"),
        ("encoder.json", {"layers": 3}, "tensor 2.attention_norm is None"),
        ("encoder.json", {"weight": -1}, "weight -1 must be a number"),
        ("encoder.json", {"vocabulary": 19}, r"tensor words is \('I8', \(20, 24\)\)"),
        ("encoder.json", {"source": {"model": 1}}, "source must be an object of texts"),
    ],
)
def test_what_does_not_fit_is_refused(opened, tmp_path, name, change, words):
    write_encoder(tmp_path, opened[2])
    record = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps({**record, **change}))
    with pytest.raises(ModelFileError, match=words):
        open_encoder(tmp_path)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_file_that_is_cut_or_gone_is_refused(opened, tmp_path, name):
    write_encoder(tmp_path, opened[2])
    body = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(body[: len(body) // 2])
    with pytest.raises(ModelFileError, match=name):
        open_encoder(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ModelFileError, match=name):
        open_encoder(tmp_path)


def test_numbers_that_are_none_are_refused(opened, tmp_path):
    encoder = opened[2]
    kept = encoder.arrays["norm"].copy()
    encoder.arrays["norm"][3] = np.nan
    write_encoder(tmp_path, encoder)
    encoder.arrays["norm"][:] = kept
    with pytest.raises(ModelFileError, match="tensor norm has values that are no numbers"):
        open_encoder(tmp_path)


@pytest.mark.parametrize("field, value", [("model_type", "roberta"), ("hidden_act", "relu"), ("position_embedding_type", "relative_key")])
def test_another_model_is_refused(opened, tmp_path, field, value):
    for f in opened[0].iterdir():
        (tmp_path / f.name).write_bytes(f.read_bytes())
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, field: value}))
    with pytest.raises(ModelFileError, match=f"{field} '{value}' must be"):
        from_bert(tmp_path, {})


def test_a_tokenizer_that_puts_nothing_around_a_text_is_refused(opened, tmp_path):
    write_encoder(tmp_path, opened[2])
    raw = json.loads((tmp_path / "encoder_tokenizer.json").read_text())
    (tmp_path / "encoder_tokenizer.json").write_text(json.dumps({**raw, "post_processor": None}))
    with pytest.raises(ModelFileError, match="puts 0 around a text, the encoder has 20 and needs 2"):
        open_encoder(tmp_path)
