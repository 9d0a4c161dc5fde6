"""Streaming against whole decoding, token by token, for every tokenizer family; stop strings against every way to split a text."""

import time
from itertools import pairwise

import pytest
import tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, VALID, build

from lm2.models.errors import PromptError
from lm2.models.text.streaming import Detokenizer, StopStrings
from lm2.models.text.tokenizer import Tokenizer

FAMILY = "\U0001f468‍\U0001f469‍\U0001f467"
TRICKY = ("\U0001f389", FAMILY, "e\u0301", "北京", "नमस्ते", "\U0001f1e9\U0001f1ea", "\u2581", "\ufffd", "\ufeff", "\x00", " ", "a")
HALVES = (b"\xf0\x9f", b"\xe5\x8c", b"\xc3", b"\x80", b"\xff", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80")


@pytest.fixture(scope="module")
def tiny():
    return Tokenizer(tiny_tokenizer.library().to_str().encode())


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def tok(kind):
    return Tokenizer(build(kind).to_str().encode())


def byte_ids(tok, kind, data):
    """Ids that stand for single bytes."""
    if kind in ("sentencepiece", "metaspace"):
        return [tok.id(f"<0x{b:02X}>") for b in data]
    return list(data)


def stream(words, ids):
    pieces = [words.add(i) for i in ids]
    return pieces, "".join(pieces) + words.flush()


byte_strings = st.lists(
    st.one_of(st.sampled_from([t.encode() for t in TRICKY]), st.sampled_from(HALVES), st.binary(max_size=4)), max_size=12
).map(b"".join)


def test_any_bytes_stream_to_what_python_makes_of_them(kind, tok):
    """Also: what has been shown stays a beginning of the whole, at every token."""

    @settings(max_examples=250, deadline=None, derandomize=True)
    @given(byte_strings)
    def check(data):
        ids = byte_ids(tok, kind, data)
        pieces, whole = stream(Detokenizer(tok, continuing=True), ids)
        wanted = data.decode("utf-8", "replace")
        assert whole == wanted
        shown = ""
        for piece in pieces:
            shown += piece
            assert wanted.startswith(shown)
        assert tok.decode(ids) == stream(Detokenizer(tok), ids)[1]

    check()


def test_text_appears_as_soon_as_it_is_certain(tiny):
    """Nothing but the bytes of one unfinished character is ever held back."""
    for text in (*TRICKY, "".join(TRICKY)):
        words, shown = Detokenizer(tiny), ""
        data = text.encode()
        for n, b in enumerate(data, 1):
            shown += words.add(b)
            assert shown == data[:n].decode("utf-8", "ignore")
        assert words.flush() == ""


def test_no_replacement_character_for_a_character_that_is_completed_later(tiny):
    for text in TRICKY:
        if text != "\ufffd":
            assert all("\ufffd" not in piece for piece in stream(Detokenizer(tiny), text.encode())[0])
    assert stream(Detokenizer(tiny), b"a\xf0\x9f")[0] == ["a", "", ""]
    assert stream(Detokenizer(tiny), b"a\xf0\x9f")[1] == "a\ufffd"


def test_mixed_tokens_join_to_decode(kind, tok):
    library = build(kind)
    valid = VALID(library)

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(st.lists(st.one_of(st.sampled_from(valid), st.integers(0, tok.vocab_size + 2)), max_size=16), st.booleans())
    def check(ids, skip):
        whole = stream(Detokenizer(tok, skip), ids)[1]
        assert whole == tok.decode(ids, skip)
        if set(ids) <= set(valid):
            assert whole == library.decode(ids, skip_special_tokens=skip)

    check()


def test_real_text_through_every_tokenizer(tok):
    text = f"The gate opens late {FAMILY}.\n\n  北京 naïve\tend"
    assert stream(Detokenizer(tok), tok.encode(text))[1] == text


@pytest.mark.parametrize("name", ["sentencepiece", "metaspace"])
def test_a_sentencepiece_blank_is_dropped_only_at_the_start_of_a_text(name):
    tok = Tokenizer(build(name).to_str().encode())
    ids = [tok.id("▁the"), tok.id("▁gate")]
    assert stream(Detokenizer(tok), ids)[0] == ["the", " gate"]
    assert stream(Detokenizer(tok, continuing=True), ids)[0] == [" the", " gate"]
    special = tok.id("<s>")
    assert stream(Detokenizer(tok), [special, *ids])[1] == "<s> the gate"
    assert stream(Detokenizer(tok, skip_special=True), [special, *ids])[1] == "the gate"


def test_a_stray_byte_does_not_swallow_the_word_after_it():
    tok = Tokenizer(build("sentencepiece").to_str().encode())
    ids = [tok.id("a"), tok.id("<0xE5>"), tok.id("▁the"), tok.id("<0xC3>"), tok.id("<0xA9>"), tok.id("<0xFF>")]
    assert stream(Detokenizer(tok), ids)[1] == "a\ufffd theé\ufffd"


def test_added_tokens_are_text_even_outside_ascii():
    from tokenizers import AddedToken

    library = tiny_tokenizer.library()
    library.add_special_tokens([AddedToken(t, special=True) for t in ("é«b c»", "é!")])
    tok = Tokenizer(library.to_str().encode())
    assert tok.decode(tok.encode("x é«b c» é! y")) == "x é«b c» é! y"


def test_a_token_costs_the_same_after_a_hundred_thousand(tiny):
    words = Detokenizer(tiny)

    def cost():
        started = time.perf_counter()
        for _ in range(2000):
            words.add(104)
        return time.perf_counter() - started

    early = min(cost() for _ in range(3))
    for i in range(100_000):
        words.add(i % 128)
    assert min(cost() for _ in range(3)) < early * 5


def test_an_endless_run_of_broken_bytes_is_not_held_back(tiny):
    words = Detokenizer(tiny)
    shown = sum(len(words.add(0xF0)) for _ in range(1000))
    assert shown == 999 and words.flush() == "\ufffd"


def first_to_complete(text, stops):
    """Reference: the text read character by character until some stop string is complete."""
    for end in range(1, len(text) + 1):
        done = [s for s in stops if text[:end].endswith(s)]
        if done:
            stop = max(done, key=len)
            return text[: end - len(stop)], stop
    return text, None


def run(stops, pieces):
    cutter, shown = StopStrings(stops), []
    for piece in pieces:
        emit, stopped = cutter.feed(piece)
        shown.append(emit)
        if stopped:
            return "".join(shown), cutter.matched, shown
    return "".join(shown) + cutter.flush(), cutter.matched, shown


letters = st.text("ab<|", max_size=24)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(letters, st.lists(st.text("ab<|", min_size=1, max_size=4), max_size=3), st.lists(st.integers(0, 24), max_size=6))
def test_stop_strings_do_not_depend_on_how_the_text_is_split(text, stops, cuts):
    at = sorted({0, len(text), *(min(c, len(text)) for c in cuts)})
    pieces = [text[a:b] for a, b in pairwise(at)]
    wanted, stop = first_to_complete(text, stops)
    assert run(stops, pieces)[:2] == (wanted, stop)
    assert run(stops, list(text))[:2] == (wanted, stop)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(letters, st.lists(st.text("ab<|", min_size=1, max_size=4), max_size=3))
def test_only_what_may_be_the_beginning_of_a_stop_is_held_back(text, stops):
    cutter, shown, read = StopStrings(stops), "", ""
    for c in text:
        emit, stopped = cutter.feed(c)
        if stopped:
            break
        shown, read = shown + emit, read + c
        held = read[len(shown) :]
        assert read == shown + held
        longest = max((n for s in stops for n in range(len(s)) if read.endswith(s[:n])), default=0)
        assert len(held) == longest


def test_a_stop_across_tokens_is_cut_and_what_follows_is_dropped():
    cutter = StopStrings(["\nUser:"])
    assert [cutter.feed(x) for x in ("Hello\n", "Us", "er: hi", "more")] == [
        ("Hello", False), ("", False), ("", True), ("", True),
    ]  # fmt: skip
    assert cutter.matched == "\nUser:" and cutter.flush() == ""


def test_a_beginning_that_comes_to_nothing_is_shown():
    cutter = StopStrings(["###"])
    assert [cutter.feed(x)[0] for x in ("a#", "#", "b#")] == ["a", "", "##b"]
    assert cutter.flush() == "#" and cutter.flush() == "" and cutter.matched is None


def test_without_stops_nothing_is_held():
    assert StopStrings().feed("anything") == ("anything", False)


@pytest.mark.parametrize(
    ("stops", "said"),
    [
        ([""], "at least one character"),
        ([3], "stop string 3 must be text"),
        ("abc", "must be a list of stop strings"),
        (["x"] * 65, "at most 64"),
        (["x" * 1025], "at most 1024"),
    ],
)
def test_bad_stop_strings_are_refused(stops, said):
    with pytest.raises(PromptError, match=said):
        StopStrings(stops)
