"""Text files of strangers: line ends, marks, bytes that are no text, wrapped and unspaced paragraphs, pieces."""

import random
import textwrap

import pytest

from lm2.models import textfile
from lm2.models.errors import LM2Error

WORDS = [
    "the",
    "old",
    "tower",
    "stood",
    "above",
    "a",
    "quiet",
    "river",
    "and",
    "nobody",
    "in",
    "town",
    "knew",
    "why",
    "it",
    "had",
    "been",
    "built",
    "so",
    "high",
]


class Refused(LM2Error):
    pass


def lines(path, data, most=1 << 20):
    path.write_bytes(data)
    return list(textfile.lines(path, most, Refused))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_line_ends_at_line_ends_and_nowhere_else(tmp_path, end):
    odd = "x\u2028y\u2029z\x85q\x0bw\x0cv\x1ce".encode()
    assert lines(tmp_path / "a.txt", odd + end + end + b"next" + end) == [odd.decode(), "", "next"]
    assert lines(tmp_path / "a.txt", b"\xef\xbb\xbf1 Mary" + end + b"2") == ["1 Mary", "2"], "the mark is no character"
    assert lines(tmp_path / "a.txt", b"") == [] == lines(tmp_path / "a.txt", b"\xef\xbb\xbf")


def test_what_is_no_text_is_refused_by_name(tmp_path):
    path = tmp_path / "b.txt"
    for data, words in (
        ("Grüße".encode("latin-1"), "not UTF-8 (byte 2)"),
        (b"a" * 70000 + b"\xff", "not UTF-8 (byte 70000)"),
        (b"abc\xe4\xb8", "not UTF-8 (byte 3)"),
        ("text".encode("utf-16"), "is UTF-16 (little-endian), not UTF-8"),
        ("text".encode("utf-32"), "is UTF-32 (little-endian), not UTF-8"),
        (b"one\ntwo\0", "line 2 has a NUL byte"),
        (b"x" * 101, "101 bytes, more than the 100 allowed"),
    ):
        with pytest.raises(Refused) as refused:
            lines(path, data, 100 if data[:1] == b"x" else 1 << 20)
        assert str(path) in str(refused.value) and words in str(refused.value), refused.value
    with pytest.raises(Refused, match="cannot read"):
        list(textfile.lines(tmp_path, 1 << 20, Refused))


def prose(seed, count, sizes):
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(rng.choice(sizes))) + "." for _ in range(count)]


@pytest.mark.parametrize("width", [50, 72, 100])
def test_wrapped_paragraphs_are_put_together(width):
    for made in (prose(0, 40, (5, 60, 120)), prose(1, 5, (200,))):
        assert textfile.paragraphs("\n\n".join(textwrap.fill(p, width) for p in made)) == made
    for end in ("\n\n", "\n"):
        indented = end.join(textwrap.fill(p, width, initial_indent="    ") for p in made)
        assert textfile.paragraphs(indented) == made
    joined = textfile.paragraphs("\n\n".join(textwrap.fill(p.replace("old tower", "well-known"), width) for p in made))
    assert joined == [p.replace("old tower", "well-known") for p in made], "no blank after a hyphen"


def test_wrapped_text_without_blanks_between_words():
    made = ["今天天气很好，我们去公园散步，看见很多花。" * 20, "她说今天不去了，因为下雨。" * 30]
    wrapped = "\n\n".join("\n".join(p[i : i + 36] for i in range(0, len(p), 36)) for p in made)
    assert textfile.paragraphs(wrapped) == made


def test_lines_that_are_paragraphs_stay_lines():
    rng = random.Random(3)
    verse = "\n\n".join("\n".join(" ".join(rng.choice(WORDS) for _ in range(rng.randint(4, 9))) for _ in range(4)) for _ in range(20))
    numbered = "\n\n" + "\n".join(f"Paragraph {i} of this book is about the number {i * i}." for i in range(90))
    for text in (verse, numbered, "\n".join(prose(4, 60, (60,))), "\n\n".join(prose(5, 60, (8, 60)))):
        assert textfile.paragraphs(text) == [line for line in text.split("\n") if line]


def test_words_of_scripts_without_blanks():
    assert textfile.words("one two three") == 3
    assert textfile.words("今天天气很好，我们去公园散步。") >= 7
    assert textfile.words("สวัสดีชาวโลกทั้งหลาย") >= 7
    assert textfile.words("안녕하세요 여러분") == 2, "Korean has blanks"


@pytest.mark.parametrize("text", ["", "short", "word " * 500, "x" * 5001, "花" * 999 + " " + "y" * 1500])
def test_pieces_are_the_text(text):
    pieces = textfile.cut(text, 100)
    assert "".join(pieces) == text and all(len(p) <= 100 for p in pieces)
    if text.startswith("word"):
        assert all(p.startswith(" ") for p in pieces[1:]), "cut before a blank, as tokenizers do"


def test_longest_is_the_longest():
    for limit in (1, 2, 7, 64, 100):
        for room in range(0, 130, 3):
            asked = []
            found = textfile.longest(limit, lambda n: asked.append(n) or n, room)  # noqa: B023
            assert found == min(limit, room) and max(asked, default=0) <= 2 * max(1, room), "nothing much larger is counted"
