"""Replicas on Ray Serve: one is killed in mid-stream, then another, and everything goes on with the words of one process alone. Some 40 seconds and 2 GB."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from dataclasses import replace
from importlib.util import find_spec

import command_line
import pytest
from serve_kit import Web, refused, served, transcript

from lm2.models.errors import PromptError
from lm2.runtime.session.session import Session

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'lm2[ray]'")
NOISE = {"temperature": 100, "top_k": 0, "top_p": 1, "min_p": 0}  # lm2-tiny's answers are a word otherwise
KEYS = ("ada", "bob")


def test_settings_are_read_from_words():
    from lm2.runtime.serve.fleet import Settings

    made = Settings.of({"store": "/s", "replicas": "3", "memory": "false", "cpus": "0.5", "max_queue": 7})
    assert (made.replicas, made.memory, made.cpus, made.limits.queue, made.model) == (3, False, 0.5, 7, "smollm2")
    for given, word in (({}, "store"), ({"store": "/s", "replica": 1}, "replica"), ({"store": "/s", "replicas": "x"}, "replicas"), ({"store": "/s", "replicas": 0}, "0")):
        with pytest.raises(PromptError, match=word):
            Settings.of(given)


class Talk:
    """A session on the replicas, and the same in one process alone."""

    def __init__(self, running, model, seed):
        self.running, self.model, self.web = running, model, running.webs[seed % 2]
        self.own = self.web("POST", "/v1/sessions", {"seed": seed}).json()["id"]
        self.alone = Session(model, seed=seed)

    def turn(self, message, max_tokens=12, **settings):
        """A turn in both: the same words. Returns the process of the replica that answered."""
        pid, said = 0, ""
        with self.stream(message, max_tokens=max_tokens, **settings) as answer:
            assert answer.status_code == 200, answer.read()
            for line in answer.iter_lines():
                pid = pid or self.holder()
                if line.startswith("data: {"):
                    [choice] = json.loads(line[6:])["choices"]
                    said += choice["delta"].get("content", "")
        self.alone.sampling = replace(self.model.sampling, **settings)
        assert said == self.alone.say(message, max_tokens=max_tokens)
        return pid

    def stream(self, message, **fields):
        return self.web.client.stream("POST", "/v1/chat/completions", json={"messages": transcript(message), "session_id": self.own, "stream": True, **fields})

    def holder(self):
        """The process that answers in it now: it has the lock, in which it says so. 0 where none does."""
        [lock] = (self.running.folder / "store" / "session").rglob(f"{self.own}.lm2s.lock")
        return int(lock.read_text() or 0)

    def killed(self):
        """Kill -9 the replica in the middle of an answer; which it was."""
        text, pid = "", 0
        with self.stream("Where is Mary?", max_tokens=2000, **NOISE) as answer:
            for line in answer.iter_lines():
                text += line + "\n"
                if not pid and text.count("data: ") == 4:
                    pid = self.holder()
                    os.kill(pid, signal.SIGKILL)
        assert "replica_lost" in text and "[DONE]" not in text, text
        return pid


class Running:
    """`lm2 serve --ray 2` as a process, ready."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "keys").write_text("\n".join(KEYS))
        env = {"RAY_worker_niceness": "0", "RAY_raylet_start_wait_time_s": "120"}  # so that a busy machine only makes it slow
        args = ["serve", "lm2-tiny", "--ray", 2, "--store", folder / "store", "--port", free_port(), "--threads", 1, "--api-key-file", folder / "keys"]
        self.process = command_line.spawn(args, env=env, stdout=subprocess.DEVNULL)
        lines = []
        for line in self.process.stderr:
            lines.append(line.decode())
            if "listening" in lines[-1]:
                break
        assert lines and "listening" in lines[-1], lines
        self.url = re.search(r"http://\S+?(?=;)", lines[-1])[0]
        self.webs = [Web(self, key) for key in KEYS]

    def end(self):
        self.process.send_signal(signal.SIGINT)
        try:
            _, err = self.process.communicate(timeout=90)
            return self.process.returncode, err.decode()
        finally:
            self.process.kill()


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_replicas_that_are_killed(model, tmp_path):
    running = Running(tmp_path)
    try:
        one_by_one_they_are_killed(running, model)
    finally:
        code, err = running.end()
    assert code == 0, err
    with served(model, KEYS, tmp_path / "store") as alone:  # nothing was left half, and the folder is one server's again
        assert len(Web(alone, KEYS[0])("GET", "/v1/sessions").json()["data"]) == 4


def where(talks):
    """The process that each session is at now."""
    return [talk.turn("Go on.", 24, **NOISE) for talk in talks]


def one_by_one_they_are_killed(running, model, who="John"):
    ada, bob = running.webs
    talks = [Talk(running, model, seed) for seed in range(6)]
    while len(set(at := where(talks))) < 2:
        assert len(talks) < 30
        talks.append(Talk(running, model, len(talks)))
    assert at == where(talks), "each session stays at its replica"
    first, second = sorted(set(at))
    chats = [[f"{who} moved to the {place}.", "Ok."] for place in ("kitchen", "garden")]

    def ask():
        """Whole transcripts of two owners, the same words; how many turns were found."""
        found = []
        for said in chats:
            place = said[0].split()[-1]
            for web in running.webs:
                answer, reuse = web.chat(*said, f"Where is {who}?")
                assert answer["choices"][0]["message"]["content"] == place
                found.append(reuse)
            said += [f"Where is {who}?", place]
        return found

    assert ask() == ["none"] * 4, "nobody finds what the other said"
    assert ask() == ["2"] * 4, "each lands where it was heard"
    response = ada("POST", "/v1/responses", {"input": "Daniel went to the office."}).json()["id"]
    conversation = bob("POST", "/v1/conversations", {"items": transcript("Daniel went to the garden.")}).json()["id"]
    refused(bob("GET", f"/v1/sessions/{talks[0].own}"), 404)
    refused(bob("POST", "/v1/responses", {"input": "Hi", "previous_response_id": response}), 404)

    for pid in (first, second):
        while pid not in at:  # those of the other have moved to the one that took the first's place
            talks.append(Talk(running, model, len(talks)))
            at = where(talks)
        assert talks[at.index(pid)].killed() == pid
        for talk in talks:
            talk.turn("Mary went to the garden.")
        for web, place, fields in ((ada, "office.", {"previous_response_id": response}), (bob, "garden.", {"conversation": conversation})):
            answer = web("POST", "/v1/responses", {"input": "Where is Daniel?", **fields}).json()
            assert answer["output"][0]["content"][0]["text"] == place
        ask()
        end = time.monotonic() + 200
        while len(set(at := where(talks))) < 2:
            assert time.monotonic() < end, "another replica comes"
        assert pid not in at
