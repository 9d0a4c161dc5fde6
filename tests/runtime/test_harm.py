"""What a memory does to ordinary answers: conversations that fill it, arms that differ in nothing else, and figures that move when it is loud."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import recall_kit
import tiny_model
from safetensors.numpy import load_file, save_file

from lm2.models.errors import PromptError
from lm2.models.recall import Found, Use
from lm2.models.tasks.natural import talk
from lm2.runtime.backends.torch_backend import TorchBackend
from lm2.runtime.evaluation import harm, harm_report, natural
from lm2.runtime.evaluation.full_bank import QUESTIONS, FullBank
from lm2.runtime.evaluation.store import EvaluationError
from lm2.runtime.evaluation.streams import Stopped
from lm2.runtime.loading import load
from lm2.runtime.session.session import Session

WINDOW, CHUNK, LONGEST, LOUD = 512, 200, 6, 300.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A tiny model with chunks that hold a question and its answer, and its backbone opened without memory. Greedy answers that go on."""
    folder = tiny_model.make(tmp_path_factory.mktemp("model") / "tiny", window=WINDOW, chunk=CHUNK, ends=())
    opened = (load(folder, "torch", device="cpu", threads=1, memory=memory) for memory in (True, False))
    return tuple(replace(model, eos=frozenset()) for model in opened)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(natural, "FILLERS", 40)
    monkeypatch.setattr(natural, "FILLER_TOKENS", 3)


def examiner(pair, seed=0, check=lambda: None):
    return harm.Examiner(FullBank(pair[0], seed, None, check), pair[1], LONGEST)


def made_louder(source, folder, factor):
    """A copy of a model folder, what each memory layer adds scaled."""
    folder.mkdir()
    for file in source.iterdir():
        if file.name not in ("model.safetensors", "fingerprint.json"):
            shutil.copyfile(file, folder / file.name)
    weights = load_file(source / "model.safetensors")
    scaled = {n: w * np.float32(factor) for n, w in weights.items() if n.endswith("memory.o_proj.weight")}
    assert len(scaled) == 2
    save_file(weights | scaled, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def loud(pair, tmp_path_factory):
    """The tiny model with a memory that is heard LOUD times as loudly."""
    model = load(made_louder(pair[0].path, tmp_path_factory.mktemp("model") / "loud", LOUD), "torch", device="cpu", threads=1)
    return replace(model, eos=frozenset())


# the conversations


def test_the_memory_is_full_and_the_facts_are_out_of_sight(pair):
    bank = FullBank(pair[0], 0)
    full = bank.conversation(1)
    session = full.session
    text = bytes(min(t, 255) for t in session.at.tokens)
    assert len(full.told) == natural.FACTS and full.hidden >= 0
    assert pair[0].backend.memory(session.at.window).written >= pair[0].config.memory.slots
    assert not any(q.value.encode() in text for q in full.told)
    assert session.at.filled + 2 * (WINDOW // 8) <= WINDOW and not session.at.pending
    again = FullBank(pair[0], 0).conversation(1)
    assert again.told == full.told and again.session.at.tokens == session.at.tokens
    assert np.array_equal(pair[0].backend.to_host(again.session.memory()), pair[0].backend.to_host(session.memory()))
    assert FullBank(pair[0], 1).conversation(1).told != full.told


def test_nothing_that_is_asked_was_talked_about(pair):
    bank = FullBank(pair[0], 0)
    asked = [question for number in range(9) for question in bank.questions(number)]
    assert len(set(asked)) == len(asked) >= 200 and set(asked) == set(talk.ordinary("heldout"))
    assert not set(asked) & set(talk.ordinary("train"))
    for number in (0, 3):
        said = {m["content"] for m in bank.conversation(number).session.transcript}
        assert said and not said & set(bank.questions(number))


# what is measured


def test_a_memory_never_written_changes_nothing_and_a_loud_one_does(pair, loud):
    quiet = list(examiner(pair).rows(3))
    moved = list(examiner((loud, pair[1])).rows(3))
    for a, b in zip(quiet, moved, strict=True):
        assert a.control / a.scored < 1e-9 and b.control / b.scored < 1e-9
        assert a.never == a.backbone == b.backbone == b.never and a.scored == LONGEST
        assert b.divergence > 3 * a.divergence > 1000 * a.control
    memory, never = harm.sides(moved, 0)
    assert memory.divergence > 0.01 and memory.answer.same < 3 and never.divergence < 1e-9
    assert never.first[:2] == never.answer[:2] == (3, 3)


def test_figures_are_those_of_a_session(pair, loud):
    """By the slow way: what the session says, and the backbone's tokens fed to it one by one."""
    found = list(examiner((loud, pair[1])).rows(2))
    full = FullBank(loud, 0).conversation(0)
    for row in found:
        asked = full.session.fork()
        assert asked.say(row.question, LONGEST).strip() == row.memory
        bare = Session(pair[1], sampling=natural.GREEDY, seed=0, window=WINDOW)
        bare.at = harm.unwritten(bare.feeder, full.session.at)
        arms = []
        for session in (full.session.fork(), bare):
            first, later = session.wording.turn(row.question, True), session.wording.turn(row.question, False)
            at = session.feeder.logits(session.feeder.begin(session.at, first, later, session.head()))
            arms.append((session.feeder, at))
        (feeder, at), (alone, alone_at) = arms
        total = 0.0
        for _ in range(row.scored):
            total += harm.divergence(alone_at.logits[None], at.logits[None])[0]
            token = int(alone_at.logits.argmax())
            at, alone_at = feeder.flush(at._replace(pending=(token,))), alone.flush(alone_at._replace(pending=(token,)))
        assert row.divergence == pytest.approx(total, rel=1e-3)


def test_the_end_of_an_answer_is_a_choice(pair):
    """With every token an end the answers are empty, and one choice is scored."""
    ends = frozenset(range(pair[0].config.vocab_size))
    (row,) = examiner(tuple(replace(model, eos=ends) for model in pair)).rows(1)
    assert row.scored == 1 and row.backbone == row.memory == row.never == ""


def test_a_run_goes_on_where_it_stopped(pair):
    whole = list(examiner(pair).rows(QUESTIONS + 2))
    assert [row.number for row in whole] == list(range(QUESTIONS + 2)) and [row.talk for row in whole[-3:]] == [0, 1, 1]
    assert list(examiner(pair).rows(QUESTIONS + 2, QUESTIONS - 1)) == whole[QUESTIONS - 1 :]
    assert next(examiner(pair, seed=1).rows(1)).question != whole[0].question
    calls = []

    def stop():
        calls.append(1)
        if len(calls) > 60:
            raise Stopped

    with pytest.raises(Stopped):
        list(examiner(pair, check=stop).rows(2))


def test_what_cannot_be_measured_is_refused(pair, models):
    with pytest.raises(EvaluationError, match="has no memory"):
        FullBank(pair[1], 0)
    with pytest.raises(EvaluationError, match="needs a memory of cell gated"):
        FullBank(models["released-causal"], 0)
    with pytest.raises(EvaluationError, match="is not tiny without its memory"):
        harm.Examiner(FullBank(pair[0], 0), pair[0], 3)
    with pytest.raises(EvaluationError, match="--samples 206: there are 205"):
        examiner(pair).rows(206)
    with pytest.raises(PromptError, match="--window 8 must be from 16"):
        FullBank(pair[0], 0, 8)


# figures by hand


def test_divergence_by_hand():
    p, q = np.log(np.array([[0.5, 0.25, 0.25]])), np.log(np.array([[0.25, 0.5, 0.25]]))
    assert harm.divergence(p + 7, q - 3)[0] == pytest.approx(0.25 * np.log(2))
    assert harm.divergence(p.astype(np.float32) + 9, p.astype(np.float32))[0] == pytest.approx(0, abs=1e-7)
    barred = np.concatenate([q, np.full((len(q), 1), -np.inf)], axis=-1)
    wide = np.concatenate([p, np.full((len(p), 1), 5.0)], axis=-1)
    assert harm.divergence(wide, barred)[0] == pytest.approx(harm.divergence(p, q)[0]), "what may not be chosen is left out of both"


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Paris. It is large.", "Paris."), (" Is it 3.5? Yes", "Is it 3.5?"), ("1. Boil it. 2. Eat it.", "1. Boil it."), ("Here is a list:\n* a", "Here is a list:"),
        ("no stop at all", "no stop at all"), ("42", "42"), ("", ""), ("Wow!\n", "Wow!"), ("\n\nYes.", "Yes."),
    ],
)  # fmt: skip
def test_first_sentences(text, first):
    assert harm.first_sentence(text) == first


def rows_by_hand():
    base = harm.Row(0, 0, 600, 40, "q", 10, 0.1, 0.0, "One. Two.", "One. Three.", "One. Two.")
    return [base, base._replace(number=1, scored=30, divergence=0.5, memory="Other. Two.")]


def test_figures_and_report_by_hand(pair):
    memory, never = harm.sides(rows_by_hand(), 0)
    assert memory.divergence == pytest.approx(0.6 / 40) and memory.low <= memory.divergence <= memory.high
    assert memory.first[:2] == (1, 2) and memory.answer[:2] == (0, 2) and never.first[:2] == never.answer[:2] == (2, 2)
    assert harm.sides(rows_by_hand()[:1], 0)[0].low is None
    document = harm_report.document(pair[0], rows_by_hand(), {"seed": 0}, True)
    (cell,) = json.loads(json.dumps(document, allow_nan=False))["cells"]
    assert cell["tokens_scored"] == 40 and cell["first_sentence"]["share"] == 0.5 and cell["control"]["answer"]["share"] == 1.0
    assert "never written" in document["control"]


@pytest.mark.parametrize("kind", ["mlx", "static"])
def test_other_backends_find_the_same(pair, kind):
    """MLX, and torch in static buffers as on CUDA: the same answers, divergences by rounding."""
    want = list(examiner(pair).rows(3))
    if kind == "mlx":
        pytest.importorskip("mlx.core")
        others = [load(pair[0].path, "mlx", device="cpu", memory=memory) for memory in (True, False)]
    else:
        others = [replace(model, backend=TorchBackend(model.backend.model, static=True)) for model in pair]
    found = list(examiner(tuple(replace(model, eos=frozenset()) for model in others)).rows(3))
    for a, b in zip(want, found, strict=True):
        assert (a.question, a.backbone, a.memory, a.never, a.written) == (b.question, b.backbone, b.memory, b.never, b.written)
        assert b.divergence == pytest.approx(a.divergence, rel=1e-2) and b.control / b.scored < 1e-9


# with a recall


def test_a_question_that_is_answered_beside_is_read_there(pair):
    """A finder that always finds: the memory's figures are those of the window beside; one that never does changes nothing."""
    usual = list(examiner(pair).rows(2))
    config = pair[0].config

    def rows(nothing):
        finds = recall_kit.letters(config.vocab_size, nothing)
        model = replace(pair[0], recall=recall_kit.recall(config, finds, opening=recall_kit.opening(config, 5), most=1, tokens=200))
        return list(examiner((model, pair[1])).rows(2)), model

    assert rows(2.0)[0] == usual
    found, model = rows(-1.0)
    session = FullBank(model, 0).conversation(0).session
    for row, plain in zip(found, usual, strict=True):
        assert row[:6] == plain[:6] and (row.control, row.backbone, row.never) == (plain.control, plain.backbone, plain.never)
        assert row.divergence > 1000 * row.control and abs(row.divergence - plain.divergence) > 0.01
        asked = session.fork()
        assert asked.say(row.question, LONGEST).strip() == row.memory and len(asked.recalled) == 1
        side = session.beside(row.question)
        bare = Session(pair[1], sampling=natural.GREEDY, seed=0, window=WINDOW)
        bare.at = harm.unwritten(bare.feeder, session.at)
        first, later = bare.wording.turn(row.question, True), bare.wording.turn(row.question, False)
        alone, at, total = bare.feeder.logits(bare.feeder.begin(bare.at, first, later, bare.head())), side.feeder.logits(side.at), 0.0
        for _ in range(row.scored):
            total += harm.divergence(alone.logits[None], at.logits[None])[0]
            token = int(alone.logits.argmax())
            at, alone = side.feeder.flush(at._replace(pending=(token,))), bare.feeder.flush(alone._replace(pending=(token,)))
        assert row.divergence == pytest.approx(total, rel=1e-3)


class Plums:
    """A reader for which the last word of a message answers everything."""

    use = Use(4, 0.0, -1e3, 1e3)

    def read(self, question, messages, before=()):
        return [Found(m.split()[-1], 1.0) for m in messages]


def test_an_answer_that_says_what_a_reader_found_is_the_sessions(pair):
    """Word for word what the session says; what the model would choose is measured as without a reader."""
    config = pair[0].config
    made = recall_kit.recall(config, recall_kit.letters(config.vocab_size, -1.0), opening=recall_kit.opening(config, 5), most=1, tokens=200)
    plain, read = (replace(pair[0], recall=made._replace(reader=reader)) for reader in (None, Plums()))
    session = FullBank(read, 0).conversation(0).session
    for row, other in zip(examiner((read, pair[1])).rows(2), examiner((plain, pair[1])).rows(2), strict=True):
        assert session.fork().say(row.question, LONGEST).strip() == row.memory != other.memory
        assert (row.divergence, row.backbone, row.never) == (other.divergence, other.backbone, other.never)
