"""`lm2 chat` in a real terminal: a pseudo-terminal, with everything typed as a person would."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time

import pytest
import sources
from command_line import spawn

from lm2.runtime.statefile.file import read_session

pty = pytest.importorskip("pty", reason="needs a POSIX terminal")
PROMPT = ">>> "


class Terminal:
    """A chat in a terminal of 200 columns."""

    def __init__(self, args, **options):
        import fcntl
        import struct
        import termios

        self.keyboard, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
        env = {"TERM": "xterm", "PYTHONUNBUFFERED": "", "COLUMNS": "200"}
        take = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
        self.process = spawn(args, take, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=env, **options)
        os.close(slave)
        self.screen = ""

    def wait(self, text, seconds=90):
        """What came on the screen until `text`, without escape sequences."""
        end = time.monotonic() + seconds
        while text not in self.screen:
            assert time.monotonic() < end and self.read(), f"waited for {text!r}, have {self.screen!r}"
        before, _, self.screen = self.screen.partition(text)
        return before + text

    def read(self):
        """Take in what is there; False when the chat is over."""
        if not select.select([self.keyboard], [], [], 1)[0]:
            return True
        try:
            data = os.read(self.keyboard, 1 << 16)
        except OSError:
            return False
        self.screen += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]", "", data.decode("utf-8", "replace")).replace("\r\n", "\n")
        return bool(data)

    def settle(self):
        """Wait until nothing has come for a second: the chat waits for a key."""
        while select.select([self.keyboard], [], [], 1)[0] and self.read():
            pass

    def type(self, text):
        os.write(self.keyboard, text.encode() if isinstance(text, str) else text)

    def say(self, text):
        """Type a line; what came until the next prompt, without the line itself."""
        self.type(text + "\n")
        return self.wait(PROMPT).removesuffix(PROMPT).split("\n", 1)[-1]

    def leave(self):
        """Wait for the end; what was still shown, and the exit code."""
        while self.read():
            pass
        os.close(self.keyboard)
        return self.screen, self.process.wait(60)


@pytest.fixture
def terminal():
    opened = []

    def open_terminal(*args):
        opened.append(Terminal(args))
        return opened[-1]

    yield open_terminal
    for t in opened:
        if t.process.poll() is None:
            os.killpg(t.process.pid, signal.SIGKILL)
            t.process.wait()


STATUS = re.compile(r"^\d+\.\d tokens/s · window \d+/64 · \d+ tokens in memory · 18 KB state$")


def test_a_conversation(terminal, tiny, tmp_path):
    file, notes = tmp_path / "s.lm2s", tmp_path / "notes.txt"
    notes.write_text("A line of text.\n" * 100)
    t = terminal("chat", tiny, "--session", file, "--seed", "5", "--max-tokens", "6", "--threads", "1")
    greeting = t.wait(PROMPT)
    assert "loading" in greeting and "tiny on torch (cpu, float32) · window 64 · memory gated, 72 rows in 2 layers, untrained · seed 5" in greeting
    assert f"new session in {file}" in greeting and "/help" in greeting and "Traceback" not in greeting

    answer = t.say("hello")
    assert STATUS.match(answer.splitlines()[-1]), answer
    assert t.say("") == "" and t.say("   ") == ""
    t.type('"""first\nsecond\n\nfourth"""\n')
    assert STATUS.match(t.wait(PROMPT).splitlines()[-2])
    sent = read_session(file, None).document["transcript"]
    assert [m["content"] for m in sent if m["role"] == "user"] == ["hello", "first\nsecond\n\nfourth"]

    assert "/regen" in t.say("/help") and "there is no command /nope" in t.say("/nope")
    assert "seed 5" in t.say("/stats") and "layer 0: " in t.say("/memory")
    assert "took back the last turn" in t.say("/undo")
    assert STATUS.match(t.say("/regen").splitlines()[-1])
    assert re.search(r"read 1600 tokens of .*notes.txt · window \d+/64", t.say(f"/read {notes}"))
    assert f"saved to {file}" in t.say("/save") and "exists already" in t.say(f"/save {notes}")
    assert "stays as it is" in t.say(f"/fork {tmp_path / 'b.lm2s'}")
    assert "everything is forgotten" in t.say("/reset")
    assert "going on with" in t.say(f"/load {file}")
    t.type(b"caf\xe9\n")
    t.wait(PROMPT)

    t.type("half a line")
    t.wait("half a line")
    t.settle()  # Python leaves a Ctrl-C that comes between two reads of the keyboard until another key comes
    t.type("\x03")
    assert "Ctrl-D or /exit leaves" in t.wait(PROMPT)
    t.type("\x04")
    screen, code = t.leave()
    assert code == 0 and "Traceback" not in screen
    assert not list(tmp_path.glob(".*partial"))


def test_what_cannot_be_decoded_does_not_end_the_chat(tiny, monkeypatch, capsys):
    """Where Python reads the terminal without readline, bytes that are no UTF-8 come as an error from input()."""
    from tiny_model import load_tiny

    from lm2 import Session
    from lm2.runtime.commands import terminal as module
    from lm2.runtime.commands.chat import Talk

    lines = iter([UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "hello", KeyboardInterrupt(), EOFError()])

    def ask(prompt):
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", ask)
    talk = Talk(Session(load_tiny(tiny), seed=1), 3, (), terminal=True)
    assert module.converse(talk) == 0 and len(talk.session.transcript) == 2
    assert "not valid UTF-8" in capsys.readouterr().err


def test_control_characters_of_a_model_are_not_sent_to_a_terminal():
    from lm2.runtime.commands.common import visible

    assert visible("a\tb\n\x1b]0;title\x07\x9b2J\x7fé\r\n") == "a\tb\n\ufffd]0;title\ufffd\ufffd2J\ufffdé\n"


@pytest.mark.slow
def test_interrupts(terminal, tiny, tmp_path):
    """Ctrl-C stops an answer and nothing else; the next greeting shows where one was."""
    file = tmp_path / "s.lm2s"
    args = ("chat", tiny, "--session", file, "--seed", "5", "--max-tokens", "1000000", "--threads", "1")
    t = terminal(*args)
    t.wait(PROMPT)
    for message in ("one", "two"):
        t.type(message + "\n")
        t.wait(message + "\n")
        assert t.read()
        t.type("\x03")
        assert "stopped (/undo takes the turn back)" in t.wait(PROMPT)
    kept = read_session(file, None).document["transcript"]
    assert [m["content"] for m in kept[::2]] == ["one", "two"] and len(kept) == 4
    t.say("/undo")
    t.type("/exit\n")
    assert t.leave()[1] == 0

    t = terminal(*args)
    greeting = t.wait(PROMPT)
    assert f"going on with {file} (2 messages, " in greeting and t.wait("Ctrl-D leaves\n" + PROMPT).startswith("one\n")
    t.type("/bye\n")
    assert t.leave()[1] == 0


@pytest.mark.slow
def test_a_terminal_that_is_closed_in_mid_answer(terminal, tiny, tmp_path):
    """The window is closed, or the connection ends: what was answered so far is in the session."""
    file = tmp_path / "s.lm2s"
    t = terminal("chat", tiny, "--session", file, "--seed", "5", "--max-tokens", "1000000", "--threads", "1")
    t.wait(PROMPT)
    t.type("one\n")
    t.wait("one\n")
    assert t.read()
    os.close(t.keyboard)
    assert t.process.wait(60) == 128 + signal.SIGHUP
    said = read_session(file, None).document["transcript"]
    assert [m["role"] for m in said] == ["user", "assistant"] and said[0]["content"] == "one" and said[1]["content"]


# NO_COLOR, and terminals that can do nothing

MANY = """
import json, os, sys
from lm2 import cli
for number, (env, commands) in enumerate(json.loads(sys.argv[1])):
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        os.environ.pop(name, None)
    os.environ.update(env)
    print(f"run {number}", flush=True)
    for args in commands:
        sys.argv = ["lm2", *args]
        try: cli.main()
        except SystemExit: pass
"""


def shown(runs, typed):
    """What a terminal gets of several runs (environment, commands), byte for byte; `typed` lies ready for what reads it."""
    keyboard, slave = pty.openpty()
    code = [sys.executable, "-c", MANY, json.dumps(runs, default=str)]
    process = subprocess.Popen(
        code, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    os.close(slave)
    os.write(keyboard, typed.encode())
    data, end = b"", time.monotonic() + 120
    while time.monotonic() < end:
        if not select.select([keyboard], [], [], 1)[0]:
            continue
        try:
            block = os.read(keyboard, 1 << 16)
        except OSError:
            break
        data += block
        if not block:
            break
    os.close(keyboard)
    assert process.wait(60) == 0
    return re.split(r"run \d\r\n", data.decode())[1:]


PLAIN = ({"NO_COLOR": "1", "TERM": "xterm-256color"}, {"NO_COLOR": "0", "FORCE_COLOR": "1", "TERM": "xterm"}, {"TERM": "dumb"})


@pytest.mark.slow
def test_plain_terminals(tiny, tmp_path):
    """No escape code and no line that is drawn over, whatever is shown; the last run, where NO_COLOR is empty, is the control."""
    source = sources.save_hf(sources.llama(layers=2), tmp_path / "hf")
    text = tmp_path / "text.txt"
    text.write_text("A line of text.\n" * 60)
    runs = []
    for env in (*PLAIN, {"NO_COLOR": "", "TERM": "xterm-256color"}):
        commands = [
            ["convert", source, tmp_path / f"m{len(runs)}", "--memory-slots", "32"], ["nonsense"], ["info", tmp_path / "none"], ["--help"],
            ["eval", "lm2-tiny", "--task", "recall", "--samples", "1", "--distances", "1"],
            ["parity", tiny, "--backends", "torch,torch:bfloat16", "--chunks", "1", "--greedy", "0"],
            ["generate", tiny, "-p", "x", "--context", text, "--max-tokens", "2", "--seed", "1"],
            ["chat", tiny, "--seed", "1", "--max-tokens", "3", "--verbose"],
        ]  # fmt: skip
        runs.append((env, commands))
    screens = shown(runs, f"hello\n/stats\n/read {text}\n/nope\n/exit\n" * len(runs))
    assert len(screens) == len(runs)
    for (env, _), screen in zip(runs, screens, strict=True):
        assert "written to" in screen and "there is no command /nope" in screen and "tokens/s" in screen and "compared" in screen, screen
        drawn = re.findall(r"\x1b|\x08|\r(?!\r*\n)", screen)
        if env in PLAIN:
            assert not drawn, (env, repr(screen))
        else:
            assert "\x1b" in drawn and "\r" in drawn


def test_colors_in_a_pipe_are_for_people_only(lm2, tiny, monkeypatch):
    """FORCE_COLOR colors tables, as asked; JSON has none, and nothing is drawn in place."""
    ask = ("eval", "lm2-tiny", "--task", "recall", "--samples", "1", "--distances", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    result = lm2(*ask)
    assert "\x1b[" in result.out and "\x1b" not in result.err and "\r" not in result.out + result.err
    assert "\x1b" not in lm2(*ask, "--json").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in lm2(*ask).out
