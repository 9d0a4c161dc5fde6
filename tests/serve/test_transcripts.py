"""Clients that send the whole transcript each time: they land on the memory that heard it, and nobody ever lands on another's."""

import random
from dataclasses import replace

import command_line
import pytest
from serve_kit import Web, served, transcript

from lm2.runtime.serve import chain
from lm2.runtime.serve.chain import Message
from lm2.runtime.serve.shelf import Shelf
from lm2.runtime.session.session import Session

FACTS = ("Mary went to the kitchen.", "Ok.", "John moved to the garden.", "Ok.")


def alone(model, *said, system=None, seed=None, **settings):
    """What a session that heard nothing else says to the last message."""
    session = Session(model, system, seed=seed)
    for message, answer in zip(said[:-1:2], said[1::2], strict=True):
        session.hear(message, answer)
    session.sampling = replace(model.sampling, **settings)
    return session.say(said[-1], max_tokens=24)


@pytest.fixture
def own(model):
    """A server of its own, in whose memory nothing is."""
    with served(model) as running:
        yield Web(running)


def test_a_conversation_goes_on(own, model):
    said, reuse = [], []
    for message in (*FACTS[::2], "Where is Mary?", "Where is John?", "Mary went to the office.", "Where is Mary?"):
        answer, heard = own.chat(*said, message)
        text = answer["choices"][0]["message"]["content"]
        assert text == alone(model, *said, message)
        reuse.append(heard)
        said += [message, text]
    assert reuse == ["none", "1", "2", "3", "4", "5"]
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_a_transcript_that_was_never_heard_is_replayed(own, model):
    answer, heard = own.chat(*FACTS, "Where is John?")
    assert heard == "none" and answer["choices"][0]["message"]["content"] == alone(model, *FACTS, "Where is John?") == "garden."
    assert own.chat(*FACTS, "Where is Mary?")[1] == "2"  # the history was kept as well as the answer


def test_edits_and_regenerations_branch(own, model):
    assert own.say(*FACTS, "Where is Mary?") == "kitchen."
    edited = ("Mary went to the office.", *FACTS[1:])
    assert own.chat(*edited, "Where is Mary?")[1] == "none" and own.say(*edited, "Where is Mary?") == "office."
    for _ in range(2):
        assert own.say(*FACTS, "Where is Mary?") == "kitchen."
    late = (*FACTS[:2], "John moved to the bedroom.", "Ok.")
    answer, heard = own.chat(*late, "Where is John?")
    assert heard == "none" and answer["choices"][0]["message"]["content"] == "bedroom."
    assert own.say(*FACTS, "Where is John?") == "garden."


def test_the_same_question_again_costs_its_own_tokens(own, model):
    """The window comes back from the answer that went on with it, and the answer gets its own again."""
    own.say(*FACTS, "Where is Mary?")
    for question, answer in (("Where is Mary?", "kitchen."), ("Where is John?", "garden."), ("Where is Mary?", "kitchen.")):
        got, heard = own.chat(*FACTS, question)
        usage = got["usage"]
        assert heard == "2" and got["choices"][0]["message"]["content"] == answer
        assert usage["prompt_tokens_details"]["cached_tokens"] >= usage["prompt_tokens"] - 8
    assert own.say(*FACTS, "Where is Mary?", "kitchen.", "Where is John?") == alone(model, *FACTS, "Where is Mary?", "kitchen.", "Where is John?")


def test_a_window_of_other_tokens_is_not_taken_back(model):
    """Who took a moment's window may take back what the moment itself has heard, and hear something else in its place."""
    shelf = Shelf(model, 1 << 30, None)
    moment = Session(model)
    for message in ("Mary went to the kitchen.", "John moved to the garden."):
        moment.say(message)
    taker = shelf.onward(moment)
    taker.undo()
    taker.say("John moved to the bedroom.")
    taker.say("Where is Mary?")
    assert taker.at.memory is moment.at.memory and taker.at.window is not None
    assert shelf.onward(moment).say("Where is John?") == "garden."


def test_another_answer_is_another_conversation(own, model):
    first = own.say("Mary went to the kitchen.")
    assert own.chat("Mary went to the kitchen.", "Not " + first, "Where is Mary?")[1] == "none"
    assert own.chat("Mary went to the kitchen.", f" {first}\n", "Where is Mary?")[1] == "1"  # clients trim answers


def test_messages_without_an_answer(own, model):
    asked = [{"role": "user", "content": FACTS[0]}, {"role": "user", "content": FACTS[2]}, {"role": "user", "content": "Where is John?"}]
    session = Session(model)
    session.read(FACTS[0])
    session.read(FACTS[2])
    expected = session.say("Where is John?")
    for heard in ("none", "2"):
        answer = own("POST", "/v1/chat/completions", {"messages": asked})
        assert answer.json()["choices"][0]["message"]["content"] == expected and answer.headers["x-lm2-reuse"] == heard
    mixed = [asked[0], {"role": "assistant", "content": "Ok."}, asked[2]]
    assert own("POST", "/v1/chat/completions", {"messages": mixed}).headers["x-lm2-reuse"] == "none"  # not what was read unanswered


def test_a_cut_stream_leaves_nothing_behind(talk, talker, talking):
    import httpx2

    settings = dict(seed=4, temperature=1.0, max_tokens=24)
    body = {"messages": transcript("Hello"), "stream": True, **settings, "max_tokens": 2000}
    before = talking.service.shelf.size()[0]
    with httpx2.stream("POST", f"{talking.url}/v1/chat/completions", json=body, timeout=30) as answer:
        lines = answer.iter_lines()
        assert any("content" in line for line in (next(lines) for _ in range(8)))
    command_line.wait_for(lambda: not talking.service.scheduler.running, "the end of the answer")
    assert talking.service.shelf.size()[0] == before  # nobody will send half an answer back as it was made
    whole = talk.say("Hello", **settings)
    assert whole == alone(talker, "Hello", **{k: v for k, v in settings.items() if k != "max_tokens"})
    assert talk.say("Hello", whole, "And?", **settings) == alone(talker, "Hello", whole, "And?", seed=4, temperature=1.0)


def test_an_answer_that_is_tokenised_another_way_is_heard_as_text(talker):
    """Bytes that are no text: what a client sends back is not what was drawn, and the memory of what it sent is the one that counts."""
    odd = replace(talker, backend=talker.backend.real)
    with served(odd) as running:
        web = Web(running)
        said = web.say("Hello", seed=4, temperature=1.0, max_tokens=24)
        assert "\ufffd" in said
        answer, heard = web.chat("Hello", said, "And?", seed=4, temperature=1.0, max_tokens=24)
        assert heard == "none" and answer["choices"][0]["message"]["content"] == alone(odd, "Hello", said, "And?", seed=4, temperature=1.0)


def test_an_answer_cut_by_a_stop_string_is_heard_as_it_was_shown(talk, talker):
    text = talk.say("Hello", seed=9, temperature=1.0, max_tokens=24)
    short = talk.say("Hello", seed=9, temperature=1.0, max_tokens=24, stop=text[8:11])
    assert short == text[: text.index(text[8:11])]
    answer, heard = talk.chat("Hello", short, "And?", seed=9, temperature=1.0, max_tokens=24)
    assert heard == "none"
    assert answer["choices"][0]["message"]["content"] == alone(talker, "Hello", short, "And?", seed=9, temperature=1.0)


@pytest.mark.parametrize(("kind", "seed"), [("talker", 0), ("talker", 1), ("released", 2)])
def test_interleaved_conversations_are_each_their_own(request, kind, seed):
    """Two owners who say the same things, with edits and regenerations, in any order: each answer is that of a session alone."""
    chance, talker = random.Random(seed), request.getfixturevalue(kind)
    words = ("Hi.", "Who?", "Go on.")
    with served(talker, keys=("ada", "bob")) as running:
        owners = [Web(running, "ada"), Web(running, "bob")]
        heard = {0: set(), 1: set()}
        talks = {(who, system): [] for who in (0, 1) for system in (None, "Be brief.", "Be long.")}
        for _ in range(10):
            (who, system), said = chance.choice(list(talks.items()))
            if said and chance.random() < 0.3:
                del said[-2:]  # regenerate, or say something else instead
            message = chance.choice(words)
            head = [{"role": "system", "content": system}] if system else []
            body = {"messages": [*head, *transcript(*said, message)], "seed": 7, "temperature": 0.9, "max_tokens": 12}
            answer = owners[who]("POST", "/v1/chat/completions", body)
            text = answer.json()["choices"][0]["message"]["content"]
            known = max((n for n in range(2, len(said) + 1, 2) if (system, *said[:n]) in heard[who]), default=0)
            assert answer.headers["x-lm2-reuse"] == (str(known // 2) if known else "none"), (who, system, said)
            session = Session(talker, system, seed=7)
            for one, other in zip(said[::2], said[1::2], strict=True):
                session.hear(one, other)
            session.sampling = replace(talker.sampling, temperature=0.9)
            assert text == session.say(message, max_tokens=12)
            heard[who].update({(system, *said), (system, *said, message, text)})
            said += [message, text]


def test_the_key_of_a_conversation_has_everything_in_it():
    base = dict(owner="a", fingerprint="f", system="s", window=64)
    roots = {chain.root(**base | change) for change in ({}, {"owner": "b"}, {"fingerprint": "g"}, {"system": None}, {"system": ""}, {"window": 65})}
    assert len(roots) == 6
    said = [Message("user", "x"), Message("assistant", "x"), Message("user", "x "), Message("user", "xx"), Message("user", "")]
    assert len({chain.following("k", m) for m in said}) == 5
    assert chain.following("k", Message("assistant", " x\n")) == chain.following("k", Message("assistant", "x"))
    split = (Message("user", "ab"), Message("assistant", "c")), (Message("user", "a"), Message("assistant", "bc"))
    assert chain.keys("k", split[0])[-1] != chain.keys("k", split[1])[-1]


def test_a_long_transcript_is_heard(own):
    """Many turns that nobody heard: their text is not carried along, so that the last costs what the first did."""
    said = [text for i in range(60) for text in (f"John took {i} apples.", "Ok.")]
    answer, heard = own.chat(*said, "Mary went to the kitchen.", "Ok.", "Where is Mary?")
    assert heard == "none" and answer["choices"][0]["message"]["content"] == "kitchen."
    assert own.chat(*said, "Mary went to the kitchen.", "Ok.", "Where is Mary?", "kitchen.", "Where is Mary?")[1] == "62"


def test_memory_is_bounded(model):
    with served(model, memory=6 << 20) as running:
        web = Web(running)
        for i in range(16):
            web.say(f"Mary went to the kitchen. John took {i} apples.")
            count, size = running.service.shelf.size()
            assert size <= 6 << 20
        assert count > 1  # they share nothing, so not all fit
        assert web.say(*FACTS, "Where is Mary?") == "kitchen."


def test_titles_do_not_push_out_the_chat(model):
    """Other short requests of the same client, in between, under its own system prompt or none."""
    with served(model, memory=16 << 20) as running:
        web = Web(running)
        web.say(*FACTS, "Where is Mary?")
        for i in range(3):
            web.say(f"Give a title: {i}")
        assert web.chat(*FACTS, "Where is Mary?", "kitchen.", "Where is John?")[1] == "3"


def test_a_store_outlives_the_server(model, tmp_path):
    store = tmp_path / "store"
    with served(model, store=store, memory=3 << 20) as running:  # too little for more than one: the others go to files while it runs
        web = Web(running)
        for name in ("Mary", "John", "Daniel"):
            web.say(f"{name} went to the kitchen.", "Ok.", f"Where is {name}?")
        assert web.chat("Mary went to the kitchen.", "Ok.", "Where is Mary?", "kitchen.", "Where is Mary?")[1] == "2"
    with served(model, store=store) as running:
        answer, heard = Web(running).chat("John went to the kitchen.", "Ok.", "Where is John?", "kitchen.", "Where is John?")
        assert heard == "2" and answer["choices"][0]["message"]["content"] == "kitchen."


def test_a_damaged_file_is_a_miss(model, tmp_path):
    with served(model, store=tmp_path) as running:
        Web(running).say(*FACTS, "Where is Mary?")
    for file in tmp_path.rglob("*.lm2s"):
        file.write_bytes(file.read_bytes()[:-9])
    with served(model, store=tmp_path) as running:
        answer, heard = Web(running).chat(*FACTS, "Where is Mary?")
        assert heard == "none" and answer["choices"][0]["message"]["content"] == "kitchen."


def test_files_of_chats_are_bounded(model, tmp_path):
    with served(model, store=tmp_path, store_bytes=5 << 20) as running:
        for i in range(8):
            Web(running).say(f"John took {i} apples.")
    sizes = [f.stat().st_size for f in tmp_path.rglob("*.lm2s")]
    assert sizes and sum(sizes) <= 5 << 20
