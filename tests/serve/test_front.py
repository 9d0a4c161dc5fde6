"""The front, without Ray: what a request belongs to, that what belongs together lands together, and what is said where a server ends."""

import contextlib
import json
import threading

import command_line
import pytest
from serve_kit import Web, refused, served, transcript

from lm2.runtime.serve import family, front
from lm2.runtime.serve.app import build
from lm2.runtime.serve.family import belongs
from lm2.runtime.serve.front import Front, Lost, answered
from lm2.runtime.serve.limits import Limits
from lm2.runtime.serve.owners import Owners


def chat(*said, **more):
    return json.dumps({"messages": transcript(*said), **more}).encode()


def at(path, body=b"", session=None, owner="o", method="POST"):
    return belongs(method, path, session, owner, body)


def test_what_belongs_together_is_one_family():
    talk, own = "/v1/chat/completions", "sess_" + "abcdef01" + 24 * "0"
    for given in (
        at(f"/v1/sessions/{own}"), at(f"/v1/sessions/{own}/file", method="PUT"), at(talk, chat("Hi"), session=own), at(talk, chat("Hi", session_id=own)),
        at("/v1/responses", json.dumps({"input": "Hi", "conversation": own.replace("sess", "conv")}).encode()),
        at("/v1/responses", json.dumps({"input": "Hi", "conversation": {"id": own.replace("sess", "conv")}}).encode()),
        at("/v1/responses", json.dumps({"input": "Hi", "previous_response_id": own.replace("sess", "resp")}).encode()),
    ):  # fmt: skip
        assert given.family == "abcdef01"
    begin = at(talk, chat("Hi")).family
    assert {at(talk, chat("Hi", *more)).family for more in ((), ("Hello", "And?"), ("Hey", "So"))} == {begin}
    parts = json.dumps({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}).encode()
    assert at(talk, parts).family == at("/v1/responses", b'{"input": "Hi"}').family == begin
    system = json.dumps({"messages": [{"role": "system", "content": "Be brief."}, *transcript("Hi")]}).encode()
    assert at("/v1/responses", b'{"input": "Hi", "instructions": "Be brief."}').family == at(talk, system).family
    others = {at(talk, chat("Hi"), owner="other").family, at(talk, chat("Ho")).family, at(talk, system).family, begin}
    assert len(others) == 4
    for body in (b"", b"{", b"[]", b'{"messages": 3}', b'{"messages": [3]}', b"\xff", b"[" * 100_000, b'{"conversation": {"id": 3}}'):
        assert len(at(talk, body).family) == 8 and at(talk, body).family != at(talk, body).family
    assert len(at("/v1/sessions/../../x").family) == 8


def test_what_may_be_asked_twice():
    for asked in (at("/v1/sessions", method="GET"), at("/v1/chat/completions", chat("Hi")), at("/v1/responses", b'{"previous_response_id": "resp_1"}')):
        assert asked.repeats
    own = "sess_" + 32 * "0"
    for asked in (
        at("/v1/sessions"), at(f"/v1/sessions/{own}/undo"), at(f"/v1/sessions/{own}", method="DELETE"), at("/v1/chat/completions", chat("Hi"), session=own),
        at("/v1/chat/completions", chat("Hi", session_id=own)), at("/v1/responses", b'{"conversation": "conv_1"}'), at("/v1/conversations"),
    ):  # fmt: skip
        assert not asked.repeats


class Fleet:
    """Two servers of one folder and a front before them. `ends`: how many messages of an answer come before its server is lost, then as if it had not been."""

    def __init__(self, services, local=True):
        self.apps, self.ends, self.landed = [build(service, local) for service in services], None, []

    async def ask(self, asked):
        place = int(asked.at.family, 16) % len(self.apps)
        self.landed.append((asked.scope["path"], place))
        left, self.ends = self.ends, None
        async for message in answered(self.apps[place], asked.scope, asked.body):
            if left == 0:
                raise Lost("gone")
            yield message
            left = None if left is None else left - 1


@contextlib.contextmanager
def fleet(model, folder, keys=()):
    import uvicorn

    with served(model, keys, folder, shared=True) as one, served(model, keys, folder, shared=True) as two:
        made = Fleet([one.service, two.service], local=not keys)
        server = uvicorn.Server(uvicorn.Config(Front(made.ask, Owners(keys), Limits()), port=0, log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            command_line.wait_for(lambda: server.started, "the front")
            server.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
            yield made, server
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.mark.parametrize("together", [True, False])
def test_a_conversation_stays_where_it_is(model, tmp_path, monkeypatch, together):
    """Whole transcripts of two owners who say the same, sessions, forks, responses: each lands on one server, and is found there. Control: spread at
    random, transcripts are read again."""
    if not together:
        real, spread = front.belongs, iter(f"{i // 2:08x}" for i in range(100))
        monkeypatch.setattr(front, "belongs", lambda *args: real(*args)._replace(family=next(spread)))
    found = []
    with fleet(model, tmp_path, ("ada", "bob")) as (made, server):
        for first in ("Mary went to the kitchen.", "Mary went to the office."):
            webs, said = [Web(server, key) for key in ("ada", "bob")], [first, "Ok."]
            for turn in range(3):
                answers = [web.chat(*said, "Where is Mary?") for web in webs]
                assert {a["choices"][0]["message"]["content"] for a, _ in answers} == {first.split()[-1]}
                found += [reuse == ("none" if not turn else str(turn + 1)) for _, reuse in answers]
                said += ["Where is Mary?", first.split()[-1]]
        if together:
            web, other, places = *webs, set()
            for _ in range(4):
                made.landed.clear()
                own = web("POST", "/v1/sessions").json()["id"]
                forked = web("POST", f"/v1/sessions/{own}/fork").json()["id"]
                assert web.say("Mary went to the kitchen.", session_id=forked) and web("GET", f"/v1/sessions/{forked}").json()["turns"] == 1
                refused(other("GET", f"/v1/sessions/{forked}"), 404)
                assert len({place for _, place in made.landed}) == 1
                places.add(made.landed[0][1])
                last = web("POST", "/v1/responses", {"input": "Hi"}).json()["id"]
                assert family.of_id(web("POST", "/v1/responses", {"input": "Ho", "previous_response_id": last}).json()["id"]) == family.of_id(last)
    assert all(found) == together


def test_a_server_that_ends(talker, tmp_path):
    """Before a word of it, what branches is asked again; in a named session, and in mid-stream, the client is told. Nothing is said twice."""
    with fleet(talker, tmp_path) as (made, server):
        web = Web(server)
        expected = web.say("Hello", seed=3, max_tokens=9)
        made.ends = 0
        assert web.say("Hello", seed=3, max_tokens=9) == expected
        own = web("POST", "/v1/sessions").json()["id"]
        made.ends = 0
        assert refused(web("POST", "/v1/chat/completions", {"messages": transcript("Hello"), "session_id": own}), 503, "session")["code"] == "replica_lost"
        made.ends = 3
        events, answer = web.events("/v1/chat/completions", {"messages": transcript("Hello"), "seed": 3, "max_tokens": 200})
        assert events[-1]["error"]["code"] == "replica_lost" and "[DONE]" not in answer.text


def test_what_the_front_refuses_itself(model, tmp_path):
    with fleet(model, tmp_path, ("ada",)) as (made, server):
        refused(Web(server, "bob")("POST", "/v1/sessions", {}), 401)
        refused(Web(server)("GET", "/v1/models"), 401)
        refused(Web(server, "ada")("POST", "/v1/chat/completions", raw=b" " * (5 << 20)), 413)
        refused(Web(server, "ada")("GET", "/metrics"), 404, "metrics port")
        assert made.landed == []
        assert Web(server)("GET", "/health").json() == {"status": "ok"}
        for method, path in (("GET", "/v1/models"), ("GET", "/openapi.json"), ("GET", "/v1/nothing")):
            assert Web(server, "ada")(method, path).status_code == (404 if "nothing" in path else 200)


def test_a_client_that_leaves_frees_its_place_behind_the_front(talker, tmp_path):
    import httpx2

    with fleet(talker, tmp_path) as (made, server):
        services = [app.service for app in made.apps]
        with httpx2.stream("POST", f"{server.url}/v1/chat/completions", json={"messages": transcript("Hello"), "stream": True, "max_tokens": 2000}) as answer:
            lines = answer.iter_lines()
            assert any("content" in line for line in (next(lines) for _ in range(8)))
        command_line.wait_for(lambda: not any(service.scheduler.running for service in services), "the end of the answer", 20)
