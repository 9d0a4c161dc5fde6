"""Text with a byte-order mark, as editors and shells of some systems write it, wherever text comes in; other encodings are refused by name."""

import codecs
import io
import json
import shutil

import pytest
import tiny_tokenizer

from lm2.models.encoding import EncodingError, decode, read_text, without_mark

FEW = ("--max-tokens", "3", "--seed", "1", "--threads", "1")
MARK = codecs.BOM_UTF8
OTHERS = {
    "UTF-16 (little-endian)": codecs.BOM_UTF16_LE,
    "UTF-16 (big-endian)": codecs.BOM_UTF16_BE,
    "UTF-32 (little-endian)": codecs.BOM_UTF32_LE,
    "UTF-32 (big-endian)": codecs.BOM_UTF32_BE,
}


def in_other(name, text):
    return OTHERS[name] + text.encode({"UTF-16 (little-endian)": "utf-16-le", "UTF-16 (big-endian)": "utf-16-be",
                                       "UTF-32 (little-endian)": "utf-32-le", "UTF-32 (big-endian)": "utf-32-be"}[name])  # fmt: skip


def test_only_a_mark_at_the_start_goes(tmp_path):
    assert decode(MARK + "é\ufeff".encode()) == "é\ufeff" and decode(MARK * 2) == "\ufeff" and decode(b"") == ""
    assert without_mark(MARK + b"\xff") == b"\xff"
    for data, at in ((b"ab\xff", 2), (MARK + b"ab\xff", 5)):
        with pytest.raises(EncodingError, match=rf"is not UTF-8 \(byte {at}\)"):
            decode(data)
    file = tmp_path / "a"
    file.write_bytes(MARK + b"a\r\nb\rc\n")
    assert read_text(file) == "a\nb\nc\n"


def test_the_first_line_of_a_pipe(lm2, tiny):
    """Only there: it is a command, or the same message as without."""
    result = lm2("chat", tiny, *FEW, stdin=MARK + b"/stats\n")
    assert result.code == 0 and "0 tokens seen" in result.err and result.out == ""
    assert lm2("chat", tiny, *FEW, stdin=MARK + b"one\ntwo\n") == lm2("chat", tiny, *FEW, stdin=b"one\ntwo\n")
    assert lm2("chat", tiny, *FEW, stdin=b"one\n" + MARK + b"two\n").out != lm2("chat", tiny, *FEW, stdin=b"one\ntwo\n").out
    lm2("chat", tiny, *FEW, stdin=MARK).fails("nothing on stdin")
    lm2("chat", tiny, *FEW, stdin=MARK + b"\n").fails("line 1 is empty")


def test_a_message_of_the_largest_size_after_a_mark():
    from lm2.runtime.commands.chat import _lines
    from lm2.runtime.session.reading import MESSAGE_BYTES_MAX

    for extra, fits in ((0, True), (1, False)):
        text = b"x" * (MESSAGE_BYTES_MAX + extra)
        ((number, raw, size),) = _lines(io.BytesIO(MARK + text + b"\n"), MESSAGE_BYTES_MAX)
        assert (number, size, raw is not None) == (1, len(text), fits)


def test_prompts_and_contexts(lm2, tiny, tmp_path):
    plain, marked = tmp_path / "plain.txt", tmp_path / "marked.txt"
    plain.write_bytes("héllo\n".encode() * 9)
    marked.write_bytes(MARK + plain.read_bytes())
    ask = ("generate", tiny, *FEW, "--json")

    def tokens(*args, **options):
        result = lm2(*ask, *args, **options)
        assert result.code == 0, result
        found = json.loads(result.out)
        return found["prompt_tokens"], found["context_tokens"], found["tokens"]

    assert tokens("--prompt-file", marked) == tokens("--prompt-file", plain)
    assert tokens("-", stdin=marked.read_bytes()) == tokens("-", stdin=plain.read_bytes())
    assert tokens("-p", "x", "--context", marked) == tokens("-p", "x", "--context", plain)
    read = [lm2("chat", tiny, *FEW, stdin=f"/read {file}\n").err.split(" tokens of")[0].split()[-1] for file in (plain, marked)]
    assert read[0] == read[1]
    marked.write_bytes(MARK)
    for args in (["-p", "x", "--context", marked], ["--prompt-file", marked]):
        lm2("generate", tiny, *FEW, *args).fails(marked, "is empty")


def test_model_folders(lm2, tiny, tmp_path):
    """Every text file of one: the same answer, the same session."""
    model = shutil.copytree(tiny, tmp_path / "model")
    files = [f for f in model.iterdir() if f.suffix in (".json", ".jinja") and f.name != "fingerprint.json"]
    assert {f.name for f in files} >= {"config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja"}
    for file in files:
        file.write_bytes(MARK + file.read_bytes())
    want = lm2("chat", tiny, *FEW, stdin=b"one\n")
    assert lm2("chat", model, *FEW, stdin=b"one\n") == want and lm2("info", model).code == 0


def test_converted_folders(lm2, tmp_path):
    """What comes out of a conversion has no marks: other programs read it too."""
    import sources

    plain = sources.save_hf(sources.llama(vocab=400, layers=2), tmp_path / "plain")
    (plain / "tokenizer.json").write_text(tiny_tokenizer.library().to_str())
    (plain / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0]['content'] }}"}))
    marked = shutil.copytree(plain, tmp_path / "marked")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if (marked / name).exists():
            (marked / name).write_bytes(MARK + (marked / name).read_bytes())
    for name in ("plain", "marked"):
        assert lm2("convert", tmp_path / name, tmp_path / f"{name}-out", "--memory-slots", "32").code == 0
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"):
        want, have = ((tmp_path / f"{n}-out" / name).read_bytes() for n in ("plain", "marked"))
        assert have.replace(b"marked-out", b"plain-out") == want
    (marked / "chat_template.jinja").write_bytes(MARK + b"{{ messages[0]['content'] }}")
    assert lm2("convert", marked, tmp_path / "c", "--memory-slots", "32").code == 0
    assert (tmp_path / "c" / "chat_template.jinja").read_bytes() == b"{{ messages[0]['content'] }}"


@pytest.mark.parametrize("name", OTHERS)
def test_other_encodings_are_named(lm2, tiny, tmp_path, name):
    text = tmp_path / "text.txt"
    text.write_bytes(in_other(name, "hello\n"))
    lm2("generate", tiny, "--prompt-file", text).fails(text, f"is {name}, not UTF-8", "save it as UTF-8")
    lm2("generate", tiny, "-p", "x", "--context", text, *FEW).fails(text, f"is {name}", "save it as UTF-8")
    lm2("generate", tiny, "-", stdin=text.read_bytes()).fails("stdin", f"is {name}", "save it as UTF-8")
    lm2("chat", tiny, *FEW, stdin=text.read_bytes()).fails("stdin", f"is {name}", "save it as UTF-8")
    lm2("chat", tiny, *FEW, stdin=f"/read {text}\n").fails(text, f"is {name}", "save it as UTF-8")
    lm2("inspect", "lm2-tiny", "--text", text, "--out", tmp_path / "x.html").fails(text, f"is {name}", "save it as UTF-8")
    for file in ("config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja"):
        model = shutil.copytree(tiny, tmp_path / file.replace(".", "-"))
        (model / file).write_bytes(in_other(name, (model / file).read_text()))
        lm2("chat", model, *FEW, stdin="x\n").fails(model / file, f"is {name}")
