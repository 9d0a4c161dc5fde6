"""Several servers over one folder: each session is one server's at a time, what another wrote is seen, and a server that ends leaves its sessions to the others."""

import contextlib
import os
import re
import shutil
import signal
import threading
from dataclasses import replace

import command_line
import pytest
from serve_kit import Letters, Web, refused, served, transcript

from lm2.models.errors import LM2Error
from lm2.runtime.serve import shelf, tenancy
from lm2.runtime.serve.store import Name, Store
from lm2.runtime.session.session import Session


@contextlib.contextmanager
def pair(model, folder, keys=(), **limits):
    """Two servers of one folder, and a client of each."""
    with served(model, keys, folder, shared=True, **limits) as one, served(model, keys, folder, shared=True, **limits) as two:
        yield (one, two), tuple(Web(server, *keys[:1]) for server in (one, two))


def talked(webs, own, messages):
    return [webs[i % 2].say(message, session_id=own) for i, message in enumerate(messages)]


FACTS = ("Mary went to the kitchen.", "John moved to the garden.", "Mary went to the office.", "Where is Mary?")


@pytest.mark.parametrize("stamped", [True, False])
def test_a_session_goes_on_wherever_it_was(model, tmp_path, monkeypatch, stamped):
    """By turns on both: the words of one session alone. Control: where nobody looks at the file, a server goes on from what it heard itself."""
    if not stamped:
        monkeypatch.setattr(shelf.Shelf, "_is_stale", lambda self, name, session: False)
    with pair(model, tmp_path) as (_, webs):
        own = webs[0]("POST", "/v1/sessions", {"seed": 1}).json()["id"]
        said = talked(webs, own, FACTS)
        session = Session(model, seed=1)
        assert (said == [session.say(message) for message in FACTS]) == stamped
        if stamped:
            assert webs[1]("POST", f"/v1/sessions/{own}/undo").json()["turns"] == 3
            assert webs[0]("GET", f"/v1/sessions/{own}").json()["turns"] == 3
            assert webs[0]("GET", "/v1/sessions").json() == webs[1]("GET", "/v1/sessions").json()
            assert webs[0]("DELETE", f"/v1/sessions/{own}").status_code == 200
            for web in webs:
                refused(web("GET", f"/v1/sessions/{own}"), 404)
                refused(web("DELETE", f"/v1/sessions/{own}"), 404)
            assert not list(tmp_path.rglob("sess_*"))


def test_responses_and_conversations_go_on(model, tmp_path):
    with pair(model, tmp_path) as (_, webs):
        last, own = None, webs[0]("POST", "/v1/conversations", {}).json()["id"]
        for i, message in enumerate(FACTS):
            asked = {"input": message, **({} if last is None else {"previous_response_id": last["id"]})}
            last = webs[i % 2]("POST", "/v1/responses", asked).json()
            there = webs[i % 2]("POST", "/v1/responses", {"input": message, "conversation": own, "store": False}).json()
            assert there["output"][0]["content"][0]["text"] == last["output"][0]["content"][0]["text"]
        assert last["output"][0]["content"][0]["text"] == "office."
        items = webs[1]("GET", f"/v1/conversations/{own}/items?limit=100").json()["data"]
        assert len(items) == 2 * len(FACTS)
        assert webs[1]("DELETE", f"/v1/responses/{last['id']}").status_code == 200
        for web in webs:
            refused(web("POST", "/v1/responses", {"input": "Hi", "previous_response_id": last["id"]}), 404)


class Held(Letters):
    """A backend that stops before its `nth` single token, until `go`."""

    def __init__(self, backend, nth):
        super().__init__(backend)
        self.left, self.seen, self.go = nth, threading.Event(), threading.Event()

    def extend(self, tokens, window, all_logits=False):
        if tokens.size == 1:
            self.left -= 1
            if not self.left:
                self.seen.set()
                assert self.go.wait(60)
        return super().extend(tokens, window, all_logits)


@pytest.mark.parametrize("locked", [True, False])
def test_two_servers_never_answer_in_one_session_at_once(talker, tmp_path, monkeypatch, locked):
    """The second waits until the first has ended, others pass it by. Control: without the lock a turn is lost."""
    if not locked:
        monkeypatch.setattr(tenancy.Holding, "take", lambda self, key: True)
    backend, answers = Held(talker.backend.real, 5), {}
    holding = replace(talker, backend=backend)
    with served(holding, store=tmp_path, shared=True) as one, served(talker, store=tmp_path, shared=True) as two:
        first, second = Web(one), Web(two)
        own = first("POST", "/v1/sessions", {"seed": 1}).json()["id"]

        def say(web, text):
            answers[text] = web.say(text, session_id=own, max_tokens=9)

        threads = [threading.Thread(target=say, args=said) for said in ((first, "One"), (second, "Two"))]
        threads[0].start()
        assert backend.seen.wait(60)
        threads[1].start()
        try:
            if locked:
                command_line.wait_for(lambda: two.service.scheduler.waiting, "the second to wait")
                assert second.say("Hello", max_tokens=3) and not answers
            else:
                threads[1].join(60)
        finally:
            backend.go.set()
        for thread in threads:
            thread.join(60)
        said = [m["content"] for m in second("GET", f"/v1/sessions/{own}").json()["transcript"]]
        session = Session(talker, seed=1)
        alone = [text for message in ("One", "Two") for text in (message, session.say(message, max_tokens=9))]
        assert (said == alone) == locked


def test_a_client_that_leaves_while_another_server_answers(talker, tmp_path):
    backend = Held(talker.backend.real, 5)
    with served(replace(talker, backend=backend), store=tmp_path, shared=True) as one, served(talker, store=tmp_path, shared=True) as two:
        own = Web(one)("POST", "/v1/sessions").json()["id"]
        thread = threading.Thread(target=lambda: Web(one).say("One", session_id=own, max_tokens=9))
        thread.start()
        assert backend.seen.wait(60)
        import httpx2

        with pytest.raises(httpx2.TimeoutException):
            httpx2.post(f"{two.url}/v1/chat/completions", json={"messages": transcript("Two"), "session_id": own}, timeout=0.3)
        command_line.wait_for(lambda: not two.service.scheduler.waiting, "it to be forgotten")
        backend.go.set()
        thread.join(60)
        assert Web(two)("GET", f"/v1/sessions/{own}").json()["turns"] == 1


def test_transcripts_are_found_once_they_are_in_the_folder(model, tmp_path):
    """A server that ends writes what it heard, and another finds it; what nobody wrote is read again, to the same answer."""
    said = (FACTS[0], "Ok.", FACTS[1], "Ok.", "Where is Mary?")
    with served(model, store=tmp_path, shared=True) as two:
        with served(model, store=tmp_path, shared=True) as one:
            assert Web(one).chat(*said)[1] == "none"
            answer, heard = Web(two).chat(*said)
            assert (answer["choices"][0]["message"]["content"], heard) == ("kitchen.", "none")
            assert Web(one).chat(*said, "kitchen.", "Where is John?")[1] == "3"
            Web(one).say("Daniel went to the office.", "Ok.", "Where is Daniel?")
        answer, heard = Web(two).chat("Daniel went to the office.", "Ok.", "Where is Daniel?", "office.", "Where is Daniel?")
        assert (answer["choices"][0]["message"]["content"], heard) == ("office.", "2")


def test_owners_of_two_servers_see_nothing_of_each_other(model, tmp_path):
    """The same words on both servers, by two owners: neither finds what the other said."""
    with pair(model, tmp_path, ("ada", "bob")) as (servers, webs):
        bob = [Web(server, "bob") for server in servers]
        said = (FACTS[0], "Ok.", "Where is Mary?")
        own = webs[0]("POST", "/v1/sessions").json()["id"]
        response = webs[0]("POST", "/v1/responses", {"input": "Hi"}).json()["id"]
        assert webs[0].chat(*said)[1] == "none" and webs[0].chat(*said)[1] == "1"
        for other in bob:
            assert other.chat(*said)[1] == "none"
            refused(other("GET", f"/v1/sessions/{own}"), 404)
            refused(other("POST", "/v1/responses", {"input": "Hi", "previous_response_id": response}), 404)
            assert other("GET", "/v1/sessions").json()["data"] == []


def test_a_folder_is_shared_by_those_that_say_so(tmp_path):
    alone = Store(tmp_path, 1 << 30)
    with pytest.raises(LM2Error, match="in use"):
        Store(tmp_path, 1 << 30)
    alone.close()
    first, second = Store(tmp_path, 1 << 30, shared=True), Store(tmp_path, 1 << 30, shared=True)
    with pytest.raises(LM2Error, match="2 running servers.*--shared"):
        Store(tmp_path, 1 << 30)
    first.close()
    with pytest.raises(LM2Error, match="1 running server:"):
        Store(tmp_path, 1 << 30)
    second.close()
    Store(tmp_path, 1 << 30).close()
    assert not list((tmp_path / "servers").iterdir())


def test_a_server_that_comes_in_later_cleans_nothing_of_the_others(model, tmp_path):
    """What a server is just writing looks like what a killed one left."""
    name = Name("conversation", "open", "conv_" + "0" * 32)
    with served(model, store=tmp_path, shared=True):
        half = tmp_path / "conversation" / "open" / f".{name.id}.lm2s.partial"
        half.parent.mkdir(parents=True)
        half.write_bytes(b"half")
        Store(tmp_path, 1 << 30, shared=True).close()
        assert half.exists()
    Store(tmp_path, 1 << 30, shared=True).close()
    assert not half.exists()


def test_what_a_killed_server_announced_is_settled_by_the_next(model, tmp_path):
    """A record whose session was not written, or was, when its server was killed, while another server runs."""
    with pair(model, tmp_path) as (servers, webs):
        store = servers[0].service.store
        for written in (False, True):
            own = webs[0]("POST", "/v1/conversations", {"items": transcript("Mary went to the kitchen.")}).json()["id"]
            name = Name("conversation", "open", own)
            shutil.copy(store.path(name, ".json"), tmp_path / "before")
            webs[0]("POST", "/v1/responses", {"input": "Where is Mary?", "conversation": own, "store": False})
            shutil.move(store.path(name, ".json"), store.path(name, ".next"))
            shutil.move(tmp_path / "before", store.path(name, ".json"))
            if not written:
                session = Session.restore(model, store.path(name))
                session.undo()
                session.save(store.path(name))
            webs[1]("POST", "/v1/responses", {"input": "Where is John?", "conversation": own, "store": False})
            assert len(webs[1]("GET", f"/v1/conversations/{own}/items").json()["data"]) == (5 if written else 3)
            assert not list(tmp_path.rglob("*.next"))


def test_the_bytes_of_all_servers_are_bounded(model, tmp_path):
    with pair(model, tmp_path, store_bytes=6 << 20) as (_, webs):
        for i in range(12):
            assert webs[i % 2]("POST", "/v1/responses", {"input": f"John took {i} apples."}).status_code == 200
        assert sum(f.stat().st_size for f in tmp_path.rglob("*.lm2s")) <= 6 << 20


class Process:
    """`lm2 serve --shared` as a process, ready."""

    def __init__(self, store):
        self.process = command_line.spawn(["serve", "lm2-tiny", "--port", 0, "--threads", 1, "--store", store, "--shared"])
        self.url = re.search(r"http://\S+?(?=,)", self.process.stderr.readline().decode())[0]
        assert b"ready" in self.process.stderr.readline()


@pytest.mark.slow
def test_servers_that_are_killed(model, tmp_path):
    """Kill -9 of one in mid-stream, then of the other: the session goes on at who is left, with the words of one process alone, less the turn under way."""
    running = [Process(tmp_path), Process(tmp_path)]
    alone = Session(model, seed=1)
    own = Web(running[0])("POST", "/v1/sessions", {"seed": 1}).json()["id"]
    try:
        for message in ("Mary went to the kitchen.", "Mary went to the office."):
            for one in running:
                assert Web(one).say(message, session_id=own) == alone.say(message)
            one = running.pop()
            body = {"messages": transcript("Go on."), "session_id": own, "stream": True, "temperature": 100, "top_k": 0, "top_p": 1, "min_p": 0}
            import httpx2

            with contextlib.suppress(httpx2.HTTPError), httpx2.stream("POST", f"{one.url}/v1/chat/completions", json=body) as answer:
                for i, line in enumerate(answer.iter_lines()):
                    assert "[DONE]" not in line
                    if i == 6:
                        [lock] = tmp_path.rglob(f"{own}.lm2s.lock")
                        assert int(lock.read_text()) == one.process.pid
                        os.kill(one.process.pid, signal.SIGKILL)
            one.process.communicate(timeout=60)
            running.insert(0, Process(tmp_path))
            for there in running:
                assert Web(there).say("Where is Mary?", session_id=own) == alone.say("Where is Mary?") == f"{message.split()[-1]}"
    finally:
        for one in running:
            one.process.send_signal(signal.SIGINT)
            _, err = one.process.communicate(timeout=60)
            assert (one.process.returncode, err) == (0, b"")
