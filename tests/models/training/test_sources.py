"""What training reads of a folder: every paragraph of every kind of text, and one line on what it leaves out."""

import json
import os
import textwrap

import pytest
import training_kit
from training_kit import rng

from lm2.models.errors import LM2Error
from lm2.models.tasks import babilong
from lm2.models.training import sources
from lm2.models.training.leftout import LeftOut
from lm2.models.training.plan import TrainError
from lm2.models.training.text_task import TextTask
from lm2.runtime.evaluation.sources import Library

LONG = "It was said that the old lighthouse keeper of the northern island had never once left it in sixty years. "
ZH = "今天天气很好，我们去公园散步，看见很多花。" * 40


def folder(tmp_path, files):
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path


def read(path, **options):
    left = LeftOut()
    return sources.paragraphs(path, left=left, **options), str(left)


def test_every_paragraph_of_a_book(tmp_path):
    """Long, short, Chinese, wrapped, with any line ends."""
    long = [f"{i} {LONG * 4}".strip() for i in range(900)]
    assert read(folder(tmp_path / "a", {"background/b.txt": "\n".join(long)})) == (long, "")
    assert read(folder(tmp_path / "b", {"background/b.txt": "Chapter 1\r\n\r\nHe left.\r\n"})) == (["Chapter 1", "He left."], "")
    assert read(folder(tmp_path / "c", {"background/b.txt": f"{ZH}\n" * 50})) == ([ZH] * 50, "")
    wrapped = "\r".join(textwrap.fill(p, 72).replace("\n", "\r") + "\r" for p in long[:50])
    assert read(folder(tmp_path / "d", {"background/b.txt": wrapped})) == (long[:50], "")
    assert read(folder(tmp_path / "e", {"background/b.txt": "\ufeffone\u2028two\x0c\n\x0c\nthree"})) == (["one\u2028two", "three"], "")


def test_records_are_cut_at_line_ends_only(tmp_path):
    told = ["Once there was a fox.\u2028It ran.\x85 And \u2029on.", "two\nlines", "花" * 10]
    lines = "\ufeff" + "\r\n\r\n".join(json.dumps({"text": t}, ensure_ascii=False) for t in told) + "\r\n"
    for name, content in (
        ("tinystories/x.jsonl", lines),
        ("tinystories/deep/er/x.JSONL", lines),
        ("background/x.jsonl", lines),
        ("tinystories/x.json", json.dumps([{"text": t} for t in told], indent=1)),
        ("tinystories/x.json", json.dumps(told)),
        ("tinystories/x.json", lines),
    ):
        assert read(folder(tmp_path / str(len(os.listdir(tmp_path))), {name: content})) == (told, ""), name


def test_what_is_left_out_is_said(tmp_path):
    records = [{"text": "kept"}, {"content": "x"}, {"text": None}, {"text": ["a"]}, {"text": " "}, {"text": "\ud800"}, {"text": "a\0"}]
    found, said = read(
        folder(
            tmp_path,
            {
                "background/a.txt": "One book.",
                "background/more/b.md": "# Head\n\nwrapped\nlines",
                "background/copy.txt": "One book.",
                "background/empty.txt": "",
                "background/cover.jpg": b"\xff\xd8",
                "background/._a.txt": b"\xff",
                "background/README.txt": "no book",
                "tinystories/x.jsonl": "\n".join(map(json.dumps, records)),
                "old/c.txt": "x",
                "notes.txt": "x",
            },
        )
    )
    held = babilong.book_part(["a", "more/b", "copy", "empty"], "validation")
    assert "kept" in found and "no book" not in found
    for words in (
        f"1 book held out for evaluation ({held[0]})",
        '3 records without a "text" (x.jsonl)',
        "1 empty text (x.jsonl)",
        "1 text with half a surrogate pair",
        "1 text with a NUL character",
        "2 files of another kind (README.txt, cover.jpg)",
        "1 folder other than babi, background or books, chat and tinystories (old)",
        "1 file in none of the folders (notes.txt)",
    ):
        assert words in said, said
    assert "1 book with the bytes of another" in said, "a, or its copy"
    assert "\n" not in said and len(held) == 1 and ("1 file without text (empty.txt)" in said) == (held != ("empty",))


def test_a_copy_of_a_held_out_book_is_not_trained_on(tmp_path):
    names = [f"book{i}" for i in range(9)]
    held, same = (babilong.book_part(names, part)[0] for part in ("validation", "train"))
    path = folder(tmp_path, {f"background/{n}.txt": f"{held if n == same else n} text" for n in names})
    found, said = read(path)
    assert found and f"{held} text" not in found and f"1 book with the bytes of another ({same})" in said


def test_books_are_divided_as_evaluation_divides_them(tmp_path):
    """By names without endings, in folders too: none that is evaluated is trained on."""
    names = [f"book{i}" for i in range(30)] + [f"more/book{i}" for i in range(30)]
    for where in ("background", "books"):
        path = folder(tmp_path / where, {f"{where}/{n}.txt": n for n in names})
        trained, evaluated = set(sources.books(path)), set(Library(path, "validation").files)
        assert trained and evaluated and not trained & evaluated and len(trained | evaluated) == 60
        assert trained == set(Library(path, "train").files)


def test_limits_of_a_book_are_said(tmp_path):
    path = folder(tmp_path, {"background/b.txt": "Short.\n" + f"{LONG * 4}\n" * 12})
    found, said = read(path, a_book=5, words_least=41)
    assert found == [(LONG * 4).strip()] * 5
    assert said == "1 paragraph of fewer than 41 words (b.txt); 7 paragraphs after the first 5 of a file (b.txt)"


def test_sentences_of_every_script(tmp_path):
    wrapped = "\n\n".join(textwrap.fill(LONG * 9, 72) for _ in range(5))
    path = folder(tmp_path, {"background/a.txt": f"{wrapped}"})
    assert sources.sentences(sources.books(path)) == [LONG.strip()] * 45
    left = LeftOut()
    chinese = sources.sentences(sources.books(folder(tmp_path / "zh", {"books/a.txt": ZH + "好。"})), left)
    assert len(chinese) == 40 and str(left) == "1 sentence of fewer than 8 words"


def test_files_that_are_wrong_are_named(tmp_path):
    for name, content, words in (
        ("background/l.txt", "é".encode("latin-1"), "not UTF-8"),
        ("background/n.txt", "a\0b", "NUL byte"),
        ("background/u.txt", "text".encode("utf-16"), "UTF-16"),
        ("tinystories/b.jsonl", '{"text": "a"}\n{"te', "line 2 is not JSON"),
        ("tinystories/d.jsonl", "[" * 100000, "line 1 is not JSON"),
        ("tinystories/s.jsonl", '"text"', "line 1 must be a JSON object, not str"),
    ):
        path = folder(tmp_path / name.replace("/", "_"), {name: content})
        with pytest.raises(TrainError) as refused:
            sources.paragraphs(path)
        assert name in str(refused.value) and words in str(refused.value)
    both = folder(tmp_path / "both", {"background/a.txt": "x", "background/a.md": "x"})
    with pytest.raises(LM2Error, match=r"one name, a: rename"):
        sources.paragraphs(both)


def test_more_text_than_can_be_held(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "TEXT_BYTES_MAX", 10)
    with pytest.raises(TrainError, match="12 bytes of text, more than the 10"):
        sources.paragraphs(folder(tmp_path, {"background/a.txt": "some", "tinystories/b.txt": "some text"[:8]}))


def test_dialogues_of_every_kind_of_file(tmp_path):
    turns = [{"role": "user", "content": "one\u2028line"}, {"role": "assistant", "content": "Yes."}]
    line = json.dumps({"turns": turns}, ensure_ascii=False)
    path = folder(
        tmp_path,
        {
            "chat/d.jsonl": f"\ufeff{line}\r\n\r\n{line}\r\n{line}\r\n" + json.dumps({"turns": turns[:1]}),
            "chat/p.csv": '\ufeffBest Generated Conversation,x\r\n"User 1: a\u2028b\r\nUser 2: c",1\r\n',
            "chat/schema.json": "{}",
        },
    )
    left = LeftOut()
    found = sources.dialogues(path, 2, left)
    assert found == [[("user", "one\u2028line"), ("assistant", "Yes.")]] * 2 + [[("user", "a\u2028b"), ("assistant", "c")]]
    assert str(left) == "2 dialogues after the first 2 of a file (d.jsonl); 1 file in chat other than .jsonl and .csv (schema.json)"
    for content, words in (("a,b\n1,2\n", "no column 'Best"), ("", "no column"), (b"\xff", "not UTF-8")):
        with pytest.raises(TrainError, match=words):
            sources.dialogues(folder(tmp_path, {"chat/p.csv": content}))


def test_streams_reach_every_part_of_a_long_text():
    """A book of one line: streams begin anywhere in it, not at its first word only."""
    text = " ".join(f"w{i}" for i in range(5000))
    task = TextTask(training_kit.model(), str.split, [text, "end"])
    draws, begins, seen = rng(), set(), []
    for _ in range(60):
        stream = task._stream(draws, 40)
        begins.add(stream[0])
        assert len(stream) == 40
        seen.append(stream)
    assert len(begins) > 10
    order = [*text.split(), "end"]
    for stream in seen:
        at = order.index(stream[0])
        assert stream == [order[(at + i) % len(order)] for i in range(40)], "in reading order, nothing between left out"


def test_text_without_a_token_is_refused():
    with pytest.raises(TrainError, match="no token of any"):
        TextTask(training_kit.model(), lambda text: [], ["a", "b"])._stream(rng(), 4)
