"""Training a recall, at toy size: seek and retell from the command line, going on, and what is read in training against what a session reads."""

import json
import random
from dataclasses import replace
from functools import partial

import command_line
import encoder_kit
import numpy as np
import pytest
import recall_kit
import tiny
import tiny_model
import tiny_tokenizer
import torch

from lm2 import Sampling, Session
from lm2.models.checkpoints.adapter import folder_key
from lm2.models.layout import open_folder
from lm2.models.opening import Opening
from lm2.models.recall import from_bert, open_recall, save_recall
from lm2.models.tasks.natural import talk
from lm2.models.tasks.natural.answers import mentions
from lm2.models.tasks.varied import Varied
from lm2.models.text.tokenizer import Tokenizer
from lm2.models.training import brought, frozen, read_task, recall_jobs, retell_task, seek_task
from lm2.models.training import run as loop
from lm2.models.training.plan import Stage
from lm2.models.training.retell_task import RetellTask, Sample
from lm2.models.training.seek_task import SeekTask
from lm2.models.training.tellings import Asked, Said, Telling, Tellings
from lm2.models.weights import load_model, random_model, save_folder
from lm2.runtime.loading import load
from lm2.runtime.session.recalling import Recalling

ONE = ("--threads", "1")
SHOWN = ((("I keep two cats.",), "What do I keep?", "Two cats."),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A chat model whose memory folds after 24 tokens: in training nothing is ever folded."""
    return tiny_model.make(tmp_path_factory.mktemp("chat") / "model", ends=(tiny_tokenizer.IM_END,))


@pytest.fixture
def lm2(monkeypatch):
    return lambda *args: command_line.call(monkeypatch, args)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few texts, so that a step takes no time."""
    from lm2.models.training import people

    for module, fields in (
        (seek_task, dict(MESSAGES=6, OTHERS=4, ORDINARY=2, IDLE=3, WIDTH=16)),
        (recall_jobs, dict(DRAWN=20, AMONG=6)),
        (brought, dict(POOL=12, AMONG=(4, 6))),
        (retell_task, dict(SHOWN=SHOWN)),
        (loop, dict(EVERY=1, SAVE_EVERY=2)),
    ):
        for name, value in fields.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(seek_task.FinderMaps.__init__, "__defaults__", (16,))
    monkeypatch.setattr(people, "ANSWER_TOKENS", 4)
    monkeypatch.setattr(people.answers, "questions", lambda seed: ["What is seven plus five?"])
    monkeypatch.setattr(people.answers, "tellings", lambda seed: ["I own a boat."])
    monkeypatch.setattr(people.talk, "ordinary", lambda split: ("Why is the sky blue?", "What is a prime number?"))
    monkeypatch.setattr(people.talk, "unknown", lambda: ("Where are my keys?",))


def arrays(recall):
    return {**recall.finder._asdict(), **recall.opening._asdict()}


def same(a, b, names=None):
    x, y = arrays(a), arrays(b)
    return all(np.array_equal(x[n], y[n]) for n in names or x)


FINDER = ("asking", "telling", "asking_step", "telling_step", "prior", "nothing", "mix", "sharpness")


def test_seek_then_retell(lm2, folder, tmp_path):
    """Stopped and gone on with, a run ends in the bits of one that was not; the model with the result answers from what it was told."""
    runs = {}
    for name, until in (("whole", ()), ("parted", ("--until", "2"))):
        args = ("train", folder, "--task", "seek", "--steps", "4", "--out", tmp_path / name, *ONE)
        first = lm2(*args, *until)
        assert first.code == 0, first
        if until:
            assert "stopped at step 2 of 4" in first.out and not (tmp_path / name / "recall").exists()
            assert lm2(*args).code == 0
        runs[name] = open_recall(tmp_path / name / "recall", open_folder(folder).config)
    sought = runs["whole"]
    assert same(sought, runs["parted"]) and sought.backbone == runs["parted"].backbone
    assert set(sought.training) == {"seek"}
    again = lm2("train", folder, "--task", "seek", "--steps", "4", "--out", tmp_path / "whole", *ONE)
    assert again.code == 0 and "is there already, and is left as it is" in again.out
    for name, until in (("whole", ()), ("parted", ("--until", "2"))):
        args = ("train", folder, "--task", "retell", "--steps", "4", "--stages", "1:1x2", "--rate", "0.05")
        args = (*args, "--recall", tmp_path / "whole" / "recall", "--out", tmp_path / f"retell {name}", *ONE)
        first = lm2(*args, *until)
        assert first.code == 0, first
        assert not until or lm2(*args).code == 0
        runs[name] = open_recall(tmp_path / f"retell {name}" / "recall", open_folder(folder).config)
    told = runs["whole"]
    assert same(told, runs["parted"])
    assert same(told, sought, FINDER) and not same(told, sought, ("keys",)) and not same(told, sought, ("values",))
    assert set(told.training) == {"seek", "retell"} and "--recall FIRST" in json.dumps(told.training["retell"])
    for file in (tmp_path / "retell whole" / "recall").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    try:
        session = Session(load(folder, "torch", device="cpu", threads=1), sampling=Sampling(temperature=0.0))
        assert session.recalling is not None
        assert same(session.recalling.recall, told)
    finally:
        for name in ("recall.json", "recall.safetensors"):
            (folder / name).unlink()


@pytest.fixture(scope="module")
def encoded(folder, tmp_path_factory):
    """A recall with an encoder, for `folder`."""
    place = tmp_path_factory.mktemp("encoded")
    (place / "bert").mkdir()
    encoder_kit.bert(place / "bert")
    config = open_folder(folder).config
    made = recall_kit.recall(config, encoder=from_bert(place / "bert", {}), backbone=("tiny", folder_key(open_folder(folder))))
    save_recall(place / "recall", config, made)
    return place / "recall"


def test_read_makes_a_reader(lm2, folder, encoded, tmp_path):
    """Stopped and gone on with, a run ends in the bits of one that was not; it writes the recall that it was given, and a reader, which sessions use."""
    runs = {}
    for name, until in (("whole", ()), ("parted", ("--until", "2"))):
        args = ("train", folder, "--task", "read", "--steps", "4", "--stages", "1:1x6", "--recall", encoded, "--out", tmp_path / name, *ONE)
        first = lm2(*args, *until)
        assert first.code == 0, first
        assert not until or lm2(*args).code == 0
        runs[name] = open_recall(tmp_path / name / "recall", open_folder(folder).config)
    made, other = runs["whole"].reader, runs["parted"].reader
    assert all(np.array_equal(made.own[n], other.own[n]) for n in made.own)
    assert same(runs["whole"], open_recall(encoded, open_folder(folder).config))
    assert runs["whole"].margin == runs["parted"].margin != open_recall(encoded, open_folder(folder).config).margin
    assert "--task read" in made.training["command"] and made.use == recall_jobs.USE
    begun = runs["whole"].encoder
    assert any(not np.array_equal(made.own[n], begun.arrays[n]) for n in begun.arrays if n in made.own), "something was learned"
    model = load(folder, "torch", device="cpu", threads=1)
    session = Session(replace(model, recall=runs["whole"]), sampling=Sampling(temperature=0.0))
    assert session.recalling.recall.reader is made


def test_what_is_read_is_what_answers(folder, encoded):
    """The words between first and last piece are the value, where there is one; else both are the text's first piece."""
    config = open_folder(folder).config
    encoder = open_recall(encoded, config).encoder
    model = load_model(open_folder(folder), "cpu")
    told = (("my brother is a baker", "", "a baker"), ("The zebra", "", "zebra"), ("the horse", "", ""), ("a zebra", "is a horse a zebra?", "zebra"))
    for message, before, value in told:
        sample = read_task.ReadTask(model, encoder, lambda rng, m=message, b=before, v=value: ("is a?", m, b, v), 0).sample(random.Random(0))
        whole = f"{before} {message}" if before else message
        words = whole[sample.text.offsets[sample.first][0] : sample.text.offsets[sample.last][1]]
        assert (words, sample.first > 0) == (value, bool(value))
        assert not before or sample.text.offsets[sample.first][0] > len(before), "words of what was asked answer nothing"


def test_read_learns(folder, encoded):
    encoder = open_recall(encoded, open_folder(folder).config).encoder
    told = [("is a b?", "my brother is a baker", "", "baker"), ("the eats?", "the zebra eats plums", "", "plums"), ("is a c?", "striped animal", "", "")]
    task = read_task.ReadTask(load_model(open_folder(folder), "cpu"), encoder, lambda rng: rng.choice(told), 0)
    optimizer, rng = torch.optim.AdamW(task.maps.parameters(), 3e-3), random.Random(1)
    stage = Stage(1.0, 1, 1, 12)
    losses = []
    for _ in range(30):
        terms = task.step(stage, rng)
        optimizer.zero_grad()
        terms.loss.backward()
        optimizer.step()
        losses.append(float(terms.loss.detach()))
    assert losses[-1] < 0.5 * losses[0], losses
    read = task.reader(recall_jobs.USE, {})
    for question, message, _, value in told:
        found = read.read(question, [message])[0]
        assert (found.odds > 0) == bool(value) and (not value or found.words == value), (question, found)


def test_read_goes_on_with_a_reader(lm2, folder, encoded, tmp_path):
    """A reader that is there is what a run begins with: without a step it is written as it was, to the last bit; with steps it moves."""
    config = open_folder(folder).config
    begun, model = open_recall(encoded, config), load_model(open_folder(folder), "cpu")
    fresh, other = (read_task.ReadTask(model, begun.encoder, lambda rng: ("", "", "", ""), seed).reader(recall_jobs.USE, {}) for seed in (0, 1))
    again = read_task.ReadTask(model, begun.encoder, lambda rng: ("", "", "", ""), 1, fresh).reader(recall_jobs.USE, {})
    assert all(np.array_equal(again.own[n], fresh.own[n]) for n in fresh.own)
    assert not np.array_equal(other.own["ends"], fresh.own["ends"]), "a control: another seed begins elsewhere"
    save_recall(tmp_path / "had", config, begun._replace(reader=fresh))
    args = ("train", folder, "--task", "read", "--steps", "2", "--stages", "1:1x6", "--rate", "1e-5", "--recall", tmp_path / "had", "--out", tmp_path / "out", *ONE)
    assert (said := lm2(*args)).code == 0, said
    made = open_recall(tmp_path / "out" / "recall", config).reader
    moved = {n: np.abs(made.own[n].astype(np.float64) - fresh.own[n].astype(np.float64)).max() for n in ("ends", "segment.message")}
    assert all(0 < by < 1e-3 for by in moved.values()), moved


def test_wrong_messages_are_those_that_a_session_would_read(folder, encoded):
    """With an encoder, what stands in an answer's place is chosen in the order in which a session looks at passages."""
    config, plain = open_folder(folder).config, partial(Tokenizer.load(folder).encode, plain=True)
    recall = open_recall(encoded, config)
    session = Recalling(recall, plain)
    made = brought.Brought(Tellings(Varied(("Ann", "Bob"), ("one", "two"))), session.ids, recall, 0)
    texts = ["my brother is a baker", "the zebra eats plums", "a striped animal", "the horse"]
    made.pool, question = [Telling((text,)) for text in texts], "is a baker?"
    scores, _ = recall.finder.scores(session.ids(question), [session.ids(text) for text in texts])
    best = [int(i) for i in np.argsort(-scores, kind="stable")]
    told = session._again(recall.encoder, question, texts, scores)
    assert made._again(recall.encoder, question, best, np.sort(-scores)) == [int(i) for i in np.argsort(-told, kind="stable")]
    assert [int(i) for i in np.argsort(-told, kind="stable")] != best, "a control: the encoder's order is not the finder's"


# refusals


def test_read_needs_an_encoder(lm2, folder, encoded, tmp_path):
    config = open_folder(folder).config
    save_recall(tmp_path / "bare", config, open_recall(encoded, config)._replace(encoder=None))
    said = lm2("train", folder, "--task", "read", "--recall", tmp_path / "bare", "--out", tmp_path / "out", *ONE)
    assert said.code == 1 and "has no encoder, whose words --task read reads" in said.err, said
    said = lm2("train", folder, "--task", "read", "--out", tmp_path / "out", *ONE)
    assert said.code == 1 and "--task read needs --recall" in said.err, said


def test_retell_needs_a_recall(lm2, folder, tmp_path):
    said = lm2("train", folder, "--task", "retell", "--out", tmp_path / "out", *ONE)
    assert said.code == 1 and "--task retell needs --recall: the folder that --task seek wrote" in said.err, said
    (tmp_path / "empty").mkdir()
    said = lm2("train", folder, "--task", "retell", "--recall", tmp_path / "empty", "--out", tmp_path / "out", *ONE)
    said.fails("recall.json does not exist: give a recall's folder")


def test_a_recall_of_another_backbone(lm2, folder, tmp_path):
    other = tiny_model.make(tmp_path / "other", seed=2)
    from safetensors.numpy import load_file, save_file

    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    save_file(weights, other / "model.safetensors")
    (other / "fingerprint.json").unlink(missing_ok=True)
    made = lm2("train", other, "--task", "seek", "--steps", "1", "--out", tmp_path / "seek", *ONE)
    assert made.code == 0, made
    said = lm2("train", folder, "--task", "retell", "--recall", tmp_path / "seek" / "recall", "--out", tmp_path / "out", *ONE)
    assert said.code == 1 and "is a recall of tiny (backbone " in said.err and "train one with --task seek" in said.err, said


def test_a_model_without_a_template(lm2, tmp_path):
    bare = tiny_model.make(tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    said = lm2("train", bare, "--task", "seek", "--steps", "1", "--out", tmp_path / "out", *ONE)
    assert said.code == 1 and "has no chat_template.jinja: a recall needs a chat model" in said.err, said


def test_a_model_of_too_few_positions(lm2, tmp_path, monkeypatch):
    """The examples that an opening begins as do not fit: said, not a shape that does not match."""
    few = tiny_model.make(tmp_path / "few")
    config = json.loads((few / "config.json").read_text())
    config["max_position_embeddings"] = 96
    (few / "config.json").write_text(json.dumps(config))
    (few / "fingerprint.json").unlink(missing_ok=True)
    monkeypatch.setattr(retell_task, "SHOWN", ((("x" * 90,), "What?", "That."),))
    said = lm2("train", few, "--task", "seek", "--steps", "1", "--out", tmp_path / "out", *ONE)
    said.fails("a question with its passages takes 144 positions", "the model has 96: take another")
    assert "step 1" not in said.out, "said at once, not after the training"


# what a step does


def tasks(folder, split="train"):
    tokenizer = tiny_tokenizer.library()
    model = load_model(open_folder(folder).without_memory(), torch.device("cpu")).requires_grad_(False)
    tellings = Tellings(Varied(), (), split)
    return model, tellings, lambda text: tokenizer.encode(text).ids


def test_seek_learns(folder):
    model, tellings, encode = tasks(folder)
    task = SeekTask(model, tellings, encode, 1, 0)
    assert all(not p.requires_grad for p in model.parameters()) and all(p.requires_grad for p in task.maps.parameters())

    def loss(seed):
        return task.step(Stage(1, 1, 1, 1), random.Random(seed)).loss

    with torch.no_grad():
        before = sum(float(loss(100 + i)) for i in range(4))
    optimizer = torch.optim.AdamW(task.maps.parameters(), lr=0.03)
    for step in range(40):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
    with torch.no_grad():
        after = sum(float(loss(100 + i)) for i in range(4))
    print(f"loss of 4 other steps: {before:.3f}, after 40 steps {after:.3f}")
    assert after < 0.9 * before
    terms = task.step(Stage(1, 1, 1, 1), random.Random(3))
    assert len(terms.hits["found"]) + 0 <= 6 and len(terms.hits["idle"]) == 3 and terms.tokens > 100


def test_few_features_make_a_narrow_finder():
    maps = seek_task.FinderMaps(torch.randn(50, 12, generator=torch.Generator().manual_seed(1)), 0, 96)
    finder = maps.finder()
    assert finder.asking.shape == (50, 12) and finder.mix.shape == (3, 12)
    want = maps.scores([(1, 2, 3)], [(4, 5), (6, 7, 8)]).detach().numpy()[0]
    scores, nothing = finder.scores((1, 2, 3), [(4, 5), (6, 7, 8)])
    np.testing.assert_allclose([*scores, nothing], want, atol=0.05)


def test_the_finder_is_trained_on_what_sessions_give_it(folder):
    model, tellings, encode = tasks(folder)
    task, recalling = SeekTask(model, tellings, encode, 1, 0), Recalling(recall_kit.recall(open_folder(folder).config), encode)
    for text in (" My dog is Rex. ", "WHO?", "naïve 犬\n"):
        assert task.ids(text) == recalling.ids(text) != tuple(encode(text))
    assert len(task.ids("x" * 100)) == seek_task.TOKENS == recalling.recall.tokens


@pytest.fixture(scope="module")
def begun(folder):
    """A recall with a random opening."""
    config = open_folder(folder).config
    return recall_kit.recall(config, lead=retell_task.LEAD, item=retell_task.ITEM, ask=retell_task.ASK, opening=recall_kit.opening(config, 9))


def retell(folder, recall, fresh=False):
    from lm2.models.text.tokenizer import Tokenizer

    model, tellings, encode = tasks(folder)
    words = recall_jobs._words(open_folder(folder), Tokenizer.load(folder))
    return RetellTask(model, tellings, words, lambda text: tuple(encode(" " + text.strip().lower()))[:64], recall, 0, fresh)


def test_retell_learns(folder, begun):
    task = retell(folder, begun)
    samples = [Sample([Said("My dog is Rex."), Said("I am 30.")], "What is my dog called?", "Rex.", "Rex"), Sample([Said("I am 30.")], "Why?", retell_task.UNSAID, "")]
    first = float(task.loss(samples).loss.detach())
    optimizer = torch.optim.AdamW(task.maps.parameters(), lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(samples).loss.backward()
        optimizer.step()
    last = task.loss(samples)
    print(f"loss {first:.3f}, after 40 steps {float(last.loss.detach()):.3f}")
    assert float(last.loss.detach()) < 0.9 * first and {name: len(hits) for name, hits in last.hits.items()} == {"told": 1, "taken": 1, "left": 1}
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in task.maps.parameters())


def session_logits(model, passages, question, answer):
    """Logits of each choice while a session's window beside reads `answer` after passages and question."""
    from lm2.runtime.session.beside import Side

    session = Session(model, sampling=Sampling(temperature=0.0), seed=0)
    ids = session.wording.turn(model.recall.message(passages, question), first=False)
    side = Side.opened(model.backend, model.recall, ids, [])
    at, out = side.feeder.logits(side.at), []
    for token in (*answer, None):
        out.append(at.logits)
        if token is not None:
            at = side.feeder.flush(at._replace(pending=(token,)))
    return np.array(out)


def task_logits(task, passages, question, answer):
    """The same as training computes them, between other samples of the step."""
    ids = [*task.message(passages, question), *answer]
    with torch.no_grad():
        states = frozen.states(task.model, task.tables, [ids[:7], ids, ids[3:]], task.maps)
        return task.model.lm_head(states).float()[6 + len(ids) - len(answer) : 7 + len(ids)].numpy()


PASSAGES, QUESTION = ["My cousin Aurel keeps two llamas.", "we've painted the\nkitchen sage"], "What did we paint?"


def decoder(folder, kind):
    """A chat model of one of the tiny cells, or with a decoder that is no Llama's."""
    if kind in tiny_model.CELLS:
        return tiny_model.make(folder, kind)
    config = tiny.config(vocab=tiny_tokenizer.VOCAB, backbone=tiny.BACKBONES[kind], window=64, name="tiny")
    save_folder(random_model(config, 1), folder)
    return tiny_tokenizer.make(folder)


@pytest.mark.parametrize("cell", ["gated", "gated-topics", *tiny.BACKBONES])
def test_training_reads_what_a_session_reads(tmp_path, cell):
    """Every logit of an answer, with the opening that training writes; other wording, order or opening is seen."""
    folder = decoder(tmp_path / "model", cell)
    loaded = load(folder, "torch", device="cpu", threads=1)
    usual = recall_kit.recall(loaded.config, lead=retell_task.LEAD, item=retell_task.ITEM, ask=retell_task.ASK, opening=recall_kit.opening(loaded.config, 9))
    task = retell(folder, usual)
    with torch.no_grad():
        for p in task.maps.parameters():
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
        layers = [task.maps.layer(i) for i in range(loaded.config.num_hidden_layers)]
    exact = Opening(*(torch.cat([layer[j] for layer in layers]).detach().numpy() for j in (0, 1)))
    assert all(np.array_equal(a.astype(np.float16), b) for a, b in zip(exact, task.maps.opening(), strict=True)), "which is written in halves"
    model = replace(loaded, recall=usual._replace(opening=exact))
    answer = list(b"Sage, the kitchen was painted in sage.")
    want = session_logits(model, PASSAGES, QUESTION, answer)
    got = task_logits(task, PASSAGES, QUESTION, answer)
    gap = np.abs(got - want).max()
    others = {
        "another order": task_logits(task, PASSAGES[::-1], QUESTION, answer),
        "another question": task_logits(task, PASSAGES, QUESTION + "?", answer),
        "another lead": session_logits(replace(model, recall=model.recall._replace(lead="You told me:\n")), PASSAGES, QUESTION, answer),
        "another opening": session_logits(replace(model, recall=usual), PASSAGES, QUESTION, answer),
        "no first blank": session_logits(replace(model, recall=model.recall._replace(item="-")), PASSAGES, QUESTION, answer),
    }
    far = {name: np.abs(other - want).max() for name, other in others.items()}
    print(f"{cell}: largest gap {gap:.2e}, {far}")
    assert got.shape == want.shape == (len(answer) + 1, loaded.config.vocab_size)
    assert gap < 1e-4 < 0.1 < min(far.values())


def test_an_opening_begins_as_what_is_shown(folder, begun):
    """Keys and values of SHOWN, read by the backbone: a window that opens with them is one that was fed their tokens."""
    task = retell(folder, begun, fresh=True)
    passages, question, answer = SHOWN[0]
    ids = [*task.words.first(begun.message(list(passages), question)), *task.words.plain(answer), *task.words.closing]
    opening = task.maps.opening()
    assert opening.positions == len(ids)
    backend = load(folder, "torch", device="cpu", threads=1, memory=False).backend
    _, fed = backend.extend(np.array(ids), backend.start(1, None, 400, len(ids)))
    more = np.arange(60, 80)
    want, _ = backend.extend(more, fed, all_logits=True)
    got, _ = backend.extend(more, backend.start(1, None, 400, opening=opening), all_logits=True)
    assert np.abs(got - want).max() < 5e-3
    half = backend.start(1, None, 400, opening=opening._replace(keys=opening.values, values=opening.keys))
    assert np.abs(backend.extend(more, half, all_logits=True)[0] - want).max() > 0.02


def test_samples_have_what_is_asked_once(folder, begun):
    """The answer's value stands in the passages of its telling and in no other; where none has it, nothing is to be said."""
    task = retell(folder, begun)
    rng, kinds = random.Random(1), {"one": 0, "two": 0, "unsaid": 0}
    for _ in range(200):
        sample = task.sample(rng)
        kinds["unsaid" if not sample.value else "one" if len(sample.passages) == 1 else "two"] += 1
        assert 1 <= len(sample.passages) == len(set(sample.passages)) <= 2
        if not sample.value:
            assert sample.answer == retell_task.UNSAID and len(sample.passages) == 1
        elif len(sample.passages) == 2 and sum(mentions(p.text, sample.value) for p in sample.passages) != 1:
            assert any("not" in p.text or sample.value in p.text for p in sample.passages), sample  # a correction may name both
    assert all(kinds.values()) and 50 < kinds["unsaid"] < 110, kinds


def test_what_may_answer_is_no_wrong_passage(folder, begun):
    task = retell(folder, begun)
    cat = Telling(("My cat is called Mina.",), (), frozenset({"cat"}))
    task.pool = [cat, Telling(("My cat's name is Rufus.",), (), frozenset({"cat", "dog"})), Telling(("Mina came by.",), (), frozenset({"visit"})),
                 Telling(("I sleep till nine.",), (), frozenset({"sleep"}))]  # fmt: skip
    task._pool_ids = [task.ids(told.said.whole) for told in task.pool]
    rng = random.Random(1)
    assert {task._beside(rng, "What is my cat called?", cat, "Mina") for _ in range(40)} == {Said("I sleep till nine.")}
    task.pool = task.pool[:3]
    assert task._beside(rng, "What is my cat called?", cat, "Mina").text in {*talk.ordinary("train"), *talk.idle()}


def test_replies_go_with_what_they_reply_to(folder, begun, monkeypatch):
    """A message that replies is drawn with its question; of the others a share has a question before it all the same, which they do not answer."""
    task, stray = retell(folder, begun), "Which of these would you like?"
    task.tellings.asking = [stray]
    telling = Telling(("Three please",), (Asked("How many nights do I stay?", "You stay three.", "Three", ""),), frozenset({"nights"}), before="How many nights?")
    monkeypatch.setattr(task.tellings, "draw", lambda rng: telling)
    rng = random.Random(2)
    drawn = [p for _ in range(300) for p in task.sample(rng, pairs=0.0).passages]
    replies = [p for p in drawn if p.text == "Three please"]
    assert len(replies) > 100 and all(p.before == "How many nights?" and p.whole == "How many nights? Three please" for p in replies)
    others = [bool(p.before) for p in drawn if p.before in ("", stray)]
    assert 0.05 < sum(others) / len(others) < 0.3


@pytest.mark.parametrize("kind", [None, *tiny.BACKBONES])
def test_a_token_alone_is_what_the_backbone_makes_of_it(tmp_path, kind):
    """The same states as in a window of two tokens; after a last layer, its norm taken, its logits."""
    folder = decoder(tmp_path / "model", kind or "gated")
    model = load_model(open_folder(folder).without_memory(), torch.device("cpu")).requires_grad_(False)
    layers, tables = model.config.num_hidden_layers, model.tables(8)
    with torch.no_grad():
        both = frozen.states(model, tables, [(1, 65), (1, 66, 67), (1, 65)], after=(1, layers))
        assert both.shape == (7, 2 * model.config.hidden_size) and torch.allclose(both[:2], both[5:], atol=1e-5)
        got = model.lm_head(model.norm(both[1, model.config.hidden_size :])).numpy()
    backend = load(folder, "torch", device="cpu", threads=1, memory=False).backend
    want, _ = backend.extend(np.array([1, 65]), backend.start(1))
    other, _ = backend.extend(np.array([2, 65]), backend.start(1))
    assert np.abs(got - want[0]).max() < 1e-4 < np.abs(got - other[0]).max()
    features = frozen.alone(model, 1, (1,))
    assert features.shape == (model.config.vocab_size, 2 * model.config.hidden_size) and features.abs().max() <= 4
    assert torch.allclose(frozen.alone(model, 1, (1, layers))[:, : features.shape[1]], features, atol=1e-5)


@pytest.mark.parametrize(("called", "count"), [({}, 5), ({"called": recall_jobs.CALLED_TO_READ}, 11)])
def test_passages_are_read_for_few_that_ask_for_nothing(folder, monkeypatch, called, count):
    """At the margin that is set, for a tenth of messages drawn as they are drawn there, for a quarter where a reader looks first; a step lower for more."""
    _, tellings, encode = tasks(folder)
    monkeypatch.setattr(recall_jobs, "DRAWN", 40)
    finder, ids = recall_kit.letters(), lambda text: tuple(encode(" " + text.strip().lower()))[:64]
    margin = recall_jobs.calibrated(finder, tellings, ids, 5, **called)
    rng, leads = random.Random("5 margin"), []
    for _ in range(40):
        message, among = recall_jobs._idle(rng, tellings)
        assert message not in among and among
        scores, nothing = finder.scores(ids(message), [ids(text) for text in among])
        leads.append(float(scores.max()) - nothing)
    assert sum(lead >= margin - 1e-3 for lead in leads) == count and len({round(lead, 3) for lead in leads}) > 20


def test_odds_are_those_of_a_session(folder, begun):
    """As a session reads a passage, so does training when it sets how much doubt is too much."""
    from lm2.runtime.session.beside import Side

    task = retell(folder, begun)
    model = replace(load(folder, "torch", device="cpu", threads=1), recall=begun)
    session, passage, question = Session(model), "My dog is Rex.", "Who is Rex?"
    side = Side.opened(model.backend, begun, session.wording.turn(begun.message([passage], question), first=False), [])
    assert abs(task.odds([passage], question) - side.odds(task.unsaid)) < 1e-3 < abs(task.odds(["I am 30."], question) - side.odds(task.unsaid))
