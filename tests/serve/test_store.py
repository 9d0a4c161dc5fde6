"""A disk that is full, files that were damaged or removed under the server: what is said of it, and that nothing is half changed."""

import errno
import os
import shutil

import pytest
from serve_kit import HELLO, Web, refused, served, transcript

from lm2.models.errors import PromptError
from lm2.runtime.serve.chain import Message
from lm2.runtime.serve.conversations import ITEMS_BYTES_MAX, ITEMS_MAX, newest
from lm2.runtime.serve.items import item
from lm2.runtime.serve.refusal import refusal_of
from lm2.runtime.serve.store import Name, Store
from lm2.runtime.session.session import Session


@pytest.fixture
def disk(monkeypatch):
    """`disk.full` True: nothing can be written, as the operating system says it."""

    class Disk:
        full = False

    real = os.fsync

    def fsync(fd):
        if Disk.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    return Disk


def test_a_full_disk_changes_nothing(model, tmp_path, disk):
    """What could not be written was not said: sent again when there is room, it is said once."""
    with served(model, store=tmp_path / "store") as running:
        web = Web(running)
        own, talk = web("POST", "/v1/sessions").json()["id"], web("POST", "/v1/conversations").json()["id"]
        first = {"messages": transcript("Mary went to the kitchen.")}
        told = {"input": "Mary went to the kitchen.", "conversation": talk}
        assert web("POST", "/v1/chat/completions", first, x_session_id=own).status_code == web("POST", "/v1/responses", told).status_code == 200
        paths = (f"/v1/sessions/{own}", "/v1/sessions", f"/v1/conversations/{talk}/items")
        before = [web("GET", path).json() for path in paths]
        file = web("GET", f"/v1/sessions/{own}/file").content
        disk.full = True
        for method, path, body in (
            ("POST", "/v1/chat/completions", {**HELLO, "session_id": own}), ("POST", f"/v1/sessions/{own}/undo", {}), ("POST", f"/v1/sessions/{own}/fork", {}),
            ("POST", f"/v1/sessions/{own}/forget", {"turn": 1}), ("POST", f"/v1/sessions/{own}/read", {"text": "x"}), ("POST", "/v1/sessions", {}),
            ("POST", "/v1/conversations", {}), ("POST", "/v1/responses", {"input": "Hi"}), ("POST", "/v1/responses", {"input": "Hi", "conversation": talk}),
            ("POST", f"/v1/conversations/{talk}/items", {"items": transcript("Hi")}),
        ):  # fmt: skip
            error = refused(web(method, path, body), 507, "No space")
            assert error["code"] == "storage" and str(tmp_path) not in str(error), error
        error = refused(web("GET", f"/v1/sessions/{own}/file"), 507)
        assert "lm2-serve-" not in error["message"] or "the temporary folder" in error["message"]
        disk.full = False
        assert [web("GET", path).json() for path in paths] == before
        assert web("PUT", f"/v1/sessions/{own}/file", raw=file).status_code == 200
        assert web.say("Where is Mary?", session_id=own) == "kitchen."
        answer = web("POST", "/v1/responses", {"input": "Where is Mary?", "conversation": talk}).json()
        assert answer["output"][0]["content"][0]["text"] == "kitchen." and answer["usage"]["input_tokens"] < 40


def test_a_kill_at_any_moment_leaves_a_conversation_and_its_items(model, tmp_path, monkeypatch):
    """The folder as it was before and after every rename: the memory and the list of what was said in it are always of one moment."""
    moments = []

    def replace(old, new):
        for act in (lambda: None, lambda: real(old, new)):
            act()
            moments.append(tmp_path / str(len(moments)))
            shutil.copytree(tmp_path / "store", moments[-1])

    real = os.replace
    with served(model, store=tmp_path / "store") as running:
        web = Web(running)
        monkeypatch.setattr(os, "replace", replace)
        own = web("POST", "/v1/conversations", {"items": transcript("Mary went to the kitchen.")}).json()["id"]
        web("POST", "/v1/responses", {"input": "Where is Mary?", "conversation": own, "store": False})
        web("POST", f"/v1/conversations/{own}/items", {"items": transcript("John went to the garden.")})
        monkeypatch.setattr(os, "replace", real)
    name, seen = Name("conversation", "open", own), []
    for folder in (*moments, tmp_path / "store"):
        store = Store(folder, 1 << 30)
        record = store.read_json(name)
        assert store.has(name) == (record is not None)
        if record is not None:
            seen.append(len(record["items"]))
            assert Session.restore(model, store.path(name)).at.turns == seen[-1]
        assert not list(folder.rglob("*.next"))
        store.close()
    assert len(moments) >= 18 and sorted(set(seen)) == [1, 3, 4]


def test_a_conversations_list_is_bounded():
    """Its items are a part of what was said; in bytes as in number, so that it can be read again."""
    small = [item(Message("user", f"{i}")) for i in range(ITEMS_MAX + 5)]
    assert [one["content"][0]["text"] for one in newest(small)] == [str(i) for i in range(5, ITEMS_MAX + 5)]
    big = [item(Message("user", "\u05d0" * (512 << 10))) for _ in range(20)]
    kept = newest(big)
    assert kept == big[-len(kept) :] and 2 <= len(kept) < ITEMS_BYTES_MAX >> 20
    assert newest([item(Message("user", "\1" * (2 << 20)))])


def test_transcripts_need_no_disk(model, tmp_path, disk):
    with served(model, store=tmp_path, memory=6 << 20) as running:
        disk.full = True
        for i in range(6):
            assert Web(running).say(f"Mary went to the kitchen. John took {i} apples.", "Ok.", "Where is Mary?") == "kitchen."
        assert running.service.shelf.size()[1] <= 6 << 20
        disk.full = False


def test_a_damaged_session_says_so_without_a_path(model, tmp_path):
    with served(model, store=tmp_path) as running:
        own = Web(running)("POST", "/v1/sessions").json()["id"]
    file = next(tmp_path.rglob("sess_*.lm2s"))
    file.write_bytes(file.read_bytes()[:-1])
    with served(model, store=tmp_path) as running:
        for method, path, body in (("GET", "", None), ("GET", "/held", None), ("POST", "/undo", {}), ("POST", "/fork", {})):
            error = refused(Web(running)(method, f"/v1/sessions/{own}{path}", body), 422, own)
            assert str(tmp_path) not in str(error)
        assert Web(running)("DELETE", f"/v1/sessions/{own}").status_code == 200


def test_files_that_somebody_removed(model, tmp_path):
    """What is in memory goes on, and is written again."""
    with served(model, store=tmp_path) as running:
        web = Web(running)
        own = web("POST", "/v1/sessions").json()["id"]
        for path in sorted(tmp_path.rglob("*"), reverse=True):
            if path.name != "store.lock":
                path.rmdir() if path.is_dir() else path.unlink()
        assert web.say("Mary went to the kitchen.", session_id=own)
    with served(model, store=tmp_path) as running:
        assert Web(running).say("Where is Mary?", session_id=own) == "kitchen."


@pytest.mark.parametrize(
    ("hide", "said"),
    [({".": "tiny"}, "m/x.jinja is wrong. Mend it."), ({"m": "tiny"}, "tiny/x.jinja is wrong. Mend it."), ({"/a/m": "tiny"}, "m/x.jinja is wrong. Mend it.")],
)
def test_a_short_path_hides_no_words(hide, said):
    assert str(refusal_of(PromptError("m/x.jinja is wrong. Mend it."), hide)) == said
