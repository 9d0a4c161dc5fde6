"""Perplexity and MMLU: figures against plain ones computed here, the control, files that are wrong."""

import csv
import math
from itertools import islice

import numpy as np
import pytest
from compare import assert_close
from evaluation_kit import whole_windows

from lm2.models.tasks.babilong import parse_length
from lm2.runtime.backend import MemoryState
from lm2.runtime.evaluation import mmlu
from lm2.runtime.evaluation.cells import Cell
from lm2.runtime.evaluation.mmlu import LetterExaminer, mmlu_cells
from lm2.runtime.evaluation.mmlu_files import read_choices, subjects
from lm2.runtime.evaluation.perplexity import Losses, Scorer, figures, measure, perplexity_cells
from lm2.runtime.evaluation.report import perplexity_cell, perplexity_table
from lm2.runtime.evaluation.store import EvaluationError, Store
from lm2.runtime.evaluation.streams import Reader, Stopped, surprise


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return whole_windows(tmp_path_factory)


@pytest.fixture
def library(tmp_path):
    """Two books of some 4,000 bytes each."""
    files = []
    for name in ("a", "b"):
        files.append(tmp_path / f"{name}.txt")
        files[-1].write_text("\n".join(f"Paragraph {i} of book {name} is about the number {i * i}." for i in range(90)))
    return files


def counted_whole(state):
    """As a stream counts: a chunk that was not filled takes up the rows of a whole one."""
    return state._replace(written=-(-state.written // 64) * 64)


def likelihoods(backend, chunks, remember):
    """Nats of each chunk's tokens but the first, in float64, one chunk after the other."""
    out = []
    never = MemoryState(backend.commit(backend.start(1)).bank, 0)
    state = never
    for ids in chunks:
        logits, chunk = backend.extend(np.array(ids), backend.start(1, state if remember else never), all_logits=True)
        z = logits[0, :-1].astype(np.float64)
        log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
        out.append(-sum(log_p[i, token] for i, token in enumerate(ids[1:])))
        state = backend.commit(chunk)
    return out


def test_losses_equal_the_plain_way(model, library):
    """Every cell: with the memory carried, and reset at each chunk; batches of several texts."""
    backend = model.backend.real
    cells = perplexity_cells(library, [(256, "256")], 0, model)
    (rows,) = list(Scorer(Reader(backend, (), 1), 8).losses(cells[0], 3))
    samples = cells[0].samples()
    for row in rows:
        chunks = next(samples)
        assert [len(c) for c in chunks] == [64] * 4 and row.tokens == 63
        assert_close("memory", row.memory, likelihoods(backend, chunks, True), 1e-3)
        assert_close("reset", row.reset, likelihoods(backend, chunks, False), 1e-3)
        assert abs(row.memory[0] - row.reset[0]) < 1e-9 and abs(row.memory[3] - row.reset[3]) > 1e-3


def test_surprise_of_large_logits():
    assert_close("surprise", surprise(np.array([[1000.0, 0.0], [0.0, 0.0]], np.float32), np.array([1, 0])), [1000, math.log(2)], 1e-4)


def test_figures():
    """Ratio over all chunks but the first, interval around it, none for one text."""
    cell = Cell("text", 4000, "4k", None, lambda: ())
    rows = [Losses(i, 10, [50.0, 20.0, 20.0 + i], [50.0, 21.0, 22.0]) for i in range(4)]
    f = figures(cell, rows, True, 0)
    assert f.ratio == pytest.approx(math.exp((-1 - 2 + 1.5) / 20)) and f.low < f.ratio < f.high
    assert f.memory == pytest.approx(math.exp((20 + 21.5) / 20)) and f.reset == pytest.approx(math.exp(43 / 20))
    assert f.ratio == pytest.approx(f.memory / f.reset) and f.by_chunk[0] == 1.0
    assert figures(cell, rows, True, 0) == f and figures(cell, rows[:1], True, 0).low is None
    assert perplexity_cell(f)["tokens_scored"] == 80
    assert perplexity_table([f, figures(cell, rows[:1], False, 0)]).row_count == 2


def test_an_interval_holds_its_estimate():
    """Also where all texts gain the same and the resamples' means, added up in another order, are a rounding away."""
    cell = Cell("text", 4000, "4k", None, lambda: ())
    rng = np.random.default_rng(3)
    for count in range(2, 30):
        same = [Losses(i, 63, [1.0, *rng.random(3)], [1.0, *rng.random(3)]) for i in range(1)] * count
        near = [Losses(i, 63, [1.0, 20.0 + 1e-13 * x], [1.0, 20.7]) for i, x in enumerate(rng.random(count))]
        for rows in (same, near):
            f = figures(cell, rows, True, 0)
            assert f.low <= f.ratio <= f.high and f.high - f.low < 1e-9


def test_a_stopped_measurement_goes_on(model, library, tmp_path):
    backend, left = model.backend.real, [9]

    def check():
        left[0] -= 1
        if left[0] < 0:
            raise Stopped

    cells = perplexity_cells(library, [(parse_length("128"), "128"), (192, "192")], 0, model)
    whole = measure(Scorer(Reader(backend, (), 1), 2), cells, 4, 0, None, lambda cell, done: None)
    assert [len(f.texts) for f in whole] == [4, 4]
    part = measure(Scorer(Reader(backend, (), 1, check), 2), cells, 4, 0, Store(tmp_path / "o", {}), lambda cell, done: None)
    assert not part[-1].whole and len(part[-1].texts) == 2
    again = measure(Scorer(Reader(backend, (), 1), 2), cells, 4, 0, Store(tmp_path / "o", {}), lambda cell, done: None)
    assert [f.ratio for f in again] == pytest.approx([f.ratio for f in whole], rel=1e-12)


def test_texts_that_cannot_be(model, library):
    with pytest.raises(EvaluationError, match="two chunks of 64"):
        perplexity_cells(library, [(127, "127")], 0, model)
    (cell,) = perplexity_cells(library, [(64000, "64k")], 0, model)
    with pytest.raises(EvaluationError, match="longer ones"):
        next(cell.samples())


def test_a_book_of_one_line_has_many_beginnings(model, tmp_path):
    """And lines end at line ends: U+2028 is a character of the text, the byte order mark is none."""
    file = tmp_path / "one.txt"
    file.write_text("\ufeff" + " ".join(f"word{i}" for i in range(6000)) + "\u2028end", encoding="utf-8")
    (cell,) = perplexity_cells([file], [(128, "128")], 0, model)
    drawn = list(islice(cell.samples(), 12))
    assert len(set(drawn)) > 6
    text = file.read_text(encoding="utf-8-sig")
    assert all(model.text.decode([i for chunk in chunks for i in chunk]) in text for chunks in drawn)
    file.write_text("a\u2028b\u2029c\x0cd\r\n" * 400, encoding="utf-8", newline="")
    lines = set(model.text.decode([i for chunk in next(perplexity_cells([file], [(128, "128")], 0, model)[0].samples()) for i in chunk]).split("\n"))
    assert "a\u2028b\u2029c\x0cd" in lines


@pytest.fixture
def questions(tmp_path):
    """Two subjects; the question of one is longer than a chunk."""
    for part, count in (("dev", 6), ("test", 5)):
        (tmp_path / part).mkdir()
        for subject in ("logic", "old_maps"):
            with open(tmp_path / part / f"{subject}_{part}.csv", "w", newline="") as f:
                for i in range(count):
                    long = " and more" * 12 if i == 2 else ""
                    csv.writer(f).writerow([f"Which, {i}?{long}", "one", "two, or", "three", "four", "ABCD"[i % 4]])
    return tmp_path


def test_letters_equal_the_plain_way(gated, questions):
    """The likeliest letter by plain likelihoods of ` A` .. ` D`, examples in chunks before; without them for the control."""
    backend = gated.backend.real
    cells, files = mmlu_cells(questions, ())
    assert [c.name for c in cells] == ["logic", "old_maps"] and len(files) == 4 and cells[0].floor.share == 0.4
    examiner = LetterExaminer(gated, Reader(backend, (), 1), 2)
    outcomes = [o for batch in examiner.outcomes(cells[1], 10) for o in batch]
    assert [o.number for o in outcomes] == [0, 1, 2, 3, 4] and outcomes[0].chunks > 1
    read = read_choices(questions / "dev" / "old_maps_dev.csv")[:5]
    head = "The following are multiple choice questions (with answers) about old maps.\n\n"
    examples = [(head if i == 0 else "") + c.text(True) for i, c in enumerate(read)]
    for o, choice in zip(outcomes, read_choices(questions / "test" / "old_maps_test.csv"), strict=True):
        for reply, parts in ((o.reply, examples), (o.control, [])):
            state = MemoryState(backend.commit(backend.start(1)).bank, 0)
            for ids in examiner._chunks(parts):
                state = counted_whole(backend.commit(backend.extend(np.array(ids), backend.start(1, state))[1]))
            scores = []
            for letter in mmlu.LETTERS:
                whole = gated.encode(choice.text(False))
                begin = (len(whole) - 1) // 62 * 62
                ids = [*whole[begin:], *gated.encode(f" {letter}")]
                s = state
                if parts:
                    for i in range(0, begin, 62):
                        s = counted_whole(backend.commit(backend.extend(np.array(whole[i : i + 62]), backend.start(1, s))[1]))
                logits = backend.extend(np.array(ids), backend.start(1, s), all_logits=True)[0][0].astype(np.float64)
                log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
                scores.append(sum(log_p[len(ids) - 3 + i, ids[len(ids) - 2 + i]] for i in range(2)))
            assert reply == mmlu.LETTERS[int(np.argmax(scores))]


def test_a_stopped_subject_goes_on(gated, questions):
    cells, _ = mmlu_cells(questions, ("logic",))
    examiner = LetterExaminer(gated, Reader(gated.backend.real, (), 1), 2)
    whole = [o for batch in examiner.outcomes(cells[0], 5) for o in batch]
    assert [o for batch in examiner.outcomes(cells[0], 5, 3) for o in batch] == whole[3:]


def test_marks_and_line_ends_are_no_part_of_a_question(questions):
    path = questions / "dev" / "logic_dev.csv"
    path.write_bytes("\ufeffWhich\u2028one?,1,2,3,4,A\r\nAnd?,1,2,3,4,B\r\n".encode())
    assert [c.question for c in read_choices(path)] == ["Which\u2028one?", "And?"]
    for data, said in ((b"q\0,1,2,3,4,A\n", "NUL byte"), (b"\xff,1,2,3,4,A\n", r"not UTF-8 \(byte 0\)"), ("q,1,2,3,4,A".encode("utf-16"), "is UTF-16")):
        path.write_bytes(data)
        with pytest.raises(EvaluationError, match=f"logic_dev.csv.*{said}"):
            read_choices(path)


@pytest.mark.parametrize("row", ["only,five,fields,are,here", "q,a,b,c,d,E", ""])
def test_files_that_are_wrong(questions, row):
    path = questions / "dev" / "logic_dev.csv"
    path.write_text(row)
    with pytest.raises(EvaluationError, match="logic_dev.csv"):
        mmlu_cells(questions, ("logic",))
    path.unlink()
    with pytest.raises(EvaluationError, match="logic_dev.csv"):
        mmlu_cells(questions, ("logic",))
    with pytest.raises(EvaluationError, match="2 subjects, such as logic"):
        mmlu_cells(questions, ("cooking",))
    with pytest.raises(EvaluationError, match="MMLU's data"):
        mmlu_cells(questions / "dev", ())


FORMS = {
    "json": ('["1", "a, b", "it\'s", "4"]', ("1", "a, b", "it's", "4")),
    "python": ("['1', 'a, b', \"it's\", '4']", ("1", "a, b", "it's", "4")),
    "numpy": ("['1' 'a, b'\n \"it's\" '4']", ("1", "a, b", "it's", "4")),
}


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("together", [False, True])
def test_hugging_faces_form_is_the_authors(tmp_path, form, together):
    """A header line, choices as a list, answers as numbers: for each subject or one file for all; the same questions as the authors' lines."""
    written, answers = FORMS[form]
    for part, count in (("dev", 5), ("test", 3)):
        place = tmp_path / f"{part}.csv" if together else tmp_path / part / f"logic_{part}.csv"
        place.parent.mkdir(exist_ok=True)
        with open(place, "w", newline="") as f:
            out = csv.writer(f)
            out.writerow(["question", "subject", "choices", "answer"])
            for i in range(count):
                out.writerow([f"Which, {i}?", "logic", written, i % 4])
    found = subjects(tmp_path, ("logic",))["logic"]
    assert [c.right for c in found.asked] == ["A", "B", "C"] and len(found.examples) == 5 and len(found.files) == 2
    assert all(c.answers == answers and c.question == f"Which, {i}?" for i, c in enumerate(found.asked))
    plain = tmp_path / "plain.csv"
    with open(plain, "w", newline="") as f:
        csv.writer(f).writerows([f"Which, {i}?", *answers, "ABC"[i]] for i in range(3))
    assert [c.text(True) for c in read_choices(plain)] == [c.text(True) for c in found.asked]
    cells, files = mmlu_cells(tmp_path, ())
    assert [c.name for c in cells] == ["logic"] and len(files) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("question,choices,answer\nq,\"['a','b','c']\",0\n", "line 2 must be a question, a list of four choices"),
        ("question,choices,answer\nq,\"['a','b','c','d']\",4\n", "line 2 must be"),
        ("question,choices,answer\nq,[[,0\n", "line 2 must be"),
        ("question,answer\nq,0\n", "line 1 names question and answer"),
        ("question,A,B,C,D,answer\n", "is empty"),
    ],
)
def test_wrong_lines_of_hugging_faces_form(tmp_path, text, words):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(EvaluationError, match=words):
        read_choices(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("question,A,B,C,D,answer\nq,1,2,3,4,2\n")
    assert read_choices(tmp_path / "x.csv")[0].right == "C"


def test_files_of_all_subjects_that_do_not_belong_together(tmp_path):
    for part, subject in (("dev", "logic"), ("validation", "maps")):
        (tmp_path / f"{part}.csv").write_text(f"question,subject,A,B,C,D,answer\nq,{subject},1,2,3,4,2\n")
    with pytest.raises(EvaluationError, match="has no examples of maps"):
        subjects(tmp_path, ())
    (tmp_path / "validation.csv").write_text("q,1,2,3,4,C\n")
    with pytest.raises(EvaluationError, match="no column subject"):
        subjects(tmp_path, ())
