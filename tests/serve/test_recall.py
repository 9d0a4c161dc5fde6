"""A model with a recall behind the server: whoever sends what, and whatever was kept, an answer from what was said is the one of a session alone."""

from dataclasses import replace

import command_line
import pytest
import recall_kit
import tiny_model
from serve_kit import Letters, Stream, Web, refused, served, transcript

from lm2 import Session
from lm2.runtime.serve.chain import Message
from lm2.runtime.serve.turns import retold, turns
from lm2.runtime.session.sampling import log_probability
from lm2.runtime.session.transcript import newest, remember

TOLD, OTHER, ASK, IDLE = "the zebra eats plums", "my brother is a baker", "zebra eats plums", "0000"
SAID = (TOLD, "fine", OTHER, "good")
GREEDY = dict(temperature=0.0, max_tokens=16)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained model that draws letters and answers from what was said; windows of 128 tokens."""
    folder = tiny_model.make(tmp_path_factory.mktemp("recall") / "tiny", "gated", ends=(), window=128, chunk=32)
    made = tiny_model.load_tiny(recall_kit.put(folder, unsaid="none."))
    return replace(made, backend=Letters(made.backend))


@pytest.fixture(scope="module")
def server(model):
    with served(model) as running:
        yield running


@pytest.fixture(scope="module")
def web(server):
    return Web(server)


def alone(model, *said, seed=0, system=None, chosen=None, tokens=16, **settings):
    """What a session that heard nothing else says to the last message, and the turns that it came from."""
    session = Session(model, system, replace(model.sampling, **({"temperature": 0.0} | settings)), seed)
    for message, answer in zip(said[:-1:2], said[1::2], strict=True):
        session.hear(message, answer)
    session.chosen = chosen
    return session.say(said[-1], tokens), [p.number for p in session.recalled]


def test_a_question_is_answered_from_an_earlier_message(web, model):
    """Whole and in pieces. Without a recall, or where nothing of it was said, the answer is another."""
    text, turns = alone(model, *SAID, ASK)
    assert web.say(*SAID, ASK, **GREEDY) == text and turns == [1] and len(text) == 16
    events, answer = web.events("/v1/chat/completions", {"messages": transcript(*SAID, ASK), **GREEDY})
    assert "".join(e["choices"][0]["delta"].get("content") or "" for e in events) == text and answer.text.endswith("data: [DONE]\n\n")
    assert text != alone(replace(model, recall=None), *SAID, ASK)[0]
    assert alone(model, *SAID[2:], ASK)[1] == [] and web.say(*SAID[2:], ASK, **GREEDY) == alone(model, *SAID[2:], ASK)[0]


def test_who_sends_everything_gets_what_a_fresh_replay_gets(model):
    """A memory that heard the transcript, one that did not, and a session alone: the same answers, over slides, regenerations and edits."""
    system, settings = "Be brief.", dict(seed=7, temperature=0.9)

    def ask(web, *said):
        answer = web("POST", "/v1/chat/completions", {"messages": [{"role": "system", "content": system}, *transcript(*said)], "max_tokens": 12, **settings})
        return answer.json()["choices"][0]["message"]["content"], answer.headers["x-lm2-reuse"]

    said, seen, reuse = [], [], []
    with served(model) as heard, served(model) as fresh:
        for message in (TOLD, OTHER, ASK, IDLE, f"{OTHER}?", "zebra eats plums!"):
            text, found = ask(Web(heard), *said, message)
            want, turns = alone(model, *said, message, system=system, tokens=12, **settings)
            assert text == want
            if turns:
                assert ask(Web(fresh), *said, message)[0] == want == ask(Web(heard), *said, message)[0]
            seen.append(bool(turns))
            reuse.append(found)
            said += [message, text]
        assert seen == [False, False, True, False, True, True] and reuse == ["none", "1", "2", "3", "4", "5"]
        edited = ("the zebra eats apples", *said[1:4], ASK)
        want, turns = alone(model, *edited, system=system, tokens=12, **settings)
        assert ask(Web(heard), *edited)[0] == want and 1 not in turns, "what was said in the branch alone"


def test_usage_is_the_conversations(model):
    """As of the same requests where nothing is recalled: what is read beside counts for nobody. Over slides too."""

    def usages(model):
        out = []
        with served(model) as running:
            web, said = Web(running), list(SAID)
            for _ in range(3):
                for _ in range(2):  # heard, and asked again
                    usage = web.chat(*said, ASK, **GREEDY)[0]["usage"]
                    assert usage["completion_tokens"] == 16 and usage["total_tokens"] == usage["prompt_tokens"] + 16
                    out.append((usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]))
                said += [ASK, "a", "more of it", "b"]
        return out

    mine, plain = usages(model), usages(replace(model, recall=None))
    assert [prompt for prompt, _ in mine] == [prompt for prompt, _ in plain] and mine[-1][0] > 128
    assert all(0 <= cached < prompt for prompt, cached in mine)
    assert mine[0] == plain[0] == (plain[0][0], 0), "nothing was heard before the first"


def test_logprobs_are_of_the_tokens_that_were_said(web, model):
    expected = []
    text, turns = alone(model, *SAID, ASK, chosen=lambda z, token: expected.append((token, log_probability(z, token))))
    answer, _ = web.chat(*SAID, ASK, logprobs=True, top_logprobs=2, **GREEDY)
    told = answer["choices"][0]["logprobs"]["content"]
    assert turns == [1] and answer["choices"][0]["message"]["content"] == text == "".join(t["token"] for t in told)
    assert [t["bytes"] for t in told] == [[token] for token, _ in expected]
    assert [t["logprob"] for t in told] == pytest.approx([value for _, value in expected], abs=1e-4)
    assert all(t["top_logprobs"][0]["logprob"] == t["logprob"] for t in told)
    events, _ = web.events("/v1/chat/completions", {"messages": transcript(*SAID, ASK), "logprobs": True, "top_logprobs": 2, **GREEDY})
    assert [x for e in events for c in e["choices"] if c["logprobs"] for x in c["logprobs"]["content"]] == told


# named sessions


def new(web, **fields):
    return web("POST", "/v1/sessions", {"temperature": 0.0, "seed": 1, **fields}).json()["id"]


def say(web, own, message, tokens=8):
    answer = web("POST", "/v1/chat/completions", {"messages": transcript(message), "max_tokens": tokens}, x_session_id=own)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def test_sessions_fork_undo_and_forget(web, model):
    own, mine = new(web), Session(model, seed=1, sampling=replace(model.sampling, temperature=0.0))
    for message in (TOLD, OTHER, ASK):
        assert say(web, own, message) == mine.say(message, 8)
    assert [p.number for p in mine.recalled] == [1]
    other, its = web("POST", f"/v1/sessions/{own}/fork").json()["id"], mine.fork()
    assert say(web, other, "zebra eats plums!") == its.say("zebra eats plums!", 8) and its.recalled
    web("POST", f"/v1/sessions/{own}/undo")
    mine.undo()
    assert say(web, own, ASK) == mine.say(ASK, 8) and [p.number for p in mine.recalled] == [1]
    for at in (3, 1):
        web("POST", f"/v1/sessions/{own}/forget", {"turn": at})
        mine.forget(at)
    assert TOLD not in web("GET", f"/v1/sessions/{own}").text and TOLD.encode() not in web("GET", f"/v1/sessions/{own}/file").content
    assert say(web, own, ASK) == mine.say(ASK, 8) and mine.recalled == []
    assert say(web, other, ASK) == its.say(ASK, 8) and 1 in [p.number for p in its.recalled], "the fork forgot nothing"
    file = web("GET", f"/v1/sessions/{other}/file").content
    assert web("PUT", f"/v1/sessions/{own}/file", raw=file).status_code == 200
    assert say(web, own, f"the {ASK}") == its.say(f"the {ASK}", 8) and its.recalled
    refused(web("POST", f"/v1/sessions/{own}/forget", {"turn": 99}), 400, "99")


def test_a_client_that_goes_away_frees_its_place(model):
    """In mid-answer: the next is answered, the session has a whole turn, and a transcript's half answer is nobody's."""
    with served(model, tokens=100_000) as running:
        web = Web(running)
        own = new(web)
        say(web, own, TOLD)
        for named in (True, False):
            fields = {"session_id": own, "messages": transcript(ASK)} if named else {"messages": transcript(*SAID, ASK), "seed": 1}
            before = running.service.shelf.size()[0]
            stream = Stream(running, max_tokens=100_000, temperature=0.0, **fields)
            text = b""
            while text.count(b"data: ") < 5:
                text += stream.socket.recv(4096)
            stream.close()
            command_line.wait_for(lambda: not running.service.scheduler.running, "the end of the answer")
            assert running.service.shelf.size()[0] == before + (0 if named else 1)  # the history alone
        shown = web("GET", f"/v1/sessions/{own}").json()["transcript"]
        said = shown[3]["content"]
        assert [m["content"] for m in shown[::2]] == [TOLD, ASK] and 0 < len(said) < 800, "fewer tokens than the window beside has room for"
        mine = Session(model, seed=1, sampling=replace(model.sampling, temperature=0.0))
        assert [mine.say(m, n) for m, n in ((TOLD, 8), (ASK, len(said)))][1] == said and mine.recalled
        assert web.say(*SAID, ASK, **GREEDY) == alone(model, *SAID, ASK)[0]
        web("POST", f"/v1/sessions/{own}/undo")
        mine.undo()
        assert say(web, own, ASK) == mine.say(ASK, 8)


# responses, conversations, and a store


def respond(web, message, tokens=16, **fields):
    answer = web("POST", "/v1/responses", {"input": message, "temperature": 0.0, "seed": 0, "max_output_tokens": tokens, **fields})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return body["id"], body["output"][0]["content"][0]["text"]


def test_responses_and_conversations(model, tmp_path):
    """From a response's moment, any number of times; in a conversation; from a whole transcript. From files, when the server has begun anew."""
    with served(model, store=tmp_path) as running:
        web = Web(running)
        first, said = respond(web, TOLD)
        second, more = respond(web, OTHER, previous_response_id=first)
        heard = (TOLD, said, OTHER, more)
        want, turns = alone(model, *heard, ASK)
        assert turns == [1]
        for _ in range(2):
            assert respond(web, ASK, previous_response_id=second)[1] == want
        several = [*transcript(*SAID), *transcript(ASK)]
        assert respond(web, several)[1] == alone(model, *SAID, ASK)[0]
        assert respond(web, several, previous_response_id=second)[1] == alone(model, *heard, *SAID, ASK)[0]
        own = web("POST", "/v1/conversations", {"items": transcript(*SAID)}).json()["id"]
        third, text = respond(web, ASK, conversation=own)
        assert text == alone(model, *SAID, ASK)[0]
        assert respond(web, f"{OTHER}?", previous_response_id=third)[1] == alone(model, *SAID, ASK, text, f"{OTHER}?")[0]
        web.say(*SAID, ASK, **GREEDY)
    with served(model, store=tmp_path) as running:
        web = Web(running)
        assert respond(web, ASK, previous_response_id=second)[1] == want
        answer, reuse = web.chat(*SAID, ASK, text, f"{OTHER}?", **GREEDY)
        got, turns = alone(model, *SAID, ASK, text, f"{OTHER}?")
        assert reuse == "3" and turns and answer["choices"][0]["message"]["content"] == got


def test_what_sessions_at_rest_hold(model):
    """Their text, counted. How it was encoded is known of each owner's last conversation alone, however many there are."""
    with served(model, keys=("ada", "bob")) as running:
        ada, bob = Web(running, "ada"), Web(running, "bob")
        for web, told in ((ada, TOLD), (bob, "my zebra eats plums")):
            own = new(web)
            for message in (told, ASK):
                say(web, own, message)
            web.say(*SAID, ASK, **GREEDY)
            respond(web, [*transcript(told, "fine", IDLE, "good"), *transcript(ASK)])
        kept = list(running.service.shelf._sessions.values())
        known = {id(s.recalling): set(s.recalling._seen.parts) for s in kept if s.recalling._seen.parts}
        assert len(kept) > 7 and sorted(map(sorted, known.values())) == [[IDLE, "my zebra eats plums"], [IDLE, TOLD]]
        assert all(s.forgotten_turns + len(s.transcript) == s.at.turns for s in kept)


# a moment's text


@pytest.mark.parametrize("read", [False, True])
def test_a_moment_gets_the_text_that_a_session_would_have(model, monkeypatch, read):
    """What was not answered was read, and documents are not looked through."""
    monkeypatch.setattr("lm2.runtime.session.transcript.TURN_CHARS", 60)
    messages = [Message(m["role"], m["content"]) for m in transcript(TOLD, "fine", OTHER, "good", "x" * 90, "y" * 90, ASK, "")]
    if read:
        messages.insert(2, Message("user", "a document"))
    session, moment = Session(model), Session(model)
    for message, answer in turns(tuple(messages)):
        if answer is None:
            session.read(message, "message")
        else:
            session.hear(message, answer)
    moment.at = session.at.at_rest()
    retold(moment, tuple(messages))
    assert [p.number for p in moment.recalling.passages(moment.transcript, moment.numbers)] == ([1, 3, 4, 4, 5] if read else [1, 2, 3, 3, 4])
    assert moment.recalling.passages(moment.transcript, moment.numbers) == session.recalling.passages(session.transcript, session.numbers)
    assert moment.forgotten_turns == session.forgotten_turns + read
    assert read or (moment.transcript, moment.numbers) == (session.transcript, session.numbers)


@pytest.mark.parametrize("sizes", [[], [5], [400] * 3, [200] * 20, [236] * 9, [1] * 99, [0, 1000, 0] * 9])
def test_the_newest_messages_are_those_that_are_remembered(sizes, monkeypatch):
    monkeypatch.setattr("lm2.runtime.session.transcript.TURN_CHARS", 300)
    monkeypatch.setattr("lm2.runtime.session.transcript.TRANSCRIPT_CHARS", 900)
    said = [(("user", "assistant")[i % 2], f"{i}".ljust(size, "x")[:size]) for i, size in enumerate(sizes)]
    kept = []
    for role, content in said:
        remember(kept, role, content)
    assert newest(said) == kept and (len(kept) < len(said) or len(said) < 4)
