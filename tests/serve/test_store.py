"""A disk that is full, files that were damaged or removed under the server: what is said of it, and that nothing is half changed."""

import errno
import os

import pytest
from serve_kit import HELLO, Web, refused, served, transcript

from lm2.models.errors import PromptError
from lm2.runtime.serve.refusal import refusal_of


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
