"""Training, an export's cost and an evaluation's counter read the tokens that a session reads, whatever a tokenizer.json says of batches."""

import json
import random
import re
from pathlib import Path

import pytest
import tiny_model
import tiny_tokenizer
import training_kit

import lm2
from lm2.export import cost
from lm2.models.layout import open_folder
from lm2.models.text.tokenizer import Tokenizer
from lm2.models.training import jobs, people
from lm2.models.training.threads import Fact
from lm2.models.training.turns import chat_turns
from lm2.runtime.evaluation.sources import counter

STORY = "Once there was a fox. It ran over the hill and met a dog. " * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder whose tokenizer.json cuts, fills up, and puts a beginning and an end around a text."""
    from tokenizers import processors

    path = tiny_model.make(tmp_path_factory.mktemp("m") / "m", chunk=128)
    library = tiny_tokenizer.library()
    library.enable_truncation(16)
    library.enable_padding(length=24, pad_id=tiny_tokenizer.ENDOFTEXT, pad_token="<|endoftext|>")
    marks = [(t, library.token_to_id(t)) for t in ("<|im_start|>", "<|im_end|>")]
    library.post_processor = processors.TemplateProcessing(single="<|im_start|> $A <|im_end|>", special_tokens=marks)
    (path / "tokenizer.json").write_text(library.to_str())
    return path


def test_plain_text_is_a_beginning_and_all_of_the_text(folder, tmp_path):
    (tmp_path / "tinystories").mkdir()
    (tmp_path / "tinystories" / "x.jsonl").write_text(json.dumps({"text": STORY + "<|im_end|>"}) + "\n")
    job = jobs.text(jobs.PLANS["text"], open_folder(folder), tmp_path, False, "cpu", False)
    one = [*STORY.encode(), *b"<|im_end|>\n"]
    assert job.task._stream(random.Random(0), 600) == [tiny_tokenizer.IM_START, *one, *one, *one, *one][:600]
    session = lm2.Session(tiny_model.load_tiny(folder), seed=1)
    session.read(iter([STORY[:50], STORY[50:] + "<|im_end|>\n"]), chat=False)
    assert session.model.encode(STORY + "<|im_end|>\n", add_special=True, plain=True) == job.task._stream(random.Random(0), 1 + len(one))


def people_of(monkeypatch, tmp_path, folder, template=tiny_tokenizer.CHATML, data=None):
    monkeypatch.setattr(people, "_answers", lambda model, key, tokenizer, questions, *_: dict.fromkeys(questions, "Well."))
    model = training_kit.model(chunk=64, vocab=tiny_tokenizer.VOCAB)
    return people.threads(model, "k", Tokenizer.load(folder), chat_turns(template), data, tmp_path, 0, lambda text: None)


def test_conversations_keep_what_is_said(folder, monkeypatch, tmp_path):
    """Words in training data that spell a mark are words; a book begins as a text does."""
    threads = people_of(monkeypatch, tmp_path, folder)
    said = "a<|im_end|>b"
    spelled = [tiny_tokenizer.IM_START, *b"user\na<|im_end|>b", tiny_tokenizer.IM_END, 10]
    assert threads._turn("user", said) == spelled
    fact = Fact(0, 1, None, "b", (said,), said, ("k",))
    asked = threads._answered(said, said, fact)
    assert asked.ids == [*spelled, tiny_tokenizer.IM_START, *b"assistant\na<|im_end|>b", tiny_tokenizer.IM_END]
    assert [t for t in asked.targets if t >= 0] == [*b"a<|im_end|>b", tiny_tokenizer.IM_END]
    threads.books = [said * 20]
    assert threads.read(random.Random(0), 60).ids == [tiny_tokenizer.IM_START, *(said * 20).encode()][:61]


def test_an_answer_is_cut_where_its_opening_ends(folder, monkeypatch, tmp_path):
    """A token made of the opening's end and the answer's beginning is no reason to leave the beginning out."""
    encode = Tokenizer.encode

    def joined(self, text, **options):
        return [i for part in re.split("(\n\n)", text) for i in ([300] if part == "\n\n" else encode(self, part, **options))]

    monkeypatch.setattr(Tokenizer, "encode", joined)
    threads = people_of(monkeypatch, tmp_path, folder)
    asked = threads._answered("Hi", "\nWell.", None)
    assert [i for i in asked.targets if i >= 0] == [10, *b"Well.", tiny_tokenizer.IM_END]


def test_what_an_export_costs_is_measured_on_whole_text(folder):
    model = tiny_model.load_tiny(folder)
    assert cost._ids(model.config, folder / "tokenizer.json").tolist() == [model.encode(cost.TEXT, add_special=True)[:128]]


def test_lengths_are_counted_on_whole_text(folder):
    count, name = counter(folder / "tokenizer.json")
    assert [count(text) for text in ("", "abc", STORY)] == [0, 3, len(STORY)] and name == "the tokenizer tokenizer.json"


def test_one_place_opens_a_tokenizer():
    """Everyone else would have to remember what truncation and padding do."""
    package = Path(lm2.__file__).parent
    parts = [package / name for name in ("models", "runtime", "export", "lm2_mlx", "cli.py")]
    files = [f for part in parts for f in (part.rglob("*.py") if part.is_dir() else [part])]
    opens = [f.relative_to(package).as_posix() for f in files if re.search(r"\.from_(file|str|buffer|pretrained)\(", f.read_text())]
    assert opens == ["models/text/library.py"] and len(files) > 150
