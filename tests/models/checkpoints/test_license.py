"""The licence of a source goes where the model goes: what is said of it, and its text. Nothing is judged, nothing refused."""

import json
import os

import pytest
import sources
import tiny_model

from lm2.models.checkpoints import license as licences
from lm2.models.checkpoints.convert import convert

CARDS = {
    "plain": ("---\nlicense: apache-2.0\nlanguage:\n- en\n---\n# A model\n", {"license": "apache-2.0"}),
    "another's": (
        "---\nlibrary_name: x\nlicense: other\nlicense_name: \"qwen-research\" # its own\nlicense_link: 'https://example.org/LICENSE'\n---\n",
        {"license": "qwen-research", "license_url": "https://example.org/LICENSE"},
    ),
    "other and no more": ("---\nlicense: other\n---\n", {"license": "other"}),
    "a list": ("---\r\nlicense:\r\n- mit\r\n- cc-by-4.0\r\ntags:\r\n- x\r\n---\r\n", {"license": "mit, cc-by-4.0"}),
    "a list in a line": ("---\nlicense: [mit, 'cc-by-4.0']\n---\n", {"license": "mit, cc-by-4.0"}),
    "a mark and a colour": ("\ufeff---\nlicense: m\x1b[31mit\n---\n", {"license": "m[31mit"}),
    "in the text alone": ("# A model\nlicense: mit\n", {}),
    "inside another field": ("---\nmodel:\n  license: mit\n---\n", {}),
    "a header without an end": ("---\nlicense: mit\n", {}),
    "nothing": ("---\nlicense:\n---\n", {}),
    "empty": ("", {}),
}  # fmt: skip


@pytest.mark.parametrize("card", CARDS)
def test_what_a_model_card_says(tmp_path, card):
    text, want = CARDS[card]
    (tmp_path / "README.md").write_bytes(text.encode())
    assert licences.said_in_folder(tmp_path, {}) == want
    assert licences.said_in_folder(tmp_path, {"license": "from the config"}) == {"license": "from the config"} | want


def test_a_card_that_is_no_text_says_nothing(tmp_path):
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\xfe\n" + bytes(1 << 17))
    assert licences.said_in_folder(tmp_path, {}) == {} and licences.said_in_folder(tmp_path / "none", {"license": 3}) == {}


def test_names_of_licences(tmp_path):
    ours = ["COPYING", "LICENCE-MIT.txt", "LICENSE", "LICENSE.Apache-2.0", "Llama LICENSE.txt", "NOTICE.md", "USE_POLICY.md", "license.md", "terms_of_use.pdf"]
    for name in [*ours, "license.py", "LICENSE.json", ".license", "unlicensed.txt", "README.md", "notices"]:
        (tmp_path / name).write_text(name)
    (tmp_path / "licenses").mkdir()
    assert [p.name for p in licences.license_files(tmp_path)] == ours


@pytest.fixture
def src(tmp_path):
    folder = sources.save_hf(sources.llama(layers=2, ffn=128), tmp_path / "src")
    (folder / "README.md").write_text(CARDS["another's"][0])
    (folder / "LICENSE").write_bytes("Do what you like. Ä\r\n".encode())
    (tmp_path / "blob").write_text("Be kind.")
    (folder / "USE_POLICY.md").symlink_to(tmp_path / "blob")  # as a hub's cache has its files
    return folder


def test_conversion_export_and_packing_carry_it(src, tmp_path):
    pytest.importorskip("onnx")
    from lm2.export.export import export_model

    summary = convert(src, tmp_path / "model")
    assert summary["license"] == "qwen-research"
    export_model(tmp_path / "model", tmp_path / "onnx")
    made = ["model", "onnx"]
    try:
        import mlx.core  # noqa: F401
    except ImportError:
        pass
    else:
        from lm2.lm2_mlx.convert import convert_mlx

        convert_mlx(src, tmp_path / "packed")
        convert_mlx(tmp_path / "model", tmp_path / "packed later")
        made += ["packed", "packed later"]
    for name in made:
        record = json.loads((tmp_path / name / "source.json").read_text())
        assert record["license"] == "qwen-research" and record["license_url"] == "https://example.org/LICENSE", name
        assert record["license_files"] == ["LICENSE", "USE_POLICY.md"]
        for file in record["license_files"]:
            assert (tmp_path / name / file).read_bytes() == (src / file).read_bytes() and not (tmp_path / name / file).is_symlink()


def test_a_source_without_one_has_none(tmp_path):
    summary = convert(sources.save_hf(sources.llama(layers=2), tmp_path / "src"), tmp_path / "model")
    assert summary["license"] is None and not {"license", "license_files"} & json.loads((tmp_path / "model" / "source.json").read_text()).keys()


def test_what_cannot_be_carried_is_said_and_not_refused(src, tmp_path, monkeypatch):
    monkeypatch.setattr(licences, "FILE_BYTES_MAX", 10)
    summary = convert(src, tmp_path / "model")
    (note,) = [n for n in summary["notes"] if "LICENSE" in n]
    assert note == f"{src / 'LICENSE'} was not carried over: it has {os.stat(src / 'LICENSE').st_size} bytes, more than the 10 of a licence; copy it by hand"
    assert json.loads((tmp_path / "model" / "source.json").read_text())["license_files"] == ["USE_POLICY.md"]
    assert not (tmp_path / "model" / "LICENSE").exists()


def test_what_a_gguf_says(tmp_path):
    def keys(writer):
        writer.add_string("general.license", "other")
        writer.add_string("general.license.name", "gemma")
        writer.add_string("general.license.link", "https://example.org/terms")

    sources.write_gguf(tmp_path / "m.gguf", sources.llama(layers=2), keys=keys)
    assert convert(tmp_path / "m.gguf", tmp_path / "model")["license"] == "gemma"
    record = json.loads((tmp_path / "model" / "source.json").read_text())
    assert record["license"] == "gemma" and record["license_url"] == "https://example.org/terms" and "license_files" not in record


def test_a_model_that_is_trained_on_has_it_too(src, tmp_path):
    from lm2.models.layout import open_folder
    from lm2.models.training import jobs

    folder = tiny_model.make(tmp_path / "tiny", chunk=16)
    (folder / "LICENSE").write_text("Do what you like.")
    (folder / "source.json").write_text('{"license": "mit"}')
    (tmp_path / "tinystories").mkdir()
    (tmp_path / "tinystories" / "x.jsonl").write_text(json.dumps({"text": "Once there was a cat. " * 12}) + "\n")
    job = jobs.text(jobs.PLANS["text"], open_folder(folder), tmp_path, False, "cpu", False)
    job.write(tmp_path / "out", {})
    assert [(tmp_path / "out" / name).read_text() for name in ("LICENSE", "source.json")] == ["Do what you like.", '{"license": "mit"}']
