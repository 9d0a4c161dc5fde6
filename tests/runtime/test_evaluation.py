"""Evaluation: batches of streams equal streams alone, the control is a control, intervals and floors stand beside, a stopped run goes on."""

import io
import json
from dataclasses import replace
from itertools import islice

import evaluation_kit
import numpy as np
import pytest
import tiny_model
import tiny_tokenizer
from compare import assert_close

from lm2.models.errors import PromptError
from lm2.models.tasks.recall import Conversation, Turn, conversations
from lm2.runtime.backend import MemoryState
from lm2.runtime.evaluation import sources
from lm2.runtime.evaluation.cells import Cell, Examiner, Outcome, Result
from lm2.runtime.evaluation.render import Renderer
from lm2.runtime.evaluation.report import _figure, document, means, table
from lm2.runtime.evaluation.run import run
from lm2.runtime.evaluation.store import EvaluationError, Store
from lm2.runtime.evaluation.streams import Reader, Stopped, Stream, streams_at_once
from lm2.runtime.evaluation.swift import SwiftReader, reader_of
from lm2.runtime.session.session import Session


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The tiny models with chunks of 64 in every cell: an evaluation reads whole chunks."""
    folder = tmp_path_factory.mktemp("models")
    return {c: replace(tiny_model.load_tiny(tiny_model.make(folder / c, c, chunk=64)), eos=frozenset()) for c in tiny_model.CELLS}


def drawn(model, lengths, seed=0):
    """Random streams: one list of chunk lengths each."""
    rng = np.random.default_rng(seed)
    return [tuple(tuple(rng.integers(0, 256, n).tolist()) for n in stream) for stream in lengths]


def alone(backend, stream, question, longest):
    """The plain way: one stream, one chunk after the other, one token at a time; a chunk counts whole, however short it is."""
    state = MemoryState(backend.commit(backend.start(1)).bank, 0)
    for number, ids in enumerate(stream, 1):
        after = backend.commit(backend.extend(np.array(ids), backend.start(1, state))[1])
        state = MemoryState(after.bank, number * backend.config.memory.chunk)
    logits, chunk = backend.extend(np.array(question), backend.start(1, state))
    answer = []
    for _ in range(longest):
        answer.append(int(logits[0].argmax()))
        logits, chunk = backend.extend(np.array(answer[-1:]), chunk)
    return backend.to_host(state), tuple(answer)


LENGTHS = [[64, 10, 33], [5], [64, 64, 64, 1, 17], [40, 41], [64, 10, 33]]


def test_a_batch_equals_its_streams_alone(model):
    """All cells, chunks of many lengths, four rows a position: banks and greedy answers."""
    streams = drawn(model, LENGTHS)
    questions = drawn(model, [[9], [12], [9], [9], [12]], seed=1)
    reader = Reader(model.backend.real, (), 6)
    banks = reader.read(streams)
    answers = reader.ask(banks, [q[0] for q in questions])
    for stream, question, bank, answer in zip(streams, questions, banks, answers, strict=True):
        want_bank, want = alone(model.backend.real, stream, question[0], 6)
        assert_close("bank", bank, want_bank, 2e-5, 1e-4)
        assert answer == want


def test_reading_without_windows_equals_reading_with_them(gated):
    """Banks and answers of streams that go round the bank more than once, in one order and in another."""
    backend = gated.backend.real
    lengths = [[64, 10, 33], [5], [], [64] * (2 * backend.config.memory.slots // 64 + 1), [40, 41]]
    streams = drawn(gated, lengths)
    plain, swift = Reader(backend, (), 6), reader_of(backend, (), 6, lambda: None)
    assert isinstance(swift, SwiftReader)
    fed = []
    for want, got, stream in zip(plain.read(streams), swift.read(streams, fed.append), streams, strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        assert_close("bank", got, want, 2e-5, 1e-4)
        assert bool(got.any()) == bool(stream)
    assert sum(fed) == sum(map(sum, lengths))
    wrong = swift.read([s[:-1] for s in streams])[3]
    assert np.abs(wrong - plain.read(streams)[3]).max() > 1e-3, "a chunk that was left out would show"


def test_padding_that_is_left_in_the_bank_shows(gated, monkeypatch):
    """Negative control: without putting the rows back the test above must fail."""
    streams = drawn(gated, [[64], [10]])
    reader = Reader(gated.backend.real, (), 1)
    right = reader.read(streams)[1]
    monkeypatch.setattr(reader, "step", lambda bank, chunks, rows: _padded_step(reader, bank, chunks, rows))
    assert np.abs(reader.read(streams)[1] - right).max() > 1e-2


def _padded_step(reader, bank, chunks, rows):
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for i, ids in enumerate(rows):
        tokens[i, : len(ids)] = ids
    backend = reader.backend
    return backend.to_host(backend.commit(backend.extend(tokens, backend.start(len(rows), backend.from_host(bank, chunks)))[1]))


def test_ends_and_longest_answers(gated):
    """An answer ends before an end token; the others of its batch go on."""
    backend = gated.backend.real
    questions = [q[0] for q in drawn(gated, [[9], [9], [9]])]
    free = Reader(backend, (), 8)
    banks = [free.initial] * 3
    want = free.ask(banks, questions)
    end = want[1][2]
    got = Reader(backend, [end], 8).ask(banks, questions)
    for full, cut in zip(want, got, strict=True):
        assert cut == (full[: full.index(end)] if end in full else full)
    full_chunk = drawn(gated, [[62]])[0][0]
    assert len(free.ask(banks[:1], [full_chunk])[0]) == 3, "a chunk of 64 has room for two more tokens, and the third is chosen"


def test_a_question_reads_the_memory_and_writes_nothing(gated):
    reader = Reader(gated.backend.real, (), 4)
    bank = reader.read(drawn(gated, [[64, 64]]))[0]
    question = drawn(gated, [[9]], seed=2)[0][0]
    first = reader.ask([bank], [question])
    assert reader.ask([bank], [question]) == first
    before = bank.copy()
    reader.ask([bank], [question])
    assert (bank == before).all()
    logits = [
        gated.backend.real.extend(np.array(question), gated.backend.real.start(1, gated.backend.real.from_host(b, 2)))[0]
        for b in (bank, reader.initial)
    ]
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


def test_rendering_is_the_sessions(gated):
    """A question has the tokens of a session's first turn; a chunk has those a session commits for the same turns."""
    from lm2.runtime.session.sampling import Sampling

    renderer = Renderer(gated, "Be kind.", answer=1)
    session = Session(gated, "Be kind.", Sampling(temperature=0.0), seed=0)
    session.say("Hi", max_tokens=1)
    assert renderer.question("Hi") == session.at.tokens[: len(renderer.question("Hi"))]
    turns = (Turn("user", "Hi"), Turn("assistant", "Ho"))
    assert renderer.chunks(turns) == [tuple(gated.encode(tiny_tokenizer_text("Be kind.", turns)))]
    assert Renderer(gated).question("Hi") == tuple(gated.encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"))


def tiny_tokenizer_text(system, turns):
    from jinja2 import Template

    messages = [{"role": "system", "content": system}, *({"role": t.role, "content": t.content} for t in turns)]
    return Template(tiny_tokenizer.CHATML, keep_trailing_newline=True).render(messages=messages)


def test_long_chunks_are_cut_between_exchanges(gated):
    small = [Turn("user", "a" * 20), Turn("assistant", "c")]  # more than half of a chunk of 64
    renderer = Renderer(gated)
    assert len(renderer.chunks(small)) == 1
    parts = renderer.chunks(small * 3)
    assert parts == renderer.chunks(small) * 3
    with pytest.raises(PromptError, match="does not fit in a chunk of 64"):
        renderer.chunks([Turn("user", "x" * 60)])
    with pytest.raises(PromptError, match="do not fit in a chunk of 64"):
        Renderer(gated, answer=12).question("x" * 40)
    with pytest.raises(PromptError, match="half of"):
        Renderer(gated, "a very long system prompt")
    with pytest.raises(PromptError, match="from 1 to 64"):
        Renderer(gated, size=65)


def recall_results(model, distances, count, check=lambda: None, store=None, batch=7):
    renderer = Renderer(model, answer=4)
    reader = Reader(model.backend, model.eos, 4, check)
    cells = sources.recall_cells(("story",), distances, "auto", 0, renderer)
    return run(Examiner(model, renderer, reader, batch), cells, count, store)


def test_a_perfect_memory_is_right_and_its_control_is_not():
    """The clerk answers all stories at any distance; asked without the memory it knows nothing, and the table says so."""
    results = recall_results(evaluation_kit.clerk_model(), [1, 5], 30)
    for result in results:
        assert result.right == result.asked == 30 and result.control_right == 0 and result.whole
        assert all(o.control == "nowhere" and o.reply == o.answer for o in result.outcomes)
        assert result.interval()[0] > 0.88 and result.interval(control=True)[1] < 0.12
        assert 1 / 6 < result.floor.share < 0.2


def test_a_memory_of_one_chunk_is_right_at_distance_one_only():
    near, far = recall_results(evaluation_kit.clerk_model(forgets=True), [1, 3], 30)
    assert near.right == 30 and far.right == 0


def test_a_memory_that_ignores_its_bank_equals_its_control():
    """Negative control: banks that are all the never-written one give the control's answers."""
    model = evaluation_kit.clerk_model()
    model.backend.to_host = lambda state: np.zeros_like(state.bank)
    (result,) = recall_results(model, [1], 20)
    assert result.right == result.control_right == 0
    assert [o.reply for o in result.outcomes] == [o.control for o in result.outcomes]


def test_equal_questions_are_asked_once_for_the_control(monkeypatch):
    asked = []
    right = Reader.ask
    monkeypatch.setattr(Reader, "ask", lambda self, banks, questions, batch=64: (
        asked.extend(q for b, q in zip(banks, questions, strict=True) if b is self.initial) or right(self, banks, questions, batch)
    ))  # fmt: skip
    (result,) = recall_results(evaluation_kit.clerk_model(), [1], 40)
    assert len(asked) == len(set(asked)) == len({o.question for o in result.outcomes}) < 40


def test_a_stopped_run_keeps_what_it_has_and_goes_on(tmp_path):
    """Stopped in the middle, then taken up again: the same outcomes as in one run, nothing answered twice."""
    whole = recall_results(evaluation_kit.clerk_model(), [1, 3], 20)
    left = [30]

    def check():
        left[0] -= 1
        if left[0] < 0:
            raise Stopped

    part = recall_results(evaluation_kit.clerk_model(), [1, 3], 20, check, Store(tmp_path / "out", {"seed": 0}))
    assert not part[-1].whole and 0 < sum(r.asked for r in part) < 40
    assert part[0].outcomes == whole[0].outcomes[: part[0].asked]
    model = evaluation_kit.clerk_model()
    again = recall_results(model, [1, 3], 20, store=Store(tmp_path / "out", {"seed": 0}))
    assert [r.outcomes for r in again] == [r.outcomes for r in whole] and all(r.whole for r in again)
    model = evaluation_kit.clerk_model()
    recall_results(model, [1, 3], 20, store=Store(tmp_path / "out", {"seed": 0}))
    assert model.backend.fed == 0, "everything was there"


def test_ctrl_c_in_the_middle_is_a_stop():
    def check():
        raise KeyboardInterrupt

    assert recall_results(evaluation_kit.clerk_model(), [1], 5, check) == []


def test_answers_of_other_settings_or_damaged_ones_are_refused(tmp_path):
    store = Store(tmp_path / "out", {"seed": 0, "model": "a"})
    with pytest.raises(EvaluationError, match="seed 0, this run has 1"):
        Store(tmp_path / "out", {"seed": 1, "model": "a"})
    outcome = Outcome(0, "qa1", 1, 1, 10, "Where is Mary?", "garden", "garden", True, "", False)
    store.save("story-1", [outcome])
    assert store.load("story-1", Outcome) == [outcome] and store.load("story-2", Outcome) == []
    file = tmp_path / "out" / "answers" / "story-1.jsonl"
    for text in ('{"number": 0}\n', "not json\n", json.dumps(outcome._asdict() | {"number": 4}) + "\n", "[]\n"):
        file.write_text(text)
        with pytest.raises(EvaluationError, match="story-1"):
            store.load("story-1", Outcome)


def outcome(number, right, control=False, answer="garden"):
    return Outcome(number, "qa1", 1, 1, 10, "Where?", answer, "x", right, "y", control)


@pytest.mark.parametrize(
    ("right", "count", "words"),
    [(9, 10, "90.0 \\[60-98]"), (998, 1000, "99.8 \\[99-100]"), (9979, 10000, "99.8 \\[99-100]"), (21, 10000, "0.2 \\[0-1]"), (1000, 1000, "100.0 \\[100-100]"), (0, 0, "")],
)
def test_a_printed_interval_holds_what_is_printed_before_it(right, count, words):
    assert _figure(right, count) == words


def test_table_and_json_have_every_figure():
    model = evaluation_kit.clerk_model()
    cells = [Cell(name, 1000, "1k", None, lambda: ()) for name in ("qa1", "qa2")]
    results = [
        Result(cells[0], tuple(outcome(i, i < 9, i < 2) for i in range(10)), True),
        Result(cells[1], tuple(outcome(i, i < 5, answer=f"a{i % 2}") for i in range(10)), False),
    ]
    (mean,) = means(results)
    assert (mean.accuracy, mean.control, mean.floor) == (pytest.approx(0.7), pytest.approx(0.1), pytest.approx(0.75))
    report = json.loads(json.dumps(document(model, "babilong", results, {"seed": 3}, True), allow_nan=False))
    assert report["whole"] is False and report["cells"][0]["whole"] is True
    first = report["cells"][0]
    assert (first["accuracy"], first["control"]["accuracy"], first["floor"]["share"]) == (0.9, 0.2, 1.0)
    assert first["low"] < 0.9 < first["high"] and first["kinds"]["qa1"] == {"count": 10, "right": 9, "control_right": 2}
    from rich.console import Console

    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table("babilong", results))
    text = console.export_text()
    for words in ("90.0 [60-98]", "20.0 [6-51]", "100.0 (garden)", "10 so far", "mean", "70.0"):
        assert words in text, words


def test_recall_part_and_kind_are_checked(gated):
    renderer = Renderer(gated)
    with pytest.raises(EvaluationError, match="--part test"):
        sources.recall_cells(("story",), [1], "test", 0, renderer)
    with pytest.raises(EvaluationError, match="poem"):
        sources.recall_cells(("poem",), [1], "auto", 0, renderer)


def test_samples_at_once_stay_within_bounds(gated):
    assert 1 <= streams_at_once(gated.backend) <= 64


def test_streams_have_a_question(gated):
    conversation = Conversation(((Turn("user", "a"), Turn("assistant", "b")),), "Hm", "b", ("b",), "x", 1, "b.")
    stream = Renderer(gated).stream(conversation)
    assert isinstance(stream, Stream) and len(stream.chunks) == 1 and stream.question


def test_babilong_cells_of_a_folder(tmp_path, gated):
    """Facts and books from files: parts, floors of the part, held-out books, chunks that fit."""
    lines = "".join(f"1 Mary{i} moved to the garden.\n2 Where is Mary{i}?\t{'office' if i % 4 else 'garden'}\t1\n" for i in range(300))
    (tmp_path / "qa1_x_train.txt").write_text(lines)
    (tmp_path / "books").mkdir()
    for name in ("a", "b"):
        (tmp_path / "books" / f"{name}.txt").write_text(f"It was {name} that " + "a b c d e f g h i j k.\n" * 50)
    facts = sources.Facts(tmp_path, "auto", ())
    assert facts.part == "validation" and 10 < len(facts.stories["qa1"]) < 60
    assert facts.floor("qa1").answer == "office" and 0.5 < facts.floor("qa1").share < 0.95
    validation, train = sources.Library(tmp_path, "validation"), sources.Library(tmp_path, "train")
    assert len(validation.files) == len(train.files) == 1 and validation.files != train.files
    big = evaluation_kit.clerk_model()
    renderer = Renderer(big, answer=4)
    cells = sources.babilong_cells(facts, validation.books(lambda t: len(t.split())), ["0k", "1k"], 0, renderer, lambda t: len(t.split()))
    assert [(c.name, c.at) for c in cells] == [("qa1", 0), ("qa1", 1000)]
    for cell in cells:
        for conversation in islice(cell.samples(), 3):
            stream = renderer.stream(conversation)
            assert len(stream.chunks) == len(conversation.chunks), "no piece was cut again"
    (tmp_path / "qa1_x_test.txt").write_text(lines)
    assert sources.Facts(tmp_path, "auto", ()).part == "test" and len(sources.Facts(tmp_path, "test", ()).stories["qa1"]) == 300
    with pytest.raises(EvaluationError, match="qa2"):
        sources.Facts(tmp_path, "auto", ("qa2",))
    assert sources.digest(facts.files.values()) != sources.digest(validation.files)


def test_an_answer_or_a_question_longer_than_a_chunk_is_refused():
    """No reply could be right, so there is no figure to give."""
    renderer = Renderer(evaluation_kit.clerk_model(), answer=12)
    said = Conversation((), "Where is Mary?", "kitchen", (), "qa1", 1, "kitchen.")
    assert renderer.stream(said).question
    with pytest.raises(PromptError, match=r"its answer 'far far .* of 90 do not fit in a chunk of 96: .* larger chunks"):
        renderer.stream(said._replace(answer="far " * 90))
    with pytest.raises(PromptError, match="larger chunks"):
        renderer.stream(said._replace(question="far " * 96))
    with pytest.raises(PromptError, match="lower --answer-tokens"):
        Renderer(evaluation_kit.clerk_model(), answer=95).stream(said)


@pytest.mark.parametrize(
    "text",
    ["\U0001f600" * 900, "今天天气很好我们去公园散步" * 200, "https://a.b/" * 300, "e\u0301" * 900, "-".join(["important"] * 300), "word " * 900],
)
def test_books_of_long_words_are_read_in_whole_chunks(gated, tmp_path, text):
    """With a tokenizer of one token a byte and chunks of 64: nothing is refused, every chunk fits, and the facts are in it."""
    (tmp_path / "qa1_x_test.txt").write_bytes(b"\xef\xbb\xbf1 Mary went out.\r\n2 Is Mary?\tkitchen\t1\r\n")
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("\ufeff" + text, encoding="utf-8")
    facts, library = sources.Facts(tmp_path, "test", ()), sources.Library(tmp_path, "test")
    renderer = Renderer(gated, answer=1)
    (cell,) = sources.babilong_cells(facts, library.books(renderer.count), ["1k"], 0, renderer, renderer.count)
    for conversation in islice(cell.samples(), 2):
        stream = renderer.stream(conversation)
        assert len(stream.chunks) == len(conversation.chunks) and all(len(ids) <= 64 for ids in stream.chunks)
        assert sum("Mary went out." in turns[0].content for turns in conversation.chunks) == 1
        assert 500 < sum(renderer.count(turns[0].content) for turns in conversation.chunks) <= 700


def test_recall_tells_as_many_facts_as_a_chunk_has_room_for():
    """Chunks too small for all that was drawn get fewer facts, the asked one always; larger ones get what they always got."""
    for room in (25, 30, 40, 200):
        for conversation in islice(conversations("story", 0, "validation", 2, lambda text: len(text.split()) + 1, room), 40):
            texts = [turns[0].content for turns in conversation.chunks]
            assert all(len(text.split()) <= room for text in texts)
            who = conversation.question.removeprefix("Where is ").removesuffix("?")
            told = [s for text in texts for s in text.split(".") if s.strip().startswith(f"{who} ")]
            assert told[-1].endswith(f"the {conversation.answer}") and f"{who} " in texts[-2] and f"{who} " not in texts[-1]
