"""A recall's two files: written, read again, and refused by name where anything in them is not as it must be."""

import json
from dataclasses import replace

import numpy as np
import pytest
import recall_kit
import tiny
from safetensors.numpy import load_file, save_file

from lm2.models.errors import ModelFileError, WriteError
from lm2.models.recall import RECORD, TENSORS, open_recall, save_recall

CONFIG = tiny.config(layers=2, memory_layers=(1,))


def made():
    return recall_kit.recall(CONFIG, recall_kit.finder(CONFIG.vocab_size), training={"seek": {"steps": 3, "seed": 0}})


@pytest.fixture
def folder(tmp_path):
    save_recall(tmp_path / "recall", CONFIG, made())
    return tmp_path / "recall"


def same(a, b):
    for x, y in ((a.finder, b.finder), (a.opening, b.opening)):
        for name in x._fields:
            mine, theirs = getattr(x, name), getattr(y, name)
            assert np.array_equal(mine, theirs) and getattr(mine, "dtype", None) == getattr(theirs, "dtype", None), name
    assert a._replace(finder=None, opening=None) == b._replace(finder=None, opening=None)


def test_a_recall_is_read_as_it_was_written(folder):
    same(open_recall(folder, CONFIG), made())
    assert {p.name for p in folder.iterdir()} == {RECORD, TENSORS}
    again = folder.with_name("again")
    save_recall(again, CONFIG, open_recall(folder, CONFIG))
    assert all((again / name).read_bytes() == (folder / name).read_bytes() for name in (RECORD, TENSORS))


def test_texts_of_any_script(tmp_path):
    recall = made()._replace(lead="Vorhin gesagt:\n", item="• ", ask="質問: ")
    save_recall(tmp_path / "r", CONFIG, recall)
    same(open_recall(tmp_path / "r", CONFIG), recall)


def refused(folder, said, config=CONFIG):
    with pytest.raises(ModelFileError, match=said) as caught:
        open_recall(folder, config)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


RECORDS = {
    "another format": (dict(format=1), "format 1 must be 2: it is no recall of this version of lm2"),
    "format true": (dict(format=True), "format True must be 2"),
    "format 2.0": (dict(format=2.0), r"format 2\.0 must be 2"),
    "no format": (dict(format=None), "format None must be 2"),
    "a new field": (dict(taste="sweet"), "'taste' is not a field that this version of lm2 knows: update lm2"),
    "tokens 0": (dict(tokens=0), "tokens 0 must be a number from 1 to 1024"),
    "tokens a fraction": (dict(tokens=3.5), r"tokens 3\.5 must be a number from 1 to 1024"),
    "tokens true": (dict(tokens=True), "tokens True must be a number from 1 to 1024"),
    "tokens a text": (dict(tokens="64"), "tokens '64' must be a number"),
    "most too many": (dict(most=33), "most 33 must be a number from 1 to 32"),
    "most left out": (dict(most=None), "most None must be a number"),
    "near above 1": (dict(near=1.5), r"near 1\.5 must be a number from 0 to 1"),
    "near left out": (dict(near=None), "near None must be a number"),
    "margin infinite": (dict(margin=float("inf")), "margin inf must be a number"),
    "margin no number": (dict(margin=float("nan")), "margin nan must be a number"),
    "margin too large": (dict(margin=1001), "margin 1001 must be a number from -1000 to 1000"),
    "share above 1": (dict(share=1.01), r"share 1\.01 must be a number from 0 to 1"),
    "share false": (dict(share=False), "share False must be a number"),
    "sharpness 0": (dict(sharpness=0), "sharpness 0 must be a number from 1e-06 to 1e[+]06"),
    "width a list": (dict(width=[6]), r"width \[6\] must be a number from 1 to 4096"),
    "positions 0": (dict(positions=0), "positions 0 must be a number from 1 to 4096"),
    "read 0": (dict(read=0), "read 0 must be a number from 1 to 32"),
    "trust below 0": (dict(trust=-0.1), r"trust -0\.1 must be a number from 0 to 1000"),
    "doubt infinite": (dict(doubt=float("-inf")), "doubt -inf must be a number"),
    "unsaid left out": (dict(unsaid=None), "unsaid must be a text"),
    "unsaid empty": (dict(unsaid=""), "unsaid must be a text of 1 to 1000 characters"),
    "lead too long": (dict(lead="x" * 1001), "lead must be a text of at most 1000 characters"),
    "item a number": (dict(item=3), "item must be a text of at most 1000 characters"),
    "ask left out": (dict(ask=None), "ask must be a text of at most 1000 characters"),
    "no backbone": (dict(backbone=None), "backbone must have a name and a key"),
    "a backbone without a key": (dict(backbone={"name": "tiny"}), "backbone must have a name and a key"),
    "a backbone with more": (dict(backbone={"name": "tiny", "key": "0", "size": 3}), "backbone must have a name and a key, and nothing else"),
    "a backbone's long name": (dict(backbone={"name": "x" * 1001, "key": "0"}), "backbone must have a name and a key"),
    "training a text": (dict(training="long"), "training must be an object"),
    "another width": (dict(width=7), r"tensor asking is I8 \[61, 6\], a recall for this model has I8 \[61, 7\]: give the model its own"),
    "other positions": (dict(positions=4), r"tensor keys is F16 \[2, 2, 3, 8\], a recall for this model has F16 \[2, 2, 4, 8\]"),
}  # fmt: skip


@pytest.mark.parametrize("what", RECORDS)
def test_a_record_that_is_refused(folder, what):
    fields, said = RECORDS[what]
    recall_kit.changed(folder, **fields)
    refused(folder, said)


@pytest.mark.parametrize(
    ("text", "said"),
    [("[1]", "format 'list' must be 2"), ("{", "is not valid JSON"), ("", "is not valid JSON"), ('{"format": 2, "lead": "\\ud800"}', "half of a surrogate pair")],
)
def test_a_record_that_is_none(folder, text, said):
    (folder / RECORD).write_text(text)
    refused(folder, said)


@pytest.mark.parametrize("name", [RECORD, TENSORS])
def test_a_file_that_is_missing(folder, name):
    (folder / name).unlink()
    refused(folder, "does not exist: give a recall's folder, as `lm2 train" if name == RECORD else "get the two files again")


def arrays(name, change):
    def edit(tensors):
        tensors[name] = change(tensors[name])
        return tensors

    return edit


def put(index, value):
    def change(array):
        array = array.copy()
        array.reshape(-1)[index] = value
        return array

    return change


TENSOR_FAULTS = {
    "one missing": (lambda t: {n: a for n, a in t.items() if n != "prior"}, r"tensor prior is not there, a recall for this model has F16 \[61\]"),
    "one left over": (lambda t: t | {"more": np.ones(1, np.float16)}, r"tensor more is F16 \[1\], a recall for this model has not there"),
    "a shape": (arrays("nothing", lambda a: a[:-1]), r"tensor nothing is F16 \[60\], a recall for this model has F16 \[61\]"),
    "two axes exchanged": (arrays("values", lambda a: np.ascontiguousarray(a.transpose(1, 0, 3, 2))), r"tensor values is F16 \[2, 2, 8, 3\]"),
    "a dtype": (arrays("asking", lambda a: a.astype(np.float16)), r"tensor asking is F16 \[61, 6\], a recall for this model has I8 \[61, 6\]"),
    "half for float": (arrays("mix", lambda a: a.astype(np.float16)), r"tensor mix is F16 \[3, 6\], a recall for this model has F32 \[3, 6\]"),
    "not a number": (arrays("keys", put(5, np.nan)), "tensor keys has values that are no numbers"),
    "infinite": (arrays("mix", put(2, -np.inf)), "tensor mix has values that are no numbers"),
    "a mix that overflows": (arrays("mix", put(2, 1e30)), "tensor mix has values beyond"),
    "a weight of 0": (arrays("weight_asking", put(60, 0)), "tensor weight_asking must be above 0"),
    "a weight below 0": (arrays("weight_asking", put(0, -1)), "tensor weight_asking must be above 0"),
}


@pytest.mark.parametrize("what", TENSOR_FAULTS)
def test_tensors_that_are_refused(folder, what):
    change, said = TENSOR_FAULTS[what]
    save_file(change(load_file(folder / TENSORS)), folder / TENSORS)
    refused(folder, said)


@pytest.mark.parametrize("left", [0, 7, 100, -1])
def test_a_file_that_was_cut_off(folder, left):
    data = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(data[:left])
    refused(folder, "get the two files again")


OTHERS = {
    "layers": (dict(num_hidden_layers=3), "keys"),
    "vocabulary": (dict(vocab_size=62), "asking"),
    "heads": (dict(num_key_value_heads=1), "keys"),
    "width of a head": (dict(head_dim=16), "keys"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_recall_of_a_model_of_another_shape(folder, what):
    fields, tensor = OTHERS[what]
    refused(folder, rf"tensor {tensor} is .*, a recall for this model has .*: give the model its own", replace(CONFIG, **fields))


# writing


@pytest.mark.parametrize("fault", ["opening", "finder", "infinite"])
def test_what_does_not_fit_is_not_written(tmp_path, fault):
    recall = made()
    if fault == "opening":
        recall = recall._replace(opening=recall_kit.opening(tiny.config()))
    elif fault == "finder":
        recall = recall._replace(finder=recall.finder._replace(prior=recall.finder.prior[:-1]))
    else:
        recall = recall._replace(finder=recall.finder._replace(prior=np.full(CONFIG.vocab_size, 1e6, np.float32)))
    with pytest.raises(ValueError, match=r"keys is|prior is|prior has"):
        save_recall(tmp_path / "r", CONFIG, recall)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left(folder):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(WriteError):
        save_recall(folder, CONFIG, made()._replace(lead="Other:"))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    from lm2.models.recall import folder as files

    monkeypatch.setattr(files.json, "dumps", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_recall(tmp_path / "r", CONFIG, made())
    assert not list(tmp_path.iterdir())


def test_the_message_reads_as_one(folder):
    recall = open_recall(folder, CONFIG)
    assert recall.message(["one\n\n two ", "three"], "who?\nwhere?") == "Told:\n- one two\n- three\n\nwho?\nwhere?"
    assert json.loads((folder / RECORD).read_text())["training"] == {"seek": {"steps": 3, "seed": 0}}


def test_an_encoder_goes_where_the_recall_goes(tmp_path, monkeypatch):
    import encoder_kit

    from lm2.models.checkpoints import recalls
    from lm2.models.recall import ENCODER_FILES, from_bert

    encoder_kit.bert(tmp_path)
    save_recall(tmp_path / "r", CONFIG, made()._replace(encoder=from_bert(tmp_path, {})))
    (tmp_path / "out").mkdir()
    recalls.carry(tmp_path / "r", tmp_path / "out")
    again = open_recall(tmp_path / "out", CONFIG)
    assert {f.name for f in (tmp_path / "out").iterdir()} == {RECORD, TENSORS, *ENCODER_FILES}
    assert np.array_equal(again.encoder.vectors(["zebra"])[0], open_recall(tmp_path / "r", CONFIG).encoder.vectors(["zebra"])[0])
    (tmp_path / "out" / "encoder_words.safetensors").unlink()
    with pytest.raises(ModelFileError, match="encoder_words.safetensors"):
        open_recall(tmp_path / "out", CONFIG)
