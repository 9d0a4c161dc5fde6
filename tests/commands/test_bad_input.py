"""Every way in is tried with what does not belong there: one clear line that names the file and the remedy, exit code 1, nothing lost."""

import json
import os
import shutil
import subprocess

import pytest

from lm2.runtime.session import reading
from lm2.runtime.session.reading import MESSAGE_BYTES_MAX

FEW = ("--max-tokens", "3", "--seed", "1", "--threads", "1")


@pytest.fixture
def model(tiny, tmp_path):
    """A copy of the tiny model, to be spoiled."""
    return shutil.copytree(tiny, tmp_path / "model")


# What is typed and piped


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", ["line 2 is empty"]),
        (b" \t ", ["line 2 is empty"]),
        (b"a\0b", ["line 2", "NUL", "character 2"]),
        (b"caf\xe9", ["line 2", "UTF-8", "character 4"]),
        (b"\xed\xa0\x80", ["line 2", "UTF-8", "character 1"]),
        (b"x" * (10 << 20), ["line 2", str(10 << 20), "/read FILE"]),
        (b"x" * (MESSAGE_BYTES_MAX + 1), ["line 2", str(MESSAGE_BYTES_MAX + 1)]),
        (b"x" * (MESSAGE_BYTES_MAX + 2), ["line 2", str(MESSAGE_BYTES_MAX + 2)]),
    ],
    ids=["empty", "blank", "NUL", "latin-1", "surrogate", "10 MB", "one byte too long", "two bytes too long"],
)
def test_bad_line_between_good_ones(lm2, tiny, line, words):
    """It is refused, what comes before and after is answered as if it were not there, and the exit code says that something failed."""
    good = lm2("chat", tiny, *FEW, stdin=b"one\ntwo\n")
    assert good.code == 0
    result = lm2("chat", tiny, *FEW, stdin=b"one\n" + line + b"\ntwo\n")
    result.fails(*words)
    assert result.out == good.out
    last = lm2("chat", tiny, *FEW, stdin=b"one\ntwo\n" + line + (b"\n" if len(line) < 3 else b""))
    assert last.code == 1 and last.out == good.out


def test_line_ends(lm2, tiny):
    want = lm2("chat", tiny, *FEW, stdin="héllo\nünd\n")
    for text in ("héllo\r\nünd\r\n", "héllo\nünd", "héllo\r\nünd"):
        assert lm2("chat", tiny, *FEW, stdin=text) == want


def test_empty_stdin(lm2, tiny):
    lm2("chat", tiny, *FEW).fails("nothing on stdin")
    lm2("generate", tiny, "-", *FEW).fails("stdin is empty")


@pytest.mark.parametrize(
    ("data", "word"),
    [(b"", "empty"), (b"\n \n", "empty"), (b"a\0", "NUL"), (b"\xff", "UTF-8"), (b"x" * (MESSAGE_BYTES_MAX + 1), "--context FILE")],
)
def test_bad_prompts(lm2, tiny, tmp_path, data, word):
    file = tmp_path / "prompt.txt"
    file.write_bytes(data)
    lm2("generate", tiny, "--prompt-file", file).fails(file, word)
    lm2("generate", tiny, "-", stdin=data).fails("stdin", word)
    lm2("generate", tiny, "--prompt-file", "-", stdin=data).fails("stdin", word)
    if len(data) < 1000 and b"\0" not in data:
        lm2("generate", tiny, "--prompt", data.decode("utf-8", "surrogateescape")).fails("--prompt", word)


@pytest.mark.parametrize(
    ("data", "word"),
    [(b"", "empty"), (b"good\n" * 600 + b"a\0b", "NUL"), (b"good\n" * 600 + b"\xff", "UTF-8"), (b"\xc3", "UTF-8")],
)
def test_bad_contexts(lm2, tiny, tmp_path, monkeypatch, data, word):
    """The fault is found when part of the file has been read into the memory already."""
    monkeypatch.setattr(reading, "BLOCK_BYTES", 512)
    file = tmp_path / "context.txt"
    file.write_bytes(data)
    lm2("generate", tiny, "-p", "x", "--context", file, *FEW).fails(file, word)
    session = tmp_path / "s.lm2s"
    result = lm2("chat", tiny, "--session", session, *FEW, stdin=f"one\n/read {file}\n")
    result.fails(file, word)
    info = json.loads(lm2("info", session, "--json").out)
    assert info["messages"] == 2 and info["tokens_seen"] == info["window_tokens"] < 64, "nothing of the file was kept"


@pytest.mark.parametrize("option", ["--prompt-file", "--context"])
def test_files_that_are_not_there(lm2, tiny, tmp_path, option):
    extra = ["-p", "x"] if option == "--context" else []
    lm2("generate", tiny, *extra, option, tmp_path / "none.txt").fails(tmp_path / "none.txt", "does not exist: check the name")
    lm2("generate", tiny, *extra, option, tmp_path).fails(tmp_path, "folder")


# Models


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("part", ["gone", "empty", "1 byte", "half", "all but one byte", "a folder"])
def test_model_files_cut_off(lm2, model, name, part):
    file = model / name
    data = file.read_bytes()
    file.unlink()
    if part == "a folder":
        file.mkdir()
    elif part != "gone":
        file.write_bytes(data[: {"empty": 0, "1 byte": 1, "half": len(data) // 2, "all but one byte": len(data) - (2 if name.endswith("json") else 1)}[part]])
    for args in (["generate", model, "-p", "x", *FEW], ["chat", model], ["info", model]):
        lm2(*args, stdin="x\n").fails(file)


@pytest.mark.parametrize("length", [7, 8, 9, 100, 2000, 100_000])
def test_weights_cut_anywhere(lm2, model, length):
    file = model / "model.safetensors"
    os.truncate(file, length)
    lm2("generate", model, "-p", "x", *FEW).fails(file)


def test_weights_that_are_not_numbers(lm2, model):
    file = model / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = b"\x00\x00\xc0\x7f"
    file.write_bytes(data)
    lm2("generate", model, "-p", "x", *FEW).fails(file, "not finite")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("hidden_size", 64, ["is [", "64"]),
        ("num_hidden_layers", 3, ["model.layers.2"]),
        ("num_hidden_layers", 1, ["layers"]),
        ("vocab_size", 300, ["300"]),
        ("vocab_size", "many", ["vocab_size", "many"]),
        ("hidden_size", -1, ["hidden_size", "-1"]),
        ("tie_word_embeddings", True, ["lm_head"]),
        ("rms_norm_eps", None, []),
        ("model_type", "bert", ["bert"]),
        ("memory", None, ["memory"]),
        ("memory", {"cell": "gated"}, ["memory"]),
        ("memory", 5, ["memory"]),
    ],
)
def test_config_that_contradicts_the_weights(lm2, model, field, value, words):
    config = json.loads((model / "config.json").read_text())
    config[field] = value
    (model / "config.json").write_text(json.dumps(config))
    result = lm2("generate", model, "-p", "x", *FEW)
    if words:
        result.fails(str(model), *words)
    else:
        assert result.code == 0 or result.fails(str(model))


def test_not_models(lm2, tmp_path, tiny):
    empty = tmp_path / "empty"
    empty.mkdir()
    for args in (["generate", empty, "-p", "x"], ["chat", empty], ["info", empty]):
        lm2(*args, stdin="x\n").fails(empty / "config.json", "lm2 convert")
    lm2("chat", tmp_path / "none", stdin="x\n").fails(tmp_path / "none", "does not exist", "lm2 pull")
    lm2("chat", tiny / "config.json", stdin="x\n").fails("is a file, not a model folder")
    for text in ("not json", "[1, 2]", "5", "null", '"x"', "{}", "\ufeff{}", "[" * 5000):
        (empty / "config.json").write_text(text)
        lm2("info", empty).fails(empty / "config.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '{"model": 1}', "\0"])
def test_bad_tokenizers(lm2, model, text):
    (model / "tokenizer.json").write_text(text)
    lm2("generate", model, "-p", "x").fails(model / "tokenizer.json")


def test_no_tokenizer(lm2, model):
    (model / "tokenizer.json").unlink()
    for args in (["generate", model, "-p", "x"], ["chat", model]):
        lm2(*args, stdin="x\n").fails(model, "tokenizer.json", "copy")


def test_tokenizer_of_a_larger_model(lm2, model):
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(str(model / "tokenizer.json"))
    library.add_tokens(["Zebra"])
    library.save(str(model / "tokenizer.json"))
    assert lm2("generate", model, "-p", "x", *FEW).code == 0
    lm2("generate", model, "-p", "Zebra", *FEW).fails("token id 259", "259", "not this model's")


def test_no_template_speaks_plainly(lm2, model):
    (model / "chat_template.jinja").unlink()
    assert lm2("chat", model, *FEW, stdin="x\n").code == 0


@pytest.mark.parametrize("text", ["{% for %}", "{{ messages[0].nope.nope }}", "{{ raise_exception('no') }}", "{{ ''.__class__.__mro__ }}"])
def test_bad_templates(lm2, model, text):
    (model / "chat_template.jinja").write_text(text)
    lm2("chat", model, *FEW, stdin="x\n").fails(model / "chat_template.jinja")


@pytest.mark.parametrize(
    "text", ["", "[]", "5", "null", '{"temperature": "hot"}', '{"top_p": 7}', '{"eos_token_id": "x"}', '{"eos_token_id": [[1]]}', '{"eos_token_id": 999}', '{"eos_token_id": true}']
)  # fmt: skip
def test_bad_generation_configs(lm2, model, text):
    (model / "generation_config.json").write_text(text)
    lm2("generate", model, "-p", "x", *FEW).fails(model / "generation_config.json")


def test_model_folder_that_cannot_be_written(lm2, model):
    """Read-only: everything works, and nothing is left behind. (A user that may write everywhere sees the folder writable.)"""
    (model / "fingerprint.json").unlink(missing_ok=True)
    subprocess.run(["chmod", "-R", "a-w", str(model)], check=True)
    try:
        assert lm2("generate", model, "-p", "x", *FEW).code == 0
        assert lm2("chat", model, *FEW, stdin="x\n").code == 0
        assert lm2("info", model).code == 0
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(model)], check=True)


def test_model_folder_on_a_disk_without_permission(lm2, model, monkeypatch):
    """As on a read-only file system, for every user: the fingerprint cannot be kept, and that is all."""
    from lm2.models import atomic

    def refuse(*args, **kwargs):
        raise PermissionError(30, "Read-only file system")

    (model / "fingerprint.json").unlink(missing_ok=True)
    monkeypatch.setattr(atomic.os, "replace", refuse)
    assert lm2("generate", model, "-p", "x", *FEW).code == 0
    assert not (model / "fingerprint.json").exists()


# Session files


def test_session_paths(lm2, tiny, tmp_path):
    lm2("chat", tiny, "--session", tmp_path / "no" / "s.lm2s", stdin="x\n").fails(tmp_path / "no", "create it first")
    assert not (tmp_path / "no").exists()
    file = tmp_path / "plain.txt"
    file.write_text("precious")
    lm2("chat", tiny, "--session", file / "s.lm2s", stdin="x\n").fails(file, "is not a folder")
    for _ in range(2):
        lm2("chat", tiny, "--session", file, *FEW, stdin="x\n").fails(file, "session file", "--new")
    assert file.read_text() == "precious"


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "empty", "weights"])
def test_damaged_sessions(lm2, tiny, tmp_path, damage):
    file = tmp_path / "s.lm2s"
    assert lm2("chat", tiny, "--session", file, *FEW, stdin="x\n").code == 0
    data = file.read_bytes()
    bad = {
        "flip": data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
        "cut": data[: len(data) // 2],
        "grow": data + b"x",
        "empty": b"",
        "weights": (tiny / "model.safetensors").read_bytes(),
    }[damage]
    file.write_bytes(bad)
    for args in (["chat", tiny, "--session", file, *FEW], ["info", file]):
        lm2(*args, stdin="x\n").fails(file, "--new")
    assert file.read_bytes() == bad
    assert lm2("chat", tiny, "--session", file, "--new", *FEW, stdin="x\n").code == 0
    assert json.loads(lm2("info", file, "--json").out)["messages"] == 2


def test_foreign_sessions(lm2, tiny, tmp_path):
    import tiny_model

    file, other = tmp_path / "s.lm2s", tiny_model.make(tmp_path / "other", seed=2)
    assert lm2("chat", tiny, "--session", file, *FEW, stdin="x\n").code == 0
    data = file.read_bytes()
    lm2("chat", other, "--session", file, *FEW, stdin="x\n").fails(file, "was saved with model", "--new")
    lm2("chat", tiny, "--session", file, "--system", "Another.", *FEW, stdin="x\n").fails(file, "another system prompt", "--new")
    assert file.read_bytes() == data


# Windows


def positions(model, count):
    """The same model, fingerprint and all, with so many positions."""
    config = json.loads((model / "config.json").read_text())
    config["max_position_embeddings"] = count
    (model / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("command", ["chat", "generate"])
@pytest.mark.parametrize("window", ["-1", "0", "15", "2049", "100000000000"])
def test_a_window_the_model_cannot_have(lm2, tiny, command, window):
    args = ("-p", "x") if command == "generate" else ()
    lm2(command, tiny, *args, "--window", window, *FEW, stdin="one\n").fails(f"--window {window}", "from 16 to 2048", "choose another")


@pytest.mark.parametrize("window", ["many", "64.5", ""])
def test_a_window_that_is_no_number(lm2, tiny, window):
    assert lm2("chat", tiny, "--window", window, *FEW, stdin="one\n").code == 2


def test_a_window_the_system_prompt_fills(lm2, tiny, tmp_path):
    system = ("--system", "s" * 60)
    words = ("the system prompt has 70 tokens", "half of the window of 100", "at least 140")
    file = tmp_path / "s.lm2s"
    lm2("chat", tiny, "--session", file, "--window", "100", *system, *FEW, stdin="one\n").fails(*words)
    lm2("generate", tiny, "-p", "x", "--chat", "--window", "100", *system, *FEW).fails(*words)
    assert not file.exists() and lm2("chat", tiny, "--window", "140", *system, *FEW, stdin="one\n").code == 0


def test_a_window_the_template_fills(lm2, model):
    """A system prompt of the template's own counts as well; a plain prompt has none."""
    template = model / "chat_template.jinja"
    template.write_text("{% if messages[0].role != 'system' %}<|im_start|>system\n" + "s" * 60 + "<|im_end|>\n{% endif %}" + template.read_text())
    lm2("chat", model, "--window", "100", *FEW, stdin="one\n").fails("the system prompt has", "half of the window of 100")
    lm2("generate", model, "-p", "x", "--chat", "--window", "100", *FEW).fails("the system prompt has")
    assert lm2("generate", model, "-p", "x", "--window", "100", *FEW).code == 0


def test_a_window_for_a_cell_that_cannot_fold(lm2, tmp_path):
    import tiny_model

    released = tiny_model.make(tmp_path / "released", "released-causal")
    lm2("chat", released, "--window", "128", *FEW, stdin="one\n").fails("--window 128", "cell released", "64 tokens", "leave --window out")
    assert lm2("chat", released, "--window", "64", *FEW, stdin="one\n").code == 0
    assert lm2("chat", released, "--window", "128", "--no-memory", *FEW, stdin="one\n").code == 0


def test_a_session_has_the_window_it_began_with(lm2, tiny, tmp_path):
    file = tmp_path / "s.lm2s"
    chat = ("chat", tiny, "--session", file, *FEW)
    assert lm2(*chat, "--window", "128", stdin="one\n").code == 0
    before = file.read_bytes()
    lm2(*chat, "--window", "64", stdin="two\n").fails(file, "window of 128", "--window says 64", "--new")
    assert file.read_bytes() == before
    assert lm2(*chat, "--window", "128", stdin="two\n").code == lm2(*chat, stdin="three\n").code == 0
    assert json.loads(lm2("info", file, "--json").out)["window"] == 128
    assert lm2(*chat, "--window", "64", "--new", stdin="two\n").code == 0


@pytest.mark.parametrize("turns", [1, 6])
def test_a_session_with_a_window_beyond_the_positions(lm2, model, tmp_path, turns):
    """Saved where the model had more positions; with few tokens in the window, and with more than the positions left."""
    file = tmp_path / "s.lm2s"
    chat = ("chat", model, "--session", file, *FEW)
    assert lm2(*chat, "--window", "256", stdin="tell me more\n" * turns).code == 0
    before = file.read_bytes()
    positions(model, 100)
    lm2(*chat, stdin="two\n").fails(file, "window", "this model's 100 positions", "max_position_embeddings", "--new")
    assert file.read_bytes() == before
    positions(model, 256)
    assert lm2(*chat, stdin="two\n").code == 0


def test_a_model_with_small_chunks_goes_on(lm2, tmp_path):
    """Its window is smaller than the smallest that may be asked for; sessions, forks and files of it are right all the same."""
    import tiny_model

    model = tiny_model.make(tmp_path / "small", window=48, chunk=8)
    config = json.loads((model / "config.json").read_text())
    config["memory"] |= {"window": 12}
    (model / "config.json").write_text(json.dumps(config))
    from lm2 import Session

    session = Session(tiny_model.load_tiny(model), seed=1)
    list(session.complete("a text that is longer", 3))
    session.save(tmp_path / "s.lm2s")
    assert session.feeder.size == 12 == session.fork().feeder.size == Session.restore(session.model, tmp_path / "s.lm2s").feeder.size


def test_without_a_memory(lm2, tiny, tmp_path):
    bare, whole = tmp_path / "bare.lm2s", tmp_path / "whole.lm2s"
    assert lm2("chat", tiny, "--no-memory", "--session", bare, *FEW, stdin="one\n/memory\n/stats\n").code == 0
    assert lm2("chat", tiny, "--session", whole, *FEW, stdin="one\n").code == 0
    lm2("chat", tiny, "--session", bare, *FEW, stdin="two\n").fails(bare, "without a memory", "go on with --no-memory")
    lm2("chat", tiny, "--no-memory", "--session", whole, *FEW, stdin="two\n").fails(whole, "memory of tiny", "leave --no-memory out", "--new")
    lm2("inspect", bare, "--ask", "And?", "--model", tiny, "--out", tmp_path / "a.html").fails(bare, "without a memory")
    told = lm2("chat", tiny, "--no-memory", *FEW, stdin="/memory\n/stats\n")
    assert "no memory: what leaves the window is forgotten" in told.err and "no memory, window 0/2048" in told.err
    lm2("inspect", bare, "--out", tmp_path / "b.png").fails(bare, "without a memory")
    shown = lm2("info", bare)
    assert shown.code == 0 and all(line == line.rstrip() for line in shown.out.splitlines())
