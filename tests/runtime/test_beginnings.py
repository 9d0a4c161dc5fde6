"""What a tokenizer puts before a text stands once, where a text begins, and what it would put behind never: every text here goes on."""

import json

import pytest
import tiny_model
import tiny_tokenizer
from tiny_tokenizer import ENDOFTEXT, IM_END, IM_START

from lm2 import Session
from lm2.runtime.evaluation.render import Renderer
from lm2.runtime.parity.inputs import Inputs

END = tiny_tokenizer.VOCAB - 1


def make(path, template, single="<|endoftext|> $A <|im_end|>", **fields):
    """A model folder whose post-processor puts <|endoftext|> before a text and <|im_end|> behind."""
    from tokenizers import processors

    tiny_model.make(path, **fields)
    library = tiny_tokenizer.library()
    marks = [(t, library.token_to_id(t)) for t in ("<|endoftext|>", "<|im_end|>")]
    library.post_processor = processors.TemplateProcessing(single=single, special_tokens=marks)
    (path / "tokenizer.json").write_text(library.to_str())
    if template is None:
        (path / "chat_template.jinja").unlink()
    else:
        (path / "chat_template.jinja").write_text(template)
    return tiny_model.load_tiny(path)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return make(tmp_path_factory.mktemp("m") / "m", None)


def standing(session):
    return list(session.at.tokens + session.at.pending)


def prompt(session):
    """Without the answer."""
    ids, count = standing(session), len(session.reply.tokens)
    return ids[: len(ids) - count] if count else ids


def test_chat_without_a_template(bare):
    session = Session(bare, seed=1)
    session.say("hi", 1)
    assert standing(session)[:20] == [ENDOFTEXT, *b"User: hi\nAssistant:"]
    session.say("yo", 1)
    assert standing(session).count(ENDOFTEXT) == 1 and END not in standing(session)[:20]
    system = Session(bare, "Be brief.", seed=1)
    system.say("hi", 1)
    assert standing(system)[:30] == [ENDOFTEXT, *b"Be brief.\nUser: hi\nAssistant:"][:30]


def test_every_window_of_a_chat_begins_so(tmp_path):
    from tiny_model import recorded

    session = Session(recorded(make(tmp_path / "m", None)), seed=1)
    for _ in range(6):
        session.say("some words", 9)
    left = session.model.backend.windows(session.at.memory)
    assert len(left) > 1 and all(ids[0] == ENDOFTEXT and ENDOFTEXT not in ids[1:] for ids in (*(ids for ids, *_ in left), session.at.tokens + session.at.pending))


def test_prompts_and_files(bare):
    session = Session(bare, seed=1)
    list(session.complete("hi", 0))
    assert standing(session) == [ENDOFTEXT, *b"hi"]
    list(session.complete(" there", 0))
    assert standing(session) == [ENDOFTEXT, *b"hi there"]
    for said in ("<|endoftext|>hi", "hi"):
        session = Session(bare, seed=1)
        list(session.complete(said, 0))
        assert standing(session) == [ENDOFTEXT, *b"hi"], "the prompt may bring it"
    session = Session(bare, seed=1)
    session.read(iter(["abc\n", "def\n"]), chat=False)
    assert standing(session) == [ENDOFTEXT, *b"abc\ndef\n"]
    list(session.complete("x", 0))
    assert standing(session) == [ENDOFTEXT, *b"abc\ndef\nx"]
    session = Session(bare, seed=1)
    session.read(iter(["<|endoftext|>a"]), chat=False)
    assert standing(session) == [ENDOFTEXT, *b"<|endoftext|>a"]
    session.reset()
    session.read(iter(["a\n", "b\n"]))
    assert standing(session) == [ENDOFTEXT, *b"User: a\nb\n\n"]


def test_a_template_that_writes_it_and_one_that_does_not(tmp_path):
    for i, source in enumerate(("{{ bos_token }}" + tiny_tokenizer.CHATML, tiny_tokenizer.CHATML)):
        path = tmp_path / str(i)
        model = make(path, source)
        config = json.loads((path / "config.json").read_text()) | {"bos_token_id": ENDOFTEXT}
        (path / "config.json").write_text(json.dumps(config))
        model = tiny_model.load_tiny(path)
        session = Session(model, seed=1)
        session.say("hi", 0)
        want = [*([ENDOFTEXT] if not i else []), IM_START, *b"user\nhi", IM_END, 10, IM_START, *b"assistant\n"]
        assert prompt(session)[: len(want)] == want and standing(session).count(ENDOFTEXT) == 1 - i


def test_evaluation_and_parity_begin_as_a_session_does(bare):
    session = Session(bare, seed=1)
    session.say("hi", 0)
    asked = Renderer(bare).question("hi")
    assert list(asked) == [ENDOFTEXT, *b"User: hi\nAssistant:"] == prompt(session)[: len(asked)]
    assert Inputs(bare, 32, 0).text(9)[:6] == [ENDOFTEXT, *b"User:"]


def test_perplexity_and_mmlu(bare, tmp_path):
    from types import SimpleNamespace

    from lm2.runtime.evaluation.mmlu import LetterExaminer
    from lm2.runtime.evaluation.perplexity import texts

    (tmp_path / "book.txt").write_text("A line of a book about the sea.\n" * 40)
    chunks = next(texts([tmp_path / "book.txt"], bare, 3, 0))
    assert [i for chunk in chunks for i in chunk].count(ENDOFTEXT) == 1 and chunks[0][0] == ENDOFTEXT
    examiner = LetterExaminer(bare, SimpleNamespace(), 1)
    assert [i for chunk in examiner._chunks(["one " * 9, "two " * 30]) for i in chunk][:4] == [ENDOFTEXT, *b"one"]
    assert sum(i == ENDOFTEXT for chunk in examiner._chunks(["one " * 9, "two " * 30]) for i in chunk) == 1
