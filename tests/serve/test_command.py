"""`lm2 serve`: its options, how it refuses, how it ends, and what is left after a kill."""

import re
import signal

import command_line
import pytest
from command_line import wait_for
from serve_kit import Web, served, transcript


@pytest.fixture
def lm2(monkeypatch):
    return lambda *args: command_line.call(monkeypatch, args)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_others_may_not_reach_it_without_a_key(lm2, host):
    lm2("serve", "lm2-tiny", "--host", host).fails(host, "--api-key")


def test_a_port_that_is_taken(lm2, server):
    port = server.listening.getsockname()[1]
    lm2("serve", "lm2-tiny", "--port", port).fails(port, "--port")


def test_a_key_that_no_header_carries(lm2):
    line = lm2("serve", "lm2-tiny", "--api-key", "a key").fails("--api-key")
    assert "a key" not in line


def test_a_model_that_is_not_there(lm2, tmp_path):
    assert lm2("serve", tmp_path / "none", "--port", 0).err.splitlines()[-1].startswith("lm2: ")


def test_a_window_that_the_model_cannot_have(lm2):
    result = lm2("serve", "lm2-tiny", "--port", 0, "--window", 5000)
    assert result.code == 1 and "--window 5000" in result.err.splitlines()[-1]


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
        wait_for(lambda: Web(self)("GET", "/health").status_code == 200, "the model")

    def ends(self, how):
        self.process.send_signal(how)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err.decode()


def test_it_ends_when_told_and_survives_a_kill(lm2, model, tmp_path):
    """Ctrl-C saves what was heard; what was saved is there after a kill, and a second server on the same folder is refused."""
    store = tmp_path / "store"
    first = Process("--store", store)
    asked = {"messages": transcript("Mary went to the kitchen.", "Ok.", "Where is Mary?")}
    assert Web(first)("POST", "/v1/chat/completions", asked).headers["x-lm2-reuse"] == "none"
    assert first.ends(signal.SIGINT) == (0, "")
    second = Process("--store", store)
    assert Web(second)("POST", "/v1/chat/completions", asked).headers["x-lm2-reuse"] == "2"
    lm2("serve", "lm2-tiny", "--port", 0, "--store", store).fails("in use", second.process.pid)
    assert second.ends(signal.SIGKILL)[0] == -signal.SIGKILL
    with served(model, store=store) as running:
        assert Web(running).chat("Mary went to the kitchen.", "Ok.", "Where is Mary?")[1] == "2"
