"""Several requests at once: who waits for whom, and that nobody's words become another's. Asserted by the order of what the model was fed, not by seconds."""

import json
from contextlib import contextmanager
from dataclasses import replace

import command_line
import pytest
import tiny_model
from serve_kit import LONG, Letters, Stream, Watched, Web, asked, raw_socket, refused, served, transcript

from lm2.runtime.session.session import Session

SETTINGS = dict(temperature=1.0, max_tokens=24)


@contextmanager
def watching(talker, *stops, **limits):
    """A server, its Watched backend, and a client."""
    backend = Watched(talker.backend.real, *stops)
    try:
        with served(replace(talker, backend=backend), **limits) as running:
            yield running, backend, Web(running)
    finally:
        backend.go.set()


def new(web, **fields):
    answer = web("POST", "/v1/sessions", fields)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def waits(running, waiting, others=1):
    """Wait until so many requests wait besides those that run; the model is held, so none of them begins."""
    command_line.wait_for(lambda: len(running.service.scheduler.running) == others and running.service.scheduler.waiting == waiting, "the requests")


def read(web, own):
    return lambda: web("POST", f"/v1/sessions/{own}/read", {"text": LONG})


def heard(web, own):
    return lambda: web("POST", "/v1/chat/completions", {"messages": transcript(LONG, "ok", "Hello"), "max_tokens": 1})


@pytest.mark.parametrize("long", [read, heard])
@pytest.mark.parametrize("most", [8, 1])
def test_a_long_text_does_not_stop_a_short_chat(talker, long, most):
    """Its first token comes before the text is read; where one runs at a time, after it."""
    with watching(talker, running=most) as (running, backend, web), asked(long(web, new(web))) as answers:
        assert backend.seen.wait(60)
        chat = Stream(running, max_tokens=5)
        waits(running, 1)
        backend.go.set()
        text = b""
        while b"[DONE]" not in text:
            text += chat.socket.recv(4096)
        chat.close()
    assert answers[0].status_code == 200
    pieces = backend.at(b"dddd")
    assert len(pieces) > len(LONG) // 64 and (backend.at(1)[0] < pieces[len(pieces) // 2]) == (most == 8)


@pytest.mark.parametrize("path", ["read", "chat"])
def test_a_client_that_leaves_in_mid_text_frees_its_place(talker, path):
    with watching(talker, running=1) as (running, backend, web):
        own = new(web)
        body = json.dumps({"text": LONG} if path == "read" else {"messages": transcript(LONG, "ok", "Hello")}).encode()
        path = f"/v1/sessions/{own}/read" if path == "read" else "/v1/chat/completions"
        gone = raw_socket(running, f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        assert backend.seen.wait(60)
        gone.close()
        command_line.wait_for(lambda: running.service.scheduler.running[0].cancelled, "the server to see it")
        backend.go.set()
        assert web.say("Hello", max_tokens=3)
        assert len(backend.at(b"dddd")) == 1
        assert web("GET", f"/v1/sessions/{own}").json()["turns"] == 0


def test_a_session_is_in_one_job_at_a_time(talker):
    """What comes for it meanwhile waits, in order, and others pass it by."""
    with watching(talker) as (running, backend, web):
        own, other = new(web, seed=1), new(web, seed=2)

        def say(session, text):
            return lambda: web.say(text, session_id=session, max_tokens=9)

        with asked(read(web, own)):
            assert backend.seen.wait(60)
            with asked(say(own, "AAAA")) as first:
                waits(running, 1)
                with asked(say(own, "BBBB")) as second:
                    waits(running, 2)
                    with asked(say(other, "CCCC")) as third:
                        waits(running, 3)
                        backend.go.set()
        text, a, b, c = (backend.at(word) for word in (b"dddd", b"AA", b"BB", b"CC"))
        assert c[-1] < text[-1] < a[0] <= a[-1] < b[0]
        assert [m["content"] for m in web("GET", f"/v1/sessions/{own}").json()["transcript"][1::2]] == ["AAAA", "BBBB"]
    session = Session(talker, seed=1)
    session.read(LONG)
    assert [first[0], second[0]] == [session.say("AAAA", max_tokens=9), session.say("BBBB", max_tokens=9)]
    assert third[0] == Session(talker, seed=2).say("CCCC", max_tokens=9)


def alone(model, *said, seed):
    session = Session(model, seed=seed)
    for message, answer in zip(said[:-1:2], said[1::2], strict=True):
        session.hear(message, answer)
    session.sampling = replace(model.sampling, temperature=1.0)
    return session.say(said[-1], max_tokens=SETTINGS["max_tokens"])


class Mixed(Watched):
    """A backend that gives all windows the same buffers: a control."""

    keys = None

    def start(self, *args, **more):
        window = super().__getattr__("start")(*args, **more)
        if self.keys is None:
            self.keys = window.keys, window.values
        return window._replace(keys=self.keys[0], values=self.keys[1])


def at_once(talker, kind, most, requests):
    """The answers to (transcript, seed) of requests that all came before the model was let go, and the backend."""
    backend = kind(talker.backend.real)
    with served(replace(talker, backend=backend), running=most) as running:
        web = Web(running)
        with asked(read(web, new(web))):
            assert backend.seen.wait(60)
            with asked(*(lambda said=said, seed=seed: web.say(*said, seed=seed, **SETTINGS) for said, seed in requests)) as answers:
                waits(running, len(requests))
                backend.go.set()
    return answers, backend


@pytest.mark.parametrize(("kind", "most", "same"), [(Watched, 8, True), (Watched, 3, True), (Mixed, 8, False)])
def test_a_seed_says_the_same_alone_and_beside_others(talker, kind, most, same):
    requests = [((f"Hello, number {i}.",), i) for i in range(5)]
    answers, backend = at_once(talker, kind, most, requests)
    assert max(backend.steps) > 1
    assert (answers == [alone(talker, *said, seed=seed) for said, seed in requests]) == same
    assert len(set(answers)) == len(answers)


def test_an_exported_model_says_the_same_alone_and_beside_others(tmp_path):
    """Its windows' states are moved side by side for it."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from lm2.export.export import export_model
    from lm2.runtime.loading import load

    export_model(tiny_model.make(tmp_path / "m", "gated", ends=(), window=256, chunk=32), tmp_path / "x")
    made = load(tmp_path / "x", backend="onnx", device="cpu", threads=1)
    talker = replace(made, backend=Letters(made.backend))
    requests = [((f"Hello, number {i}.",), i) for i in range(4)]
    answers, backend = at_once(talker, Watched, 8, requests)
    assert max(backend.steps) > 1 and made.backend._together._sets
    assert answers == [alone(talker, *said, seed=seed) for said, seed in requests]
    assert len(set(answers)) == len(answers)


def test_tokens_go_round(talker):
    """Of answers that are made at once, each gets a token before one gets two, and those of a round are made together."""
    _, backend = at_once(talker, Watched, 8, [((f"Hello, number {i}.",), i) for i in range(3)])
    single = [(place, buffers) for place, (buffers, ids) in enumerate(backend.fed) if len(ids) == 1]
    whose = [buffers for _, buffers in single]
    assert len(set(whose)) == 3
    first = max(whose.index(buffers) for buffers in set(whose))
    last = min(len(whose) - 1 - whose[::-1].index(buffers) for buffers in set(whose))
    assert backend.steps.count(3) > 15
    assert last - first > 30 and all(len(set(whose[i : i + 3])) == 3 for i in range(first, last - 2))


def test_the_same_moment_is_gone_on_from_twice_at_once(talker):
    """Each has a window of its own: who comes second does not take the window of who is in the middle of an answer."""
    said = ("Hello", alone(talker, "Hello", seed=1))
    fed = []
    with watching(talker, lambda ids, window: len(ids) == 1 and (fed.append(ids) or len(fed) > SETTINGS["max_tokens"] + 5)) as (running, backend, web):
        assert web.say(*said[:1], seed=1, **SETTINGS) == said[1]
        ask = [lambda seed=seed: web.chat(*said, "And?", seed=seed, **SETTINGS) for seed in range(4)]
        with asked(ask[0]) as first:
            assert backend.seen.wait(60), "in mid-answer"
            with asked(*ask[1:]) as others:
                waits(running, 3)
                backend.go.set()
        answers = [*first, *others]
        assert [reuse for _, reuse in answers] == ["1"] * 4
        assert [answer["choices"][0]["message"]["content"] for answer, _ in answers] == [alone(talker, *said, "And?", seed=seed) for seed in range(4)]


def test_the_end_comes_to_each_at_a_whole_turn(talker, tmp_path):
    """Those that answer keep what they said, saved; who is read to stays as it was."""
    with watching(talker, store=tmp_path, tokens=100_000) as (running, backend, web):
        owns = [new(web, seed=i) for i in range(3)]
        idle = new(web)
        streams = [Stream(running, max_tokens=100_000, session_id=own) for own in owns]
        for stream in streams:
            text = b""
            while text.count(b"data: ") < 5:
                text += stream.socket.recv(4096)
        with asked(read(web, idle)) as answers:
            assert backend.seen.wait(60)
            running.handle_exit(15, None)
            backend.go.set()
            for stream in streams:
                text = b""
                while part := stream.socket.recv(65536):
                    text += part
                assert b"stopping" in text and b"[DONE]" not in text
                stream.close()
    refused(answers[0], 503, "stopping")
    with served(talker, store=tmp_path) as running:
        web = Web(running)
        assert web("GET", f"/v1/sessions/{idle}").json()["turns"] == 0
        for seed, own in enumerate(owns):
            said = web("GET", f"/v1/sessions/{own}").json()["transcript"]
            session = Session(talker, seed=seed)
            assert [m["role"] for m in said] == ["user", "assistant"]
            assert said[1]["content"] == session.say(said[0]["content"], max_tokens=len(said[1]["content"]))
            assert web.say("Go on", session_id=own, max_tokens=9) == session.say("Go on", max_tokens=9)


def test_the_end_comes_while_a_turn_ends(talker, tmp_path):
    """What the end of a turn feeds, a window that slides, is fed."""
    with watching(talker, lambda ids, window: len(ids) == 1 and window.length == 254, store=tmp_path, tokens=100_000) as (running, backend, web):
        own = new(web, seed=1)
        stream = Stream(running, max_tokens=100_000, session_id=own)
        assert backend.seen.wait(60)
        running.handle_exit(15, None)
        before = len(backend.fed)
        backend.go.set()
        while stream.socket.recv(65536):
            pass
        stream.close()
    assert len(backend.fed) > before + 1, "it slid"
    with served(talker, store=tmp_path) as running:
        said = Web(running)("GET", f"/v1/sessions/{own}").json()["transcript"]
        assert said[1]["content"] == Session(talker, seed=1).say(said[0]["content"], max_tokens=len(said[1]["content"]))


def test_it_says_how_many_run(talker):
    with watching(talker, running=3, queue=5) as (running, backend, web):
        limits = web("GET", "/props").json()["limits"]
        assert (limits["running"], limits["queue"]) == (3, 5)
        with asked(read(web, new(web))):
            assert backend.seen.wait(60)
            chats = [Stream(running, max_tokens=3) for _ in range(7)]
            waits(running, 7)
            lines = web("GET", "/metrics").text.splitlines()
            assert "lm2_queue_running 1.0" in lines and "lm2_queue_waiting 7.0" in lines
            refused(web("POST", "/v1/chat/completions", {"messages": transcript("Hi")}), 429, "wait")
            backend.go.set()
            for chat in chats:
                chat.close()


@pytest.mark.parametrize("name", ["onnx", "mlx"])
def test_on_other_backends(name):
    """The same answers beside each other, over windows that are used in the thread that made them."""
    pytest.importorskip({"onnx": "onnxruntime", "mlx": "mlx.core"}[name])
    from lm2.runtime.loading import load

    facts = [(person, place) for person in ("Mary", "John") for place in ("kitchen", "garden", "office")]
    with served(lambda: load("lm2-tiny", backend=name, device="cpu")) as running:
        command_line.wait_for(lambda: running.service.ready, "the model")
        web = Web(running)
        with asked(*(lambda who=who, where=where: web.say(f"{who} went to the {where}.", "Ok.", f"Where is {who}?") for who, where in facts)) as answers:
            pass
    assert answers == [f"{where}." for _, where in facts]
