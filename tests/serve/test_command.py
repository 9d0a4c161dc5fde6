"""`lm2 serve`: its options, how it refuses, how it ends, and what is left after a kill."""

import json
import re
import shutil
import signal
import socket

import command_line
import pytest
from serve_kit import Web, served


@pytest.fixture
def lm2(monkeypatch):
    return lambda *args: command_line.call(monkeypatch, args)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_others_may_not_reach_it_without_a_key(lm2, host):
    lm2("serve", "lm2-tiny", "--host", host).fails(host, "--api-key")


def test_a_port_that_is_taken(lm2, server):
    port = server.listening.getsockname()[1]
    lm2("serve", "lm2-tiny", "--port", port).fails(port, "--port")


@pytest.mark.parametrize("host", ["", "a" * 70, "..", "nowhere.invalid"])
def test_a_host_that_is_none(lm2, host):
    lm2("serve", "lm2-tiny", "--host", host, "--api-key", "k").fails("cannot listen", "--host")


def test_a_key_that_no_header_carries(lm2):
    line = lm2("serve", "lm2-tiny", "--api-key", "a key").fails("--api-key")
    assert "a key" not in line


def test_a_model_that_is_not_there(lm2, tmp_path):
    assert lm2("serve", tmp_path / "none", "--port", 0).err.splitlines()[-1].startswith("lm2: ")


def test_a_window_that_the_model_cannot_have(lm2):
    result = lm2("serve", "lm2-tiny", "--port", 0, "--window", 5000)
    assert result.code == 1 and "--window 5000" in result.err.splitlines()[-1]


def test_what_is_shared_is_a_folder(lm2):
    lm2("serve", "lm2-tiny", "--shared").fails("--shared", "--store")


def test_without_the_extra_it_says_what_to_install(lm2, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "uvicorn" else found(name, *more))
    lm2("serve", "lm2-tiny").fails("uvicorn", "pip install 'lm2[serve]'")


class Process:
    """`lm2 serve` as a process, ready."""

    def __init__(self, *args):
        self.process = command_line.spawn(["serve", "lm2-tiny", "--port", 0, "--threads", 1, *args])
        line = self.process.stderr.readline().decode()
        self.url = re.search(r"http://\S+?(?=,)", line)[0]
        assert b"ready" in self.process.stderr.readline()
        assert Web(self)("GET", "/health").status_code == 200


@pytest.mark.slow
def test_ctrl_c_in_an_answer(lm2, model, tmp_path):
    """It ends at a whole turn, saved, with exit code 0; a second server on the same folder is refused while it runs."""
    store = tmp_path / "store"
    running = Process("--store", store, "--max-tokens", 100_000)
    web = Web(running)
    own = web("POST", "/v1/sessions", {}).json()["id"]
    assert web.say("Mary went to the kitchen.", session_id=own)
    assert web.chat("John went to the garden.", "Ok.", "Where is John?")[1] == "none"
    lm2("serve", "lm2-tiny", "--port", 0, "--store", store).fails("in use", running.process.pid)
    body = json.dumps({"prompt": "Mary", "stream": True, "temperature": 100, "top_k": 0, "top_p": 1, "min_p": 0, "seed": 2}).encode()
    with socket.create_connection(("127.0.0.1", int(running.url.rsplit(":", 1)[1])), timeout=30) as stream:
        stream.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        text = b""
        while text.count(b"data: ") < 3:
            text += stream.recv(4096)
        running.process.send_signal(signal.SIGINT)
        while part := stream.recv(65536):
            text += part
    assert (b"stopping" in text) != (b"[DONE]" in text)
    _, err = running.process.communicate(timeout=60)
    assert (running.process.returncode, err) == (0, b"")
    with served(model, store=store) as again:
        assert Web(again).say("Where is Mary?", session_id=own) == "kitchen."
        assert Web(again).chat("John went to the garden.", "Ok.", "Where is John?")[1] == "1"


def test_two_signals(lm2):
    """Somebody is in a hurry: it ends as well, and says no more than after one."""
    running = Process()
    running.process.send_signal(signal.SIGTERM)
    running.process.send_signal(signal.SIGINT)
    _, err = running.process.communicate(timeout=60)
    assert (running.process.returncode, err) == (0, b"")


def test_what_a_kill_leaves(model, tmp_path):
    """The folder at any moment between turns is one to go on from: what has a name is on the disk when its answer ends."""
    with served(model, store=tmp_path / "store") as running:
        web = Web(running)
        own = web("POST", "/v1/sessions", {}).json()["id"]
        assert web.say("Mary went to the kitchen.", session_id=own)
        response = web("POST", "/v1/responses", {"input": "John moved to the garden."}).json()["id"]
        shutil.copytree(tmp_path / "store", tmp_path / "left")
    with served(model, store=tmp_path / "left") as again:
        web = Web(again)
        assert web.say("Where is Mary?", session_id=own) == "kitchen."
        answer = web("POST", "/v1/responses", {"input": "Where is John?", "previous_response_id": response}).json()
        assert answer["output"][0]["content"][0]["text"] == "garden."


def test_what_a_kill_left_half_is_removed(model, tmp_path):
    with served(model, store=tmp_path) as running:
        web = Web(running)
        own, talked = web("POST", "/v1/sessions", {}).json()["id"], web("POST", "/v1/conversations", {}).json()["id"]
        lost = web("POST", "/v1/conversations", {}).json()["id"]
        response = web("POST", "/v1/responses", {"input": "Hi"}).json()["id"]
    (tmp_path / "session" / "open" / f".{own}.lm2s.partial").write_bytes(b"half")
    (tmp_path / "response" / "open" / f"{response}.lm2s").unlink()
    (tmp_path / "conversation" / "open" / f"{lost}.json").unlink()
    with served(model, store=tmp_path):
        pass
    left = {path.name for path in tmp_path.rglob("*") if path.is_file() and path.parent.parent.name != "chain"}
    assert left == {"store.lock", f"{own}.lm2s", f"{talked}.lm2s", f"{talked}.json"}
