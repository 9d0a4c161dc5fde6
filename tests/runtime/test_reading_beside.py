"""Which passages are read beside a conversation, and what of such a reading is believed."""

from dataclasses import replace

import numpy as np
import pytest
import recall_kit
from recalled_kit import ASK, recalls, talked

from lm2 import Sampling
from lm2.models.recall import Found, Use
from lm2.runtime.session import beside
from lm2.runtime.session.recalling import Passage


class Torn:
    """A backend for which the unsaid word's first token is the likeliest beginning, and yet less likely than all others together."""

    def __init__(self, backend, unsaid):
        self.real, self.unsaid = backend, unsaid

    def __getattr__(self, name):
        return getattr(self.real, name)

    def extend(self, tokens, window, all_logits=False):
        logits, window = self.real.extend(tokens, window, all_logits)
        logits = np.zeros_like(logits)
        logits[..., self.unsaid] = 2.0
        return logits, window


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_answered_never_begins_as_if_nothing_were_told(models, temperature):
    model = recalls(models["gated"], trust=1.0, doubt=0.0)
    unsaid = model.encode(model.recall.unsaid, plain=True)[0]
    model = replace(model, backend=Torn(model.backend, unsaid))
    for seed in range(1 if not temperature else 20):
        session = talked(model, seed=seed, sampling=Sampling(temperature=temperature))
        session.say(ASK, 4)
        assert [p.number for p in session.recalled] == [1], "likelier answered than not"
        assert session.reply.tokens[0] != unsaid


def test_reading_what_was_said_tells_that_something_was_fed(models):
    """So that whoever waits can be asked whether anybody still does, as for every other forward pass."""
    session, fed = talked(recalls(models["gated"])), []
    session.memory()
    session.feeder.on_feed = fed.append
    stream = session.stream(ASK, 4)
    next(stream)
    assert fed, "the passages were read, and nobody heard of it"


class Doubting:
    """A backend for which an answer begins with `unsaid` after every window but the believed ones: numbers of calls that feed more than a token."""

    def __init__(self, backend, unsaid, believed):
        self.real, self.unsaid, self.believed, self.read = backend, unsaid, believed, 0

    def __getattr__(self, name):
        return getattr(self.real, name)

    def extend(self, tokens, window, all_logits=False):
        logits, window = self.real.extend(tokens, window, all_logits)
        if np.size(tokens) > 1:
            logits = np.zeros_like(logits)
            logits[..., self.unsaid] = -2.0 if self.read in self.believed else 50.0
            self.read += 1
        return logits, window


NEAR = {0: 1.0, 1: 5.0, 2: 4.0, 3: 0.0}


@pytest.mark.parametrize(
    ("believed", "fields", "found", "read"),
    [
        ({0, 1, 2, 3}, {}, [1], 1),
        ({1, 2, 3}, {}, [2], 2),
        ({2}, {}, [0], 3),
        ({3}, {}, [3], 4),
        ((), {}, None, 4),
        ({0, 1, 2, 3}, dict(share=0.3), [1, 2], 3),
        ({0, 2, 3}, dict(share=0.3), [1], 2),
        ({0, 1, 2, 3}, dict(share=0.0), [0, 1, 2, 3], 5),
        ({0, 1, 2, 3}, dict(trust=0.1), [1], 1),
        ({0, 1, 2, 3}, dict(trust=1.0), [1], 2),
        ({0, 1, 2, 3}, dict(trust=10.0), [1], 4),
    ],
)
def test_reading_ends_where_no_other_could_come_along(models, believed, fields, found, read):
    """The nearest first; and what it comes to is what reading all of them would."""
    model = models["gated"]
    recall = recall_kit.recall(model.config, **({"share": 0.5, "trust": 0.0, "doubt": 0.0} | fields))
    backend, passages = Doubting(model.backend, 7, believed), [Passage(n, f"text {n}", (n,)) for n in range(4)]
    side = beside.answering(backend, recall, 7, lambda text: list(text.encode()), passages, NEAR, "who?")
    assert (side and [p.number for p in side.found]) == found and backend.read == read


@pytest.mark.parametrize(("sure", "believed", "found"), [((), (), None), ({3}, (), [3]), ({0, 2}, (), [2]), ({3}, {0}, [1]), ({1}, {1}, [1])])
def test_a_sure_reader_is_believed(models, sure, believed, found):
    """Whatever the model makes of the passage; of those that are believed the nearest is taken."""
    model = models["gated"]
    recall = recall_kit.recall(model.config, share=0.5, trust=0.0, doubt=0.0)
    passages = [Passage(n, f"text {n}", (n,)) for n in range(4)]
    side = beside.answering(Doubting(model.backend, 7, believed), recall, 7, lambda text: list(text.encode()), passages, NEAR, "who?", sure=sure)
    assert (side and [p.number for p in side.found]) == found
    assert side is None or side.feeder.logits(side.at).logits.argmax() != 7, "it does not begin with what says that nothing is told"


def test_a_reply_is_quoted_with_what_it_was_said_to(models):
    """Where the model had asked for it; else alone."""
    model, asked = models["gated"], []
    recall = recall_kit.recall(model.config, share=0.5, trust=0.0, doubt=0.0)
    passages = [Passage(1, "plums please", (1,), "What shall I buy?", (1,)), Passage(2, "figs please", (2,))]
    for near in ({0: 1.0}, {1: 1.0}):
        side = beside.answering(Doubting(model.backend, 7, {0}), recall, 7, lambda text: asked.append(text) or list(text.encode()), passages, near, "who?")
        assert side.found == [passages[next(iter(near))]]
    assert "What shall I buy? plums please" in asked[0] and "buy" not in asked[1] and "figs please" in asked[1]


class Reading:
    """A reader for which `words` answer every question, wherever they stand."""

    use = Use(4, 1.0, -1e3, 1e3)

    def __init__(self, words):
        self.words = words

    def read(self, question, messages, before=()):
        return [Found(self.words if self.words in m else "", 1.0) for m in messages]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_answer_says_what_was_found(models, temperature):
    """A model of random numbers would say anything else; the conversation hears the answer whole."""
    model = recalls(models["gated"])
    plain = talked(model, sampling=Sampling(temperature=temperature))
    assert "plums" not in plain.say(ASK, 40)
    session = talked(replace(model, recall=model.recall._replace(reader=Reading("eats plums"))), sampling=Sampling(temperature=temperature))
    answer = session.say(ASK, 40)
    assert "eats plums" in answer.lower() and [p.number for p in session.recalled] == [1]
    assert session.transcript[-1]["content"] == answer and len(session.reply.tokens) == 40
    heard, said = session.at.tokens + session.at.pending, session.reply.tokens
    assert said in [heard[i : i + 40] for i in range(len(heard) - 39)]


def test_what_it_begins_with_ends_where_the_answer_must(models):
    model = recalls(models["gated"])
    session = talked(replace(model, recall=model.recall._replace(reader=Reading("eats plums"))), sampling=Sampling(temperature=0.0))
    assert len((session.say(ASK, 3), session.reply)[1].tokens) == 3 and session.reply.finish == "length"


def test_logits_are_told_of_every_token(models):
    """What a server shows of an answer's tokens: of those it begins with too, and each from a row of its own."""
    model, heard = recalls(models["gated"]), []
    session = talked(replace(model, recall=model.recall._replace(reader=Reading("eats plums"))), sampling=Sampling(temperature=0.0))
    session.chosen = lambda logits, token: heard.append((np.array(logits), token))
    session.say(ASK, 40)
    assert [token for _, token in heard] == list(session.reply.tokens)
    assert all(row.shape == (session.model.config.vocab_size,) for row, _ in heard)
    assert not np.array_equal(heard[0][0], heard[1][0])


def test_a_draw_is_not_spent_on_what_was_found(models):
    """Draws are those of the tokens that were drawn."""
    model = recalls(models["gated"])
    session = talked(replace(model, recall=model.recall._replace(reader=Reading("eats plums"))), sampling=Sampling(temperature=1.0))
    before = session.at.draws
    side = session.beside(ASK)
    session.say(ASK, 40)
    assert 0 < len(side.given.tokens) < 40 and session.at.draws - before == 40 - len(side.given.tokens)
