"""Inputs that the fuzzers found, made small: each was accepted though wrong, ended in another error than one typed line, or ate time or memory."""

import json
import os
import signal
import struct
import sys
import time

import forge
import pytest
import tiny
import tiny_model
import tokenizer_kinds

from lm2.models import atomic
from lm2.models.config import LM2Config, read_config
from lm2.models.errors import ConfigError, ConvertError, LM2Error, ModelFileError, TensorFileError, TokenizerError
from lm2.models.tensorfile import read_header
from lm2.models.text.template import ChatTemplate
from lm2.models.text.tokenizer import Tokenizer

HI = [{"role": "user", "content": "Hi"}]


def spec(kind="gpt2", **model):
    """A tokenizer.json as JSON, with changes to its model."""
    made = json.loads(tokenizer_kinds.build(kind).to_str())
    made["model"] |= model
    return made


def opened(made):
    return Tokenizer(json.dumps(made).encode(), "tokenizer.json")


def test_moments_that_share_a_bank_have_its_tokens(tmp_path):
    from lm2.runtime.session import Session
    from lm2.runtime.statefile import SessionError

    session, file = Session(tiny_model.load_tiny(tiny_model.make(tmp_path / "m")), seed=1), tmp_path / "s.lm2s"
    session.say("Hello", 4)
    session.save(file)
    file.write_bytes(forge.with_meta(file.read_bytes(), written="1"))
    with pytest.raises(SessionError, match=r"snapshot 0 written 0 must be 1, .*restore a copy"):
        Session.restore(session.model, file)


@pytest.mark.parametrize("text", ['{"\\ud800":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}', '{"__metadata__":{"a":"\\udfff"}}'])
def test_half_a_surrogate_pair_in_a_tensor_header(tmp_path, text):
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(text)) + text.encode())
    with pytest.raises(TensorFileError, match="surrogates"):
        read_header(tmp_path / "x")


def test_half_a_surrogate_pair_in_a_config(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["\\ud800"]}')
    with pytest.raises(ModelFileError, match="surrogate pair"):
        read_config(tmp_path / "config.json")


def test_a_message_is_one_printable_line_of_bounded_length():
    text = str(ConfigError("model/config.json: dtype '" + "9\x1b[2J\n" * 2000 + "' must be one of float32: correct it"))
    assert text.isprintable() and len(text) <= 1200 and text.startswith("model/config.json: dtype") and text.endswith("correct it")
    assert str(ConvertError("a\u202eb")) == "a\\u202eb"


@pytest.mark.parametrize(("field", "value"), [("num_hidden_layers", 1 << 24), ("num_hidden_layers", 1 << 60)])
def test_layers_without_number(field, value):
    began = time.monotonic()
    with pytest.raises(ConfigError, match=f"{field} {value} must be at most"):
        LM2Config.from_dict(tiny.CELLS["gated"].to_dict() | {field: value})
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("name", [5, ["x"], True, 1.5])
def test_a_name_that_is_no_text(name):
    with pytest.raises(ConfigError, match="must be text"):
        LM2Config.from_dict(tiny.CELLS["gated"].to_dict() | {"name": name})


def test_two_tokens_of_one_id():
    made = spec()
    made["model"]["vocab"]["a"] = made["model"]["vocab"]["b"]
    with pytest.raises(TokenizerError, match=r"tokens '.' and '.' both have id"):
        opened(made)


def test_a_text_has_one_set_of_ids():
    """Dropout, which splits words by chance, is for training."""
    assert len({tuple(opened(spec(dropout=0.9)).encode("the gate opens late")) for _ in range(20)}) == 1
    assert opened(spec(dropout=0.9)).encode("the gate") == opened(spec()).encode("the gate")


@pytest.mark.parametrize("key", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_pieces_marked_inside_a_word(key):
    """The library ends the whole process over some of these."""
    with pytest.raises(TokenizerError, match=f"model.{key} 'a' is not of a kind"):
        opened(spec(**{key: "a"}))


def test_a_panic_while_encoding(tmp_path):
    made = spec("llama3")
    made["post_processor"]["special_tokens"] = {}
    with pytest.raises(TokenizerError, match=r"tokenizer.json cannot encode"):
        opened(made)


def test_an_id_before_a_text_that_the_vocabulary_does_not_have():
    made = spec("llama3")
    made["post_processor"]["special_tokens"]["<|endoftext|>"]["ids"] = [5000]
    with pytest.raises(TokenizerError, match="puts id 5000 before a text"):
        opened(made)


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages | tojson(indent=2147483648) }}",
        "{{ ('\n' * 99999) | indent(999999) }}",
        "{{ ('a' * 999999) | replace('a', 'b' * 999999) }}",
        "{{ ('a' * 999999).replace('a', 'b' * 999999) }}",
        "{{ (['x'] * 99999) | join('b' * 99999) }}",
        "{{ ('b' * 99999).join(['x'] * 99999) }}",
        "{{ ('\t' * 99999).expandtabs(999999) }}",
    ],
)
def test_templates_that_eat_memory(text):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TokenizerError, match="chat_template.jinja failed: it (makes|passes)"):
        ChatTemplate(text).render(HI)
    if sys.platform == "linux":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_ordinary_uses_of_the_same_filters():
    text = "{{ ['a', 'b'] | join('-') }} {{ 'x y' | replace(' ', '_') }} {{ 'x' | indent(4) }} {{ 'a,b'.split(',') | tojson(indent=2) }}"
    assert ChatTemplate(text).render(HI) == 'a-b x_y x [\n  "a",\n  "b"\n]'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((f"lm2.{part}", text) for part in ("trace", "state", "config") for text in ("", "[1]")),
        ("lm2.state", '{"past_bank": ["present_bank"]}'),
        ("lm2.state", '{"past_bank": "nowhere"}'),
        ("lm2.state", '{"past_length": "present_length", "past_bank": "present_bank"}'),
    ],
)
def test_what_an_onnx_file_says_of_itself(tmp_path, name, text):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from lm2.export.export import export_model
    from lm2.models.exported import file_digest
    from lm2.runtime.backends.onnx_backend import open_model

    export_model(tiny_model.make(tmp_path / "m", chunk=16), tmp_path / "e")
    file = tmp_path / "e" / "model.onnx"
    model = onnx.load(file)
    next(p for p in model.metadata_props if p.key == name).value = text
    onnx.save(model, file)
    config = json.loads((tmp_path / "e" / "config.json").read_text())
    config["onnx"]["files"]["model.onnx"] = {"bytes": file.stat().st_size, "sha256": file_digest(file)}
    (tmp_path / "e" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFileError, match=r"model.onnx (is not an LM2 export|does not have the state)"):
        open_model(tmp_path / "e")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("at", [1, 2, 3])
def test_filling_a_folder_that_is_there_killed_halfway(tmp_path, monkeypatch, at):
    """The entries that had moved are taken back by the next run; what is not of lm2 stays and is refused."""
    place = tmp_path / "empty"
    place.mkdir()

    def fill():
        with atomic.new_folder(place) as folder:
            for name in ("a.txt", "b.txt", "config.json"):
                (folder / name).write_text(name)

    pid = os.fork()
    if pid == 0:
        real, seen = os.rename, []

        def rename(a, b):
            seen.append(a)
            if len(seen) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            real(a, b)

        atomic.os.rename = rename
        fill()
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    assert not (place / "config.json").exists()
    (place / "mine.txt").write_text("mine")
    with pytest.raises(LM2Error, match="exists already"):
        fill()
    (place / "mine.txt").unlink()
    fill()
    assert sorted(p.name for p in place.iterdir()) == ["a.txt", "b.txt", "config.json"]


def test_what_a_killed_export_left_beside_is_removed(tmp_path):
    for made in (tmp_path / "new", tmp_path):
        with atomic.scratch_folder(made) as first:
            left = os.path.join(first, "x")
            open(left, "w").close()
            with atomic.scratch_folder(made) as second:
                assert first == second and os.listdir(second) == []
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_without_room(tmp_path, monkeypatch):
    from lm2.export.ops.build import build
    from lm2.models.errors import WriteError

    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'ld: final link failed: No space left on device' >&2\necho 'collect2: error: ld returned 1' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    (tmp_path / "ops.so").write_bytes(b"old")
    with pytest.raises(WriteError, match=r"ops.so: No space left on device; .*the disk is full"):
        build(tmp_path / "ops.so")
    assert (tmp_path / "ops.so").read_bytes() == b"old" and sorted(p.name for p in tmp_path.iterdir()) == ["cc", "ops.so"]
