"""Tokenizers made on the spot: byte-level BPE with merges (GPT-2's and Llama 3's split), SentencePiece with byte fallback, Metaspace."""

import hashlib
import json
import os
import time

import pytest
import tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, VALID, build

from lm2.models.errors import PromptError, TokenizerError
from lm2.models.text import tokenizer as module
from lm2.models.text.tokenizer import Tokenizer

PROSE = "The gate opens at 7:45, don't be late. Élan vital naïve 北京 \U0001f389! x += 1\n\n\tdef f(x):\n  return   x\n"


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def library(kind):
    return build(kind)


@pytest.fixture(scope="module")
def tok(library):
    return Tokenizer(library.to_str().encode())


def test_encode_is_the_librarys(tok, library):
    for text in (PROSE, "", " ", "  two", "a\0b", "x<|im_end|>y", "\U0001f468‍\U0001f469‍\U0001f467 e\u0301"):
        assert tok.encode(text) == library.encode(text, add_special_tokens=False).ids
        assert tok.encode(text, add_special=True) == library.encode(text, add_special_tokens=True).ids


def test_decode_gives_the_text_back(kind, tok):
    for text in (PROSE, "a\0b", "x<|im_end|>", "e\u0301 \U0001f389"):
        assert tok.decode(tok.encode(text)) == text
    blank = " " if kind == "sentencepiece" else ""  # Llama 2's normalizer puts one after every special token
    assert tok.decode(tok.encode("x<|im_end|>y")) == f"x<|im_end|>{blank}y"


def test_decode_is_the_librarys_on_valid_text(kind, tok, library):
    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(st.lists(st.sampled_from(VALID(library)), max_size=12), st.booleans())
    def check(ids, skip):
        assert tok.decode(ids, skip_special=skip) == library.decode(ids, skip_special_tokens=skip)

    check()


def test_special_tokens_written_in_a_text(tok):
    end = tok.id("<|im_end|>")
    assert end in tok.encode("bye<|im_end|>") and tok.token(end) == "<|im_end|>"
    plain = tok.encode("bye<|im_end|>", plain=True)
    assert end not in plain and tok.decode(plain) == "bye<|im_end|>"
    assert end in tok.encode("bye<|im_end|>")  # asking once for plain changes nothing
    assert tok.decode([end, *tok.encode("x")], skip_special=True).strip() == "x"


def test_add_special_puts_the_bos_in_front():
    made = build("llama3")
    tok = Tokenizer(made.to_str().encode())
    bos = tok.id("<|endoftext|>")
    assert tok.encode("hi", add_special=True) == [bos, *tok.encode("hi")]
    assert tok.encode("", add_special=True) == [bos]


def test_saved_truncation_and_padding_are_off():
    made = tiny_tokenizer.library()
    made.enable_truncation(4)
    made.enable_padding(length=16)
    tok = Tokenizer(made.to_str().encode())
    assert tok.encode("a longer text", add_special=True) == list(b"a longer text")
    assert tok.encode("ab", plain=True) == list(b"ab")


def test_sizes_names_and_hash(tmp_path):
    tok = Tokenizer.load(tiny_tokenizer.make(tmp_path / "m"))
    data = (tmp_path / "m" / "tokenizer.json").read_bytes()
    assert tok.vocab_size == tiny_tokenizer.VOCAB == 259
    assert tok.sha256 == hashlib.sha256(data).hexdigest()
    assert tok.id("<|im_start|>") == tiny_tokenizer.IM_START and tok.id("no such token") is None
    for bad in (259, -1, 2**40):
        with pytest.raises(TokenizerError, match=rf"tokenizer.json has no token {bad} \(its ids go from 0 to 258\)"):
            tok.token(bad)
        assert tok.decode([97, bad, 98]) == "ab"


def test_the_tiny_tokenizer_is_one_byte_a_token():
    tok = Tokenizer(tiny_tokenizer.library().to_str().encode())
    assert tok.encode(PROSE) == list(PROSE.encode())
    assert tok.decode(range(128)) == bytes(range(128)).decode()


def test_half_a_surrogate_pair_is_refused_with_its_position():
    tok = Tokenizer(tiny_tokenizer.library().to_str().encode())
    with pytest.raises(PromptError, match=r"surrogate pair \(U\+D83D\) at character 2"):
        tok.encode("ab\ud83d")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not a tokenizer.json"),
        (b"{}", "is not a tokenizer.json"),
        (b"\xff\xfe", r"is UTF-16 \(little-endian\), not UTF-8"),
        (b"\xff\xfd", "is not a tokenizer.json"),
        (b"[1, 2", "is not a tokenizer.json"),
        (b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}', "is not a tokenizer.json"),
    ],
)
def test_a_malformed_file_is_one_line_naming_it(tmp_path, content, said):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=said) as error:
        Tokenizer.load(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(error.value) and "\n" not in str(error.value)


def test_a_missing_or_huge_file(tmp_path):
    with pytest.raises(TokenizerError, match=r"tokenizer.json does not exist: copy"):
        Tokenizer.load(tmp_path)
    with open(tmp_path / "tokenizer.json", "wb") as f:
        f.truncate((64 << 20) + 1)
    with pytest.raises(TokenizerError, match="more than the 67108864 allowed"):
        Tokenizer.load(tmp_path)
    os.remove(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(TokenizerError, match=r"cannot read .*tokenizer.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "Sequence", "decoders": []},
        {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}]},
        {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"}, {"type": "Fuse"}]},
    ],
)
def test_a_decoder_that_cannot_be_streamed_is_refused(decoder):
    spec = json.loads(tiny_tokenizer.library().to_str()) | {"decoder": decoder}
    with pytest.raises(TokenizerError, match=r"tokenizer.json: decoder .* is not supported"):
        Tokenizer(json.dumps(spec).encode())


def test_added_tokens_whose_ids_are_not_their_places():
    """The library numbers them itself and says nothing: another token would be read for each."""
    spec = json.loads(tiny_tokenizer.library().to_str())
    spec["added_tokens"][1]["id"] = 300
    with pytest.raises(TokenizerError, match=r"added token '<\|im_start\|>' has id 300, its place gives it 25"):
        Tokenizer(json.dumps(spec).encode())


def begun(single, **spec):
    """The tiny tokenizer with a post-processor."""
    from tokenizers import processors

    made = tiny_tokenizer.library()
    names = [word for word in single.split() if word != "$A"]
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=[(n, made.token_to_id(n)) for n in dict.fromkeys(names)])
    return Tokenizer(made.to_str().encode())


def test_what_stands_before_a_text_stands_once_and_nothing_behind_it():
    start, end, bare = tiny_tokenizer.IM_START, tiny_tokenizer.IM_END, begun("<|im_start|> $A <|im_end|>")
    assert bare.encode("hi", add_special=True) == [start, *b"hi"] and bare.begin == "<|im_start|>"
    assert bare.encode("<|im_start|>hi", add_special=True) == [start, *b"hi"]
    assert bare.encode("<|im_start|>", add_special=True, plain=True) == [start, *b"<|im_start|>"]
    assert bare.encode("", add_special=True) == [start]
    assert begun("$A <|im_end|>").encode("hi", add_special=True) == list(b"hi")
    assert begun("<|endoftext|> <|im_start|> $A").encode("<|im_start|>a", add_special=True)[:2] == [tiny_tokenizer.ENDOFTEXT, start]
    assert end not in bare.encode("a\nb", add_special=True)


words = st.sampled_from(["the ", "gate", " ", "  ", "\n", "\n\n", "x.\n", "ab cd ", "7 ", "é ", "!?", "<|im_end|>", "don't ", "北 "])


def test_cutting_a_long_text_changes_no_id(tok, library, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_CHARS", 64)
    monkeypatch.setattr(module, "_CONTEXT", 32)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.lists(words, min_size=40, max_size=150))
    def check(parts):
        text = "".join(parts)
        assert tok.encode(text) == library.encode(text, add_special_tokens=False).ids

    check()


def test_a_long_text_is_really_cut(monkeypatch):
    tok = Tokenizer(build("gpt2").to_str().encode())
    monkeypatch.setattr(module, "BLOCK_CHARS", 1 << 12)
    sizes = []
    real = module.ids_of
    monkeypatch.setattr(module, "ids_of", lambda library, text: sizes.append(len(text)) or real(library, text))
    tok.encode("the gate opens " * 4000)
    assert max(sizes) < 5000 and sum(s > 4000 for s in sizes) >= 10


def test_a_long_line_without_a_blank_takes_linear_time():
    tok = Tokenizer(build("gpt2").to_str().encode())
    times = []
    for size in (1 << 17, 1 << 20):
        text = "ab" * (size // 2)
        best = 1e9
        for _ in range(2):
            started = time.perf_counter()
            tok.encode(text)
            best = min(best, time.perf_counter() - started)
        times.append(best)
    assert times[1] < times[0] * 8 * 4  # eight times the text; quadratic would be 64
