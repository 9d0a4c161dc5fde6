"""Named sessions: they say what a session of one's own says, outlive the server, and their files are checked like any other's."""

import time
from dataclasses import replace

import pytest
from serve_kit import Letters, Stream, Web, refused, served, transcript

from lm2.runtime.session.session import Session

FOREIGN = "sess_" + "0" * 32
TRICKS = ["..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "sess_" + "A" * 32, "sess_" + "0" * 31, "sess_" + "0" * 31 + "%00", "sess_../" + "0" * 29, "resp_" + "0" * 32, "a" * 5000]


def new(web, **fields):
    answer = web("POST", "/v1/sessions", fields)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def say(web, own, message, **fields):
    answer = web("POST", "/v1/chat/completions", {"messages": transcript(message), **fields}, x_session_id=own)
    assert answer.status_code == 200, answer.text
    assert "x-lm2-reuse" not in answer.headers
    return answer.json()["choices"][0]["message"]["content"]


def test_it_says_what_a_session_says(talk, talker):
    own = new(talk, system="Be brief.", seed=11, temperature=1.2, top_k=30)
    session = Session(talker, "Be brief.", replace(talker.sampling, temperature=1.2, top_k=30), 11)
    for message in ("Hello", "And you?", "Why?"):
        assert say(talk, own, message, max_tokens=20) == session.say(message, max_tokens=20)
    shown = talk("GET", f"/v1/sessions/{own}").json()
    assert shown["transcript"] == session.transcript and shown["turns"] == 3 and shown["tokens"] == session.at.seen
    assert say(talk, own, "Who?", seed=5, temperature=0.5, max_tokens=20)  # for this turn alone
    assert talk("GET", f"/v1/sessions/{own}").json()["sampling"]["temperature"] == 1.2


def test_the_body_names_it_too(web):
    own = new(web)
    assert web.say("Mary went to the kitchen.", session_id=own)
    assert web.say("Where is Mary?", session_id=own) == "kitchen."
    refused(web("POST", "/v1/chat/completions", {"messages": transcript("Hi"), "session_id": own}, x_session_id=FOREIGN), 400, "session_id")
    refused(web("POST", "/v1/chat/completions", {"messages": transcript("a", "b", "c"), "session_id": own}), 400, "new message alone")


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", {"prompt": "Hi"}), ("/v1/responses", {"input": "Hi"})])
def test_a_path_without_sessions_says_so(web, path, body):
    assert refused(web("POST", path, body, x_session_id=new(web)), 400)["param"] == "x-session-id"


def test_it_streams(web):
    own = new(web)
    say(web, own, "Mary went to the kitchen.")
    events, _ = web.events("/v1/chat/completions", {"messages": transcript("Where is Mary?"), "session_id": own})
    assert "".join(e["choices"][0]["delta"].get("content") or "" for e in events) == "kitchen."


def test_undo_fork_read_held_forget(web):
    own = new(web)
    for message in ("Mary went to the kitchen.", "John moved to the garden."):
        say(web, own, message)
    answer = web("POST", f"/v1/sessions/{own}/fork")
    other = answer.json()["id"]
    assert answer.status_code == 201 and other != own
    say(web, other, "Mary went to the office.")
    assert (say(web, own, "Where is Mary?"), say(web, other, "Where is Mary?")) == ("kitchen.", "office.")
    assert web("POST", f"/v1/sessions/{other}/undo").json()["turns"] == 3
    web("POST", f"/v1/sessions/{other}/undo")
    assert say(web, other, "Where is Mary?") == "kitchen."
    held = web("GET", f"/v1/sessions/{own}/held").json()["data"]
    assert any("Mary went to the kitchen" in h["text"] for h in held) and sum(h["share"] for h in held) == pytest.approx(1)
    gone = web("POST", f"/v1/sessions/{own}/forget", {"turn": 1}).json()
    assert gone["forgotten"]["rows"] > 0 and "kitchen" not in gone["transcript"][0]["content"]
    assert say(web, own, "Where is John?") == "garden."
    read = web("POST", f"/v1/sessions/{own}/read", {"text": "Daniel went to the bathroom. " * 20, "title": "a tale"}).json()
    assert read["read_tokens"] > 100 and "a tale" in read["transcript"][-1]["content"]
    assert say(web, own, "Where is Daniel?") == "bathroom."
    refused(web("POST", f"/v1/sessions/{own}/forget", {"turn": 99}), 400, "99")
    refused(web("POST", f"/v1/sessions/{new(web)}/undo"), 400, "nothing to undo")


def test_list_and_delete(model):
    with served(model) as running:
        web = Web(running)
        own, other = sorted((new(web), new(web)))
        assert [s["id"] for s in web("GET", "/v1/sessions").json()["data"]] == [own, other]
        assert web("DELETE", f"/v1/sessions/{own}").json()["deleted"] is True
        refused(web("DELETE", f"/v1/sessions/{own}"), 404)
        refused(web("GET", f"/v1/sessions/{own}"), 404)
        assert [s["id"] for s in web("GET", "/v1/sessions").json()["data"]] == [other]


def test_the_file_goes_out_and_comes_back(web, model, tmp_path):
    own = new(web)
    say(web, own, "Mary went to the kitchen.")
    answer = web("GET", f"/v1/sessions/{own}/file")
    file, tag = answer.content, answer.headers["etag"]
    (tmp_path / "x.lm2s").write_bytes(file)
    assert Session.restore(model, tmp_path / "x.lm2s").say("Where is Mary?") == "kitchen."
    time.sleep(1.1)  # the date in the file is another one, and does not count
    assert web("GET", f"/v1/sessions/{own}/file").headers["etag"] == tag
    say(web, own, "Mary went to the office.")
    assert web("GET", f"/v1/sessions/{own}/file").headers["etag"] != tag
    refused(web("PUT", f"/v1/sessions/{own}/file", raw=file, if_match=tag), 412)
    now = web("GET", f"/v1/sessions/{own}/file").headers["etag"]
    back = web("PUT", f"/v1/sessions/{own}/file", raw=file, if_match=now)
    assert back.status_code == 200 and back.headers["etag"] == tag
    assert say(web, own, "Where is Mary?") == "kitchen."
    other = new(web)
    assert web("PUT", f"/v1/sessions/{other}/file", raw=file).status_code == 200
    assert say(web, other, "Where is Mary?") == "kitchen."


@pytest.mark.parametrize(
    ("damage", "status"),
    [
        (lambda raw: b"", 422),
        (lambda raw: bytes(1000), 422),
        (lambda raw: raw[:-1], 422),
        (lambda raw: raw + b"x", 422),
        (lambda raw: raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 1]) + raw[len(raw) // 2 + 1 :], 422),
        (lambda raw: b"\xff" * 8 + raw[8:], 413),
    ],
    ids=["empty", "other", "cut", "longer", "flipped", "header"],
)
def test_a_file_that_is_none_is_refused(web, damage, status):
    own = new(web)
    say(web, own, "Mary went to the kitchen.")
    raw = web("GET", f"/v1/sessions/{own}/file").content
    error = refused(web("PUT", f"/v1/sessions/{own}/file", raw=damage(raw)), status)
    assert "/" not in error["message"] and "--new" not in error["message"], error
    assert say(web, own, "Where is Mary?") == "kitchen."


def test_a_file_of_another_model_is_refused(web, talk):
    theirs = talk("GET", f"/v1/sessions/{new(talk)}/file").content
    refused(web("PUT", f"/v1/sessions/{new(web)}/file", raw=theirs), 409, "another memory")


def test_a_file_larger_than_any_session_is_refused(web):
    try:
        refused(web("PUT", f"/v1/sessions/{new(web)}/file", raw=b"x" * (40 << 20)), 413)
    except Exception as error:  # the server may have closed before all of it was sent
        assert not isinstance(error, AssertionError), error


@pytest.mark.parametrize("trick", TRICKS, ids=range(len(TRICKS)))
def test_ids_are_no_paths(web, trick):
    for method, end in (("GET", ""), ("GET", "/file"), ("DELETE", ""), ("POST", "/undo")):
        refused(web(method, f"/v1/sessions/{trick}{end}"), 404)
    if "%" not in trick:
        refused(web("POST", "/v1/chat/completions", {"messages": transcript("Hi")}, x_session_id=trick), 404, "no session")


def test_owners_see_their_own_alone(model, tmp_path):
    with served(model, keys=("ada", "bob"), store=tmp_path / "store") as running:
        ada, bob = Web(running, "ada"), Web(running, "bob")
        own = new(ada)
        say(ada, own, "Mary went to the kitchen.")
        assert bob("GET", "/v1/sessions").json()["data"] == []
        for method, path, body in (
            ("GET", "", None), ("DELETE", "", None), ("GET", "/file", None), ("GET", "/held", None), ("POST", "/fork", {}), ("POST", "/undo", {}),
            ("POST", "/read", {"text": "x"}), ("POST", "/forget", {"turn": 1}), ("PUT", "/file", {}),
        ):  # fmt: skip
            refused(bob(method, f"/v1/sessions/{own}{path}", body), 404)
        refused(bob("POST", "/v1/chat/completions", {"messages": transcript("Where is Mary?")}, x_session_id=own), 404)
        assert say(ada, own, "Where is Mary?") == "kitchen."
        assert not [f for f in tmp_path.rglob("*") if "ada" in f.name]  # keys are not in names


def test_as_many_as_may_be(model):
    with served(model, sessions=2) as running:
        web = Web(running)
        own = new(web)
        new(web)
        assert refused(web("POST", "/v1/sessions", {}), 429, "--max-sessions")["code"] == "too_many_sessions"
        refused(web("POST", f"/v1/sessions/{own}/fork"), 429)
        web("DELETE", f"/v1/sessions/{own}")
        new(web)


def test_they_outlive_the_server_and_leave_memory_for_files(model, tmp_path):
    with served(model, store=tmp_path, memory=3 << 20) as running:
        web = Web(running)
        owns = [new(web) for _ in range(4)]
        for own, name in zip(owns, ("Mary", "John", "Daniel", "Sandra"), strict=True):
            say(web, own, f"{name} went to the kitchen.")
        assert running.service.shelf.size()[0] < 4
        assert say(web, owns[0], "Where is Mary?") == "kitchen."
    with served(model, store=tmp_path) as running:
        web = Web(running)
        assert sorted(s["id"] for s in web("GET", "/v1/sessions").json()["data"]) == sorted(owns)
        assert say(web, owns[1], "Where is John?") == "kitchen."
        web("DELETE", f"/v1/sessions/{owns[2]}")
    assert not list(tmp_path.rglob(f"{owns[2]}*")) and list(tmp_path.rglob(f"{owns[3]}*"))


def test_without_a_store_named_ones_stay(model):
    """What has a name is not dropped to make room; when they fill the memory, no more are made."""
    with served(model, memory=5 << 20) as running:
        web = Web(running)
        own = new(web)
        say(web, own, "Mary went to the kitchen.")
        for i in range(6):
            web.say(f"John took {i} apples.")
        assert say(web, own, "Where is Mary?") == "kitchen."
        answers = []
        for _ in range(8):
            answers.append(web("POST", "/v1/sessions", {}))
            if answers[-1].status_code == 429:
                break
            say(web, answers[-1].json()["id"], "John took the milk.")
        refused(answers[-1], 429, "--session-bytes")


def test_a_turn_that_was_cut_off_is_whole(talker):
    """Ctrl-C in the middle of an answer: the session has the turn up to there, and goes on after it."""
    with served(talker, tokens=100_000) as running:
        web = Web(running)
        own = new(web, seed=1)
        stream = Stream(running, max_tokens=100_000, session_id=own)
        text = b""
        while text.count(b"data: ") < 5:
            text += stream.socket.recv(4096)
        stream.close()
        shown = web("GET", f"/v1/sessions/{own}").json()
        assert [m["role"] for m in shown["transcript"]] == ["user", "assistant"] and shown["transcript"][1]["content"]
        assert say(web, own, "Go on", max_tokens=5)


class Failing(Letters):
    """A backend that works for so many calls more; None: for ever."""

    left = None

    def extend(self, *args, **more):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("no")
        return super().extend(*args, **more)


def test_a_turn_that_fails_leaves_the_session_as_it_was(talker):
    backend = Failing(talker.backend.real)
    with served(replace(talker, backend=backend)) as running:
        web = Web(running)
        own = new(web, seed=1)
        first = say(web, own, "Hello", max_tokens=9)
        backend.left = 0
        refused(web("POST", "/v1/chat/completions", {"messages": transcript("Lost"), "seed": 5, "session_id": own}), 500)
        backend.left = None
        session = Session(talker, seed=1)
        assert [first, say(web, own, "And you?", max_tokens=9)] == [session.say("Hello", max_tokens=9), session.say("And you?", max_tokens=9)]
        assert web("GET", f"/v1/sessions/{own}").json()["seed"] == 1


def test_an_answer_that_fails_is_kept_as_far_as_it_came(talker, tmp_path):
    backend = Failing(talker.backend.real)
    with served(replace(talker, backend=backend), store=tmp_path) as running:
        web = Web(running)
        own = new(web, seed=1)
        backend.left = 9
        refused(web("POST", "/v1/chat/completions", {"messages": transcript("Hello"), "session_id": own, "stream": False, "seed": 7}), 500)
        backend.left = None
        shown = web("GET", f"/v1/sessions/{own}").json()
        assert [m["role"] for m in shown["transcript"]] == ["user", "assistant"] and shown["turns"] == 1
        file = web("GET", f"/v1/sessions/{own}/file").content
        assert web("PUT", f"/v1/sessions/{own}/file", raw=file).status_code == 200  # what is kept is whole
    with served(talker, store=tmp_path) as running:
        assert Web(running)("GET", f"/v1/sessions/{own}").json()["transcript"] == shown["transcript"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("", {"name": "x"}, "name"),
        ("", {"system": 5}, "system"),
        ("", {"temperature": -1}, "temperature"),
        ("", {"seed": 1.5}, "seed"),
        ("/read", {}, "text"),
        ("/read", {"text": ""}, "text"),
        ("/read", {"text": "a\0"}, "text"),
        ("/forget", {}, "turn"),
        ("/forget", {"turn": 0}, "turn"),
        ("/undo", {"turns": 2}, "turns"),
        ("/fork", {"at": 2}, "at"),
    ],
)
def test_bad_fields(web, path, body, param):
    own = f"/{new(web)}" if path else ""
    assert refused(web("POST", f"/v1/sessions{own}{path}", body), 400)["param"] == param
