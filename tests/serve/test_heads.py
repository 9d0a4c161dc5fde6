"""What conversations begin with is read once: what was fed, whose it is, and that no answer is another for it."""

from dataclasses import replace

import pytest
from serve_kit import Watched, Web, asked, served, transcript

from lm2.runtime.serve import heads
from lm2.runtime.session.session import Session

SYSTEM = "You are kind."
SETTINGS = dict(temperature=1.0, max_tokens=12)


class Fed(Watched):
    """Watched that never stops, and can count who read SYSTEM."""

    def __init__(self, backend):
        super().__init__(backend, lambda ids, window: False)

    @property
    def heads(self):
        return sum(SYSTEM.encode() in ids for _, ids in self.fed)


class Uncopied(Fed):
    """A backend without copies."""

    def copied(self, window):
        return None


def said(*messages, system=SYSTEM):
    return [{"role": "system", "content": system}, *transcript(*messages)]


def answers(web, *messages, **fields):
    answer = web("POST", "/v1/chat/completions", {"messages": said(*messages), "seed": 3, **SETTINGS, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def text_of(answer):
    return answer["choices"][0]["message"]["content"]


@pytest.fixture
def running(talker):
    backend = Fed(talker.backend.real)
    with served(replace(talker, backend=backend), keys=("one", "two")) as server:
        yield server, backend


def alone(talker, message):
    session = Session(talker, SYSTEM, replace(talker.sampling, temperature=1.0), seed=3)
    return session.say(message, max_tokens=SETTINGS["max_tokens"])


def test_a_head_is_read_once_and_answers_are_those_of_sessions(talker, running):
    server, backend = running
    web = Web(server, "one")
    for n, message in enumerate(("Hello", "Good evening", "Hello")):
        answer = answers(web, message)
        assert text_of(answer) == alone(talker, message)
        assert (answer["usage"]["prompt_tokens_details"]["cached_tokens"] > len(SYSTEM)) == (n > 0)
    assert backend.heads == 1


def test_of_several_that_begin_together_one_reads_it(talker, running):
    server, backend = running
    messages = [f"Number {n}" for n in range(4)]
    with asked(*(lambda m=m: text_of(answers(Web(server, "one"), m)) for m in messages)) as got:
        pass
    assert got == [alone(talker, m) for m in messages] and backend.heads == 1


def test_another_owner_reads_his_own(running):
    server, backend = running
    first, second = (answers(Web(server, key), "Hello") for key in ("one", "two"))
    assert text_of(first) == text_of(second) and backend.heads == 2
    assert first["usage"] == second["usage"]


def test_a_transcript_that_nobody_heard_begins_with_it_too(talker, running):
    server, backend = running
    web = Web(server, "one")
    answers(web, "Hello")
    want = Session(talker, SYSTEM, replace(talker.sampling, temperature=1.0), seed=3)
    want.hear("Good day", "to you")
    assert text_of(answers(web, "Good day", "to you", "Hello")) == want.say("Hello", max_tokens=12)
    assert backend.heads == 1


def test_a_head_longer_than_a_chunk_is_read_each_time(talker, running):
    server, _ = running
    web = Web(server, "one")
    long = "You are kind to everybody who asks, and to those who do not."
    body = {"messages": said("Hello", system=long), "seed": 3, **SETTINGS}
    for _ in range(2):
        answer = web("POST", "/v1/chat/completions", body).json()
        session = Session(talker, long, replace(talker.sampling, temperature=1.0), seed=3)
        assert text_of(answer) == session.say("Hello", max_tokens=12)


def test_the_newest_used_are_kept(running, monkeypatch):
    server, backend = running
    monkeypatch.setattr(heads, "MOST", 2)
    web = Web(server, "one")
    for system in (SYSTEM, "You are.", SYSTEM, "You may.", SYSTEM, "You are."):
        web("POST", "/v1/chat/completions", {"messages": said("Hello", system=system), "max_tokens": 1})
    assert backend.heads == 1 and sum(b"You are." in ids for _, ids in backend.fed) == 2


def test_without_copies_every_conversation_reads_it(talker):
    backend = Uncopied(talker.backend.real)
    with served(replace(talker, backend=backend)) as server:
        web = Web(server)
        assert [text_of(answers(web, "Hello")) for _ in range(2)] == [alone(talker, "Hello")] * 2
    assert backend.heads == 2


def test_another_head_is_not_taken(talker, running):
    """Control: a head of as many tokens makes another answer, so the test above would see it."""
    server, _ = running
    web = Web(server, "one")
    answers(web, "Hello")
    other = web("POST", "/v1/chat/completions", {"messages": said("Hello", system="You are mean."), "seed": 3, **SETTINGS}).json()
    assert text_of(other) != alone(talker, "Hello")
